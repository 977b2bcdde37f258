from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulations.study import Outcome, markdown
from tests.benchmarks.chest_xray import SIZES, goals, run_all


def outcome(arm: str, seed: int, auc: float, epsilon: float | None = None) -> Outcome:
    return Outcome(arm, seed, {"auc": auc}, epsilon, 10.0)


@pytest.fixture(scope="module")
def outcomes(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    results = run_all(tmp_path_factory.mktemp("chest"), shared_data, seeds=[0], rounds=8, workers=2)
    return {result.arm: result for result in results}


@pytest.mark.slow
def test_the_federation_comes_close_to_pooling_and_beats_the_sites_alone(outcomes: dict[str, Outcome]):
    pooled = outcomes["pooled"].metrics["auc"]
    alone = np.mean([outcomes[f"{site}-alone"].metrics["auc"] for site in SIZES])
    for name in ("FedAvg", "FedProx"):
        assert outcomes[name].metrics["auc"] > pooled - 0.04
        assert outcomes[name].metrics["auc"] > alone


@pytest.mark.slow
def test_privacy_costs_little_and_keeps_its_budget(outcomes: dict[str, Outcome]):
    private = outcomes["FedAvg-DP"]
    assert private.metrics["auc"] > outcomes["FedAvg"].metrics["auc"] - 0.08
    assert private.epsilon is not None
    assert 7 < private.epsilon <= 8
    assert outcomes["FedAvg"].epsilon is None


@pytest.mark.slow
def test_every_model_is_judged_on_the_same_unseen_images(outcomes: dict[str, Outcome]):
    assert {result.metrics["images"] for result in outcomes.values()} == {524}


def test_the_table_gives_mean_and_spread():
    text = markdown([outcome("a", 0, 0.9, 7.9), outcome("a", 1, 0.8, 8.0), outcome("b", 0, 0.5), outcome("b", 1, 0.5)],
                    ["a", "b"])  # fmt: skip
    assert text.splitlines()[2] == "| a | 0.850 ± 0.071 | 0.900 | 0.800 | 8.00 | 10 |"
    assert text.splitlines()[3] == "| b | 0.500 ± 0.000 | 0.500 | 0.500 | - | 10 |"


def test_a_missed_goal_is_said():
    results = [outcome("pooled", 0, 0.99), outcome("FedAvg", 0, 0.95), outcome("FedProx", 0, 0.98),
               outcome("FedAvg-DP", 0, 0.90), *(outcome(f"{site}-alone", 0, 0.9) for site in SIZES)]  # fmt: skip
    assert list(goals(results).values()) == [False, True, True, True, False]
