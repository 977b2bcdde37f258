"""The running mean: exact, order-free, flat in memory; and the contract of every strategy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import UpdateError
from common.update import Tensors
from server.aggregation import MAX_WEIGHT, RunningMean

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = arrays(np.float32, 12, elements=FLOATS)
UPDATES = st.lists(st.tuples(VALUES, st.integers(1, MAX_WEIGHT)), min_size=1, max_size=6)


def mean_of(updates: list[tuple[Tensors, int]]) -> Tensors:
    running = RunningMean(updates[0][0])
    for tensors, examples in updates:
        running.add(tensors, examples, "site")
    return running.mean()


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


@settings(max_examples=300, deadline=None)
@given(UPDATES, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_a_bit(updates, random):
    named = [({"w": values}, examples) for values, examples in updates]
    shuffled = random.sample(named, len(named))
    assert bits(mean_of(named)) == bits(mean_of(shuffled))


@settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(1, MAX_WEIGHT))
def test_one_site_alone_gets_its_own_model_back_to_the_bit(values, examples):
    assert bits(mean_of([({"w": values}, examples)])) == {"w": values.tobytes()}


@settings(max_examples=100, deadline=None)
@given(VALUES, st.lists(st.integers(1, MAX_WEIGHT), min_size=2, max_size=5))
def test_equal_models_average_to_themselves(values, counts):
    assert bits(mean_of([({"w": values}, examples) for examples in counts])) == {"w": values.tobytes()}


@settings(max_examples=200, deadline=None)
@given(UPDATES)
def test_the_mean_agrees_with_numpy_in_double_precision(updates):
    stack = np.stack([values.astype(np.float64) for values, _ in updates])
    weights = np.array([examples for _, examples in updates], dtype=np.float64)
    scale = float(np.abs(stack).max())
    expected = np.average(stack, axis=0, weights=weights)
    got = mean_of([({"w": values}, examples) for values, examples in updates])["w"]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12 * scale + 1e-44)


def test_a_thousand_sites_in_two_orders_give_the_same_bits():
    random = np.random.default_rng(1)
    updates = [({"w": random.normal(size=50).astype(np.float32)}, int(n)) for n in random.integers(1, 10**6, 1000)]
    assert bits(mean_of(updates)) == bits(mean_of(updates[::-1]))


def test_integer_buffers_are_averaged_exactly_and_keep_their_dtype():
    updates = [({"steps": np.array([2**60, 7, -3])}, 3), ({"steps": np.array([2**60, 8, -3])}, 1)]
    mean = mean_of(updates)["steps"]
    assert mean.tolist() == [2**60, 7, -3]
    assert mean.dtype == np.int64


@pytest.mark.parametrize("examples", [0, -1, 2**29])
def test_a_count_out_of_range_is_refused(examples):
    with pytest.raises(UpdateError, match="north: a count of"):
        RunningMean({"w": np.zeros(1, np.float32)}).add({"w": np.zeros(1, np.float32)}, examples, "north")


def test_a_bad_update_leaves_the_sum_as_it_was():
    good, bad = {"a": np.ones(2, np.float32)}, {"a": np.array([1, np.nan], np.float32)}
    running = RunningMean(good)
    running.add(good, 5, "north")
    with pytest.raises(UpdateError, match="not finite"):
        running.add(bad, 5, "south")
    assert bits(running.mean()) == bits(good)
    assert (running.updates, running.examples) == (1, 5)


def test_memory_does_not_grow_with_the_number_of_sites():
    def peak(sites: int) -> int:
        tensors = {"w": np.random.default_rng(0).normal(size=500_000).astype(np.float32)}
        tracemalloc.start()
        running = RunningMean(tensors)
        for site in range(sites):
            running.add({"w": tensors["w"] * np.float32(1 + site)}, 100 + site, "site")
        running.mean()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(16) < 1.05 * peak(2)
