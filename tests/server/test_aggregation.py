"""The running mean: exact, free of order and grouping, flat in memory."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import UpdateError
from common.update import Tensors
from server.aggregation import CARRY_AFTER, LEAST_WEIGHT, MAX_WEIGHT, RunningMean, rounded_weight

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = arrays(np.float32, 12, elements=FLOATS)
WEIGHTS = st.one_of(st.integers(1, MAX_WEIGHT), st.floats(LEAST_WEIGHT, MAX_WEIGHT))
UPDATES = st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=6)


def sum_of(updates: list[tuple[Tensors, float]], like: Tensors | None = None) -> RunningMean:
    running = RunningMean(like or updates[0][0])
    for tensors, weight in updates:
        running.add(tensors, weight, "site")
    return running


def mean_of(updates: list[tuple[Tensors, float]]) -> Tensors:
    return sum_of(updates).mean()


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


@settings(max_examples=300, deadline=None)
@given(UPDATES, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_a_bit(updates, random):
    named = [({"w": values}, examples) for values, examples in updates]
    shuffled = random.sample(named, len(named))
    assert bits(mean_of(named)) == bits(mean_of(shuffled))


@settings(max_examples=300, deadline=None)
@given(VALUES, WEIGHTS)
def test_one_site_alone_gets_its_own_model_back_to_the_bit(values, examples):
    assert bits(mean_of([({"w": values}, examples)])) == {"w": values.tobytes()}


@settings(max_examples=100, deadline=None)
@given(VALUES, st.lists(WEIGHTS, min_size=2, max_size=5))
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


@settings(max_examples=200, deadline=None)
@given(UPDATES, st.data())
def test_no_grouping_into_partial_sums_changes_a_bit(updates, data):
    named = [({"w": values}, weight) for values, weight in updates]
    groups: list[list[tuple[Tensors, float]]] = [[], [], []]
    for update in named:
        groups[data.draw(st.integers(0, 2))].append(update)
    total = sum_of([], named[0][0])
    for group in data.draw(st.permutations(groups)):
        total.merge(pickle.loads(pickle.dumps(sum_of(group, named[0][0]))))
    assert bits(total.mean()) == bits(mean_of(named))
    assert (total.updates, total.weight) == (len(named), sum_of(named).weight)


@settings(max_examples=200, deadline=None)
@given(UPDATES)
def test_the_mean_is_that_of_exact_fractions_to_the_last_place(updates):
    weights = [Fraction(rounded_weight(weight)) for _, weight in updates]
    got = mean_of([({"w": values}, weight) for values, weight in updates])["w"]
    for place in range(12):
        exact = sum(w * Fraction(float(values[place])) for w, (values, _) in zip(weights, updates, strict=True))
        exact /= sum(weights)
        size = min(np.abs(got[place]), np.nextafter(np.finfo(np.float32).max, np.float32(0)))  # the last with a next
        assert abs(Fraction(float(got[place])) - exact) <= Fraction(float(np.spacing(size))) * Fraction(500001, 1000000)


@settings(max_examples=300, deadline=None)
@given(st.floats(LEAST_WEIGHT, MAX_WEIGHT))
def test_a_weight_counts_as_it_is_given_to_nine_digits(weight):
    assert math.isclose(rounded_weight(weight), weight, rel_tol=2.0**-29)
    assert rounded_weight(math.floor(weight) + 1.0) == math.floor(weight) + 1


def test_more_updates_than_fit_into_a_limb_lose_nothing():
    # Values whose products fill all of their limbs: without carrying, sums of some thousands would be rounded.
    tensors = {"w": np.array([1 - 2.0**-24, -3.1e38, 1.1754942e-38, 1e-45], np.float32)}
    updates = [(tensors, MAX_WEIGHT)] * (3 * CARRY_AFTER + 5)
    total = sum_of(updates[:7])
    for _ in range(5):
        total.merge(sum_of(updates))
    assert bits(total.mean()) == bits(tensors)
    assert total.weight == MAX_WEIGHT * (7 + 5 * len(updates))


def test_two_to_the_seventeen_updates_are_summed_without_losing_a_bit():
    values = np.array([1.5, -(2.0**-149), 3.4e38, 0.1], np.float32)
    total = sum_of([({"w": values}, 3)])
    for _ in range(17):
        total.merge(pickle.loads(pickle.dumps(total)))
    assert total.updates == 2**17
    assert bits(total.mean()) == {"w": values.tobytes()}


def test_a_thousand_sites_in_two_orders_give_the_same_bits():
    random = np.random.default_rng(1)
    updates = [({"w": random.normal(size=50).astype(np.float32)}, int(n)) for n in random.integers(1, 10**6, 1000)]
    assert bits(mean_of(updates)) == bits(mean_of(updates[::-1]))


def test_integer_buffers_are_averaged_exactly_and_keep_their_dtype():
    updates = [({"steps": np.array([2**60, 7, -3])}, 3), ({"steps": np.array([2**60, 8, -3])}, 1)]
    mean = mean_of(updates)["steps"]
    assert mean.tolist() == [2**60, 7, -3]
    assert mean.dtype == np.int64


def test_double_precision_is_refused_because_it_could_not_be_summed_exactly():
    with pytest.raises(UpdateError, match='"w" is float64'):
        RunningMean({"w": np.zeros(1)})


@settings(max_examples=100, deadline=None)
@given(arrays(np.float16, 8, elements=st.floats(width=16, allow_nan=False, allow_infinity=False)), WEIGHTS)
def test_half_precision_comes_back_to_the_bit(values, weight):
    assert bits(mean_of([({"w": values}, weight), ({"w": values}, 3)])) == {"w": values.tobytes()}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), WEIGHTS), min_size=1, max_size=5))
def test_integer_buffers_of_any_size_keep_within_their_range(values):
    mean = mean_of([({"n": np.array([value])}, weight) for value, weight in values])["n"]
    assert min(value for value, _ in values) <= mean[0] <= max(value for value, _ in values)


@pytest.mark.parametrize("weight", [0, -1, 2**29, LEAST_WEIGHT / 2, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(UpdateError, match="north: a weight of"):
        RunningMean({"w": np.zeros(1, np.float32)}).add({"w": np.zeros(1, np.float32)}, weight, "north")


def test_a_bad_update_leaves_the_sum_as_it_was():
    good, bad = {"a": np.ones(2, np.float32)}, {"a": np.array([1, np.nan], np.float32)}
    running = RunningMean(good)
    running.add(good, 5, "north")
    with pytest.raises(UpdateError, match="not finite"):
        running.add(bad, 5, "south")
    assert bits(running.mean()) == bits(good)
    assert (running.updates, running.weight) == (1, 5)


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
