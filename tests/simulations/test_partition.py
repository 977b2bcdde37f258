from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError
from simulations.partition import even_sizes, partition

LABELS = ["normal"] * 1214 + ["pneumonia"] * 3494


def shares(parts: tuple[np.ndarray, ...]) -> list[float]:
    return [float(np.mean([LABELS[index] == "pneumonia" for index in part])) for part in parts]


def test_each_hospital_gets_its_size_and_no_case_twice():
    parts = partition(LABELS, (2400, 1200, 700, 408), alpha=3, seed=1)
    assert [len(part) for part in parts] == [2400, 1200, 700, 408]
    assert len(np.unique(np.concatenate(parts))) == 4708


def test_a_small_alpha_makes_hospitals_differ_and_a_large_one_alike():
    skewed = np.ptp(shares(partition(LABELS, (1500, 1500, 700), alpha=2, seed=0)))
    alike = np.ptp(shares(partition(LABELS, (1500, 1500, 700), alpha=float("inf"), seed=0)))
    assert alike < 0.01 < 0.1 < skewed


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    one, same, other = (partition(LABELS, (2000, 900), alpha=3, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    alpha=st.floats(0.05, 100),
    seed=st.integers(0, 1000),
    positives=st.integers(1, 399),
)
def test_sizes_are_kept_whatever_the_skew(sizes: list[int], alpha: float, seed: int, positives: int):
    labels = ["a"] * positives + ["b"] * (400 - positives)
    parts = partition(labels, sizes, alpha=alpha, seed=seed)
    assert [len(part) for part in parts] == sizes
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)


@pytest.mark.parametrize(("sizes", "alpha"), [((4709,), 1.0), ((0, 5), 1.0), ((), 1.0), ((5,), 0.0)])
def test_an_impossible_split_is_one_clear_line(sizes: tuple[int, ...], alpha: float):
    with pytest.raises(UsageError, match="can't split 4708 cases"):
        partition(LABELS, sizes, alpha=alpha, seed=0)


def test_even_sizes_add_up():
    assert even_sizes(10, 4) == (3, 3, 2, 2)
