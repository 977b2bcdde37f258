"""Fed-Heart-Disease as FLamby prepares and trains it: the published accuracies, hospital by hospital.

The figures are those that FLamby publishes with its code (results_benchmark_fed_heart_disease, seeds 42 to 46).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.dataset import CaseSet
from client.evaluation import Split, predict
from client.scaling import scaled
from common.errors import DataError
from common.job import Job
from common.networks import build_network, load_tensors
from common.tasks.registry import build_task
from simulations.engine import simulate
from simulations.heart import DISEASE, FEATURES, HOSPITALS, hospitals
from simulations.members import Hospital


@pytest.fixture(scope="module")
def population(shared_data):
    return hospitals(shared_data / "heart_disease")


def job(seed=42, sites=HOSPITALS, learning_rate=0.001, training=None, **aggregation):
    usual = {"batch_size": 4, "momentum": 0.0, "learning_rate": learning_rate}
    return Job.model_validate({
        "name": "heart", "seed": seed, "sites": sites,
        "task": {"labels": [DISEASE], "multilabel": True},
        "data": {"collection": "heart", "features": FEATURES, "scale": "site"},
        "network": {"name": "linear"},
        "training": usual | (training or {"local_steps": 100}),
        "aggregation": {"rounds": 15, "evaluate_every": 100} | aggregation,
    })  # fmt: skip


def accuracies(wanted, model, population):
    """What a model gets right at each hospital, its features scaled by the hospital's own statistics."""
    task = build_task(wanted)
    network = build_network(wanted)
    load_tensors(network, model)
    found = []
    for name in HOSPITALS:
        test = scaled(population[name].splits, wanted.data)["test"]
        said = predict(network, Split(test, task.targets(test)), task, torch.device("cpu"))
        found.append(float(np.mean((said.scores[:, 0] > 0.5) == [label == DISEASE for label in test.labels])))
    return found


def patients_apart(population, found, published):
    """About how many patients more two lists of accuracies differ, at the hospital where they differ most."""
    sizes = [len(population[name].splits["test"].labels) for name in HOSPITALS]
    return max(np.round(np.abs(np.subtract(found, published)) * sizes))


def test_hospitals_have_as_many_patients_in_each_split_as_published(population):
    counts = {name: tuple(len(one.splits[split].labels) for split in ("train", "test")) for name, one in population.items()}  # fmt: skip  # noqa: E501
    assert counts == {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 16), "va": (85, 45)}
    assert len(FEATURES) == 13
    assert all(one.splits["train"].images.shape[1] == 13 for one in population.values())


def test_a_folder_without_the_original_files_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"processed\.cleveland\.data: the hospital's file can't be read"):
        hospitals(tmp_path)


@pytest.mark.parametrize("text", ["", "1,2,3\n", "age,sex\n", "1,2,3,4,5,6,7,8,9,10,11,12,13,ill\n"])
def test_another_file_than_the_original_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "processed.cleveland.data").write_text(text)
    with pytest.raises(DataError, match="not the original file"):
        hospitals(tmp_path)


@pytest.mark.parametrize(("seed", "published"), [
    (42, [0.7596, 0.6966, 0.6875, 0.6222]),
    pytest.param(43, [0.7212, 0.7416, 0.7500, 0.6667], marks=pytest.mark.slow),
    pytest.param(45, [0.7308, 0.6742, 0.7500, 0.6222], marks=pytest.mark.slow),
    pytest.param(46, [0.7019, 0.7303, 0.5625, 0.7111], marks=pytest.mark.slow),
])  # fmt: skip
def test_fedavg_is_right_about_as_many_patients_of_each_hospital_as_published(population, seed, published):
    wanted = job(seed)
    found = accuracies(wanted, simulate(wanted, population, evaluate=False).model, population)
    assert patients_apart(population, found, published) <= 1  # none here; another machine may round otherwise


@pytest.mark.slow
@pytest.mark.parametrize(("learning_rate", "aggregation", "published"), [
    (0.001, {"strategy": "scaffold"}, 0.684),
    (0.01, {"strategy": "fedadam", "parameters": {"eta": 0.01, "beta_2": 0.999, "tau": 1e-8}}, 0.726),
    (0.003162, {"strategy": "fedyogi", "parameters": {"eta": 0.01, "beta_2": 0.999, "tau": 1e-8}}, 0.731),
], ids=lambda value: value["strategy"] if isinstance(value, dict) else "")  # fmt: skip
def test_every_strategy_comes_to_the_published_mean_over_five_seeds(population, learning_rate, aggregation, published):
    found = []
    for seed in range(42, 47):
        wanted = job(seed, learning_rate=learning_rate, **aggregation)
        found.append(np.mean(accuracies(wanted, simulate(wanted, population, evaluate=False).model, population)))
    assert np.mean(found) == pytest.approx(published, abs=0.006)


@pytest.mark.slow
def test_the_published_cyclic_is_clevelands_own_model_because_flambys_code_hands_none_on(population):
    # In its 15 turns, in an order drawn anew each cycle, Cleveland has four with this seed.
    wanted = job(43, sites=("cleveland",), learning_rate=0.01, rounds=4)
    found = accuracies(wanted, simulate(wanted, population, evaluate=False).model, population)
    assert patients_apart(population, found, [0.7596, 0.7416, 0.7500, 0.6667]) <= 1


@pytest.mark.slow
def test_pooled_training_judged_on_each_hospitals_own_scale_is_as_published(population):
    everyone = [population[name].splits["train"] for name in HOSPITALS]
    pooled = CaseSet(
        np.concatenate([cases.images for cases in everyone]),
        tuple(label for cases in everyone for label in cases.labels),
        np.arange(sum(len(cases.labels) for cases in everyone)),
    )
    adam = {"optimizer": "adamw", "local_epochs": 50}
    wanted = job(sites=("pooled",), training=adam, rounds=1)
    model = simulate(wanted, {"pooled": Hospital("pooled", {"train": pooled})}, evaluate=False).model
    assert np.mean(accuracies(wanted, model, population)) == pytest.approx(0.735, abs=0.006)


def test_scaling_is_that_of_the_hospitals_own_training_patients(population):
    data = job().data
    for hospital in population.values():
        train = hospital.splits["train"].images.astype(np.float64)
        found = scaled(hospital.splits, data)
        deviation = train.std(axis=0, ddof=1)
        varies = deviation > 0
        expected = (hospital.splits["test"].images - train.mean(axis=0))[:, varies] / deviation[varies]
        assert np.allclose(found["test"].images[:, varies], expected, atol=1e-5)
        assert not found["test"].images[:, ~varies].any()
