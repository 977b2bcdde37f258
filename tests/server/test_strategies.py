"""Every strategy in the table keeps the contract of a strategy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from common.errors import JobError
from common.job import AggregationSection
from server.aggregation import RunningMean
from server.strategies.registry import STRATEGIES, build_strategy

MODELS = [
    {"w": np.full((2, 2), value, np.float32), "steps": np.array(3), "b": np.array([value, -1], np.float32)}
    for value in (0.1, 0.7, 3.3)
]
COUNTS = (7, 100, 31)


def next_model(name, order):
    running = RunningMean(MODELS[0])
    for index in order:
        running.add(MODELS[index], COUNTS[index], "site")
    return build_strategy(AggregationSection(strategy=name)).next_model(MODELS[0], running.mean())


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_order_of_sites_changes_nothing(name):
    results = [next_model(name, order) for order in itertools.permutations(range(3))]
    assert all(result["w"].tobytes() == results[0]["w"].tobytes() for result in results)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_next_model_has_names_shapes_and_dtypes_of_the_current_one(name):
    result = next_model(name, (0, 1, 2))
    assert list(result) == list(MODELS[0])
    forms = {key: (tensor.shape, tensor.dtype) for key, tensor in MODELS[0].items()}
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in result.items()} == forms


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_site_that_did_not_move_leaves_the_model_as_it_is(name):
    result = next_model(name, (0,))
    assert all(result[key].tobytes() == MODELS[0][key].tobytes() for key in result)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_bears_the_name_it_is_listed_under(name):
    assert build_strategy(AggregationSection(strategy=name)).name == name


def test_a_wrong_name_is_answered_with_the_nearest_right_one():
    with pytest.raises(JobError, match='unknown strategy "fedavgg": did you mean "fedavg"'):
        build_strategy(AggregationSection(strategy="fedavgg"))


def test_fedavg_with_a_proximal_term_is_refused():
    with pytest.raises(JobError, match='set strategy = "fedprox"'):
        build_strategy(AggregationSection(strategy="fedavg", proximal_mu=0.1))
