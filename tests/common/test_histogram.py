"""Metrics from noised histograms: no patient moves them by more than is paid for; they agree with the exact ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from common.job import Job
from common.tasks.classification import Classification
from common.tasks.task import Tally


def task_of(**task):
    job = {"name": "j", "sites": ["a"], "task": task, "data": {"collection": "c"}}
    return Classification(Job.model_validate(job))


TASKS = {
    "binary": task_of(labels=("no", "yes")),
    "classes": task_of(labels=("a", "b", "c")),
    "multilabel": task_of(labels=("a", "b", "c"), multilabel=True),
}


def cases(kind: str, patients: np.ndarray, random: np.random.Generator):
    """Random scores and targets for each patient's images."""
    task = TASKS[kind]
    scores = random.random((len(patients), task.outputs))
    if kind == "multilabel":
        return scores, random.integers(0, 2, scores.shape).astype(np.float32)
    return scores / scores.sum(axis=1, keepdims=True), random.integers(0, task.outputs, len(patients))


def separated(count: int, random: np.random.Generator):
    """Scores of a good classifier on `count` patients of one image each, with their targets."""
    targets = np.arange(count) % 2
    positive = 1 / (1 + np.exp(-2 * (random.normal(size=count) + 2.0 * targets - 1)))
    return np.stack([1 - positive, positive], axis=1), targets


@given(
    kind=st.sampled_from(sorted(TASKS)),
    images=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    leaver=st.integers(0, 11),
    seed=st.integers(0, 2**32),
)
def test_a_patient_who_leaves_moves_the_tally_by_no_more_than_its_sensitivity(kind, images, leaver, seed):
    patients = np.repeat(np.arange(len(images)), images)
    scores, targets = cases(kind, patients, np.random.default_rng(seed))
    stays = patients != leaver % len(images)
    whole = TASKS[kind].tally(scores, targets, patients)
    without = TASKS[kind].tally(scores[stays], targets[stays], patients[stays])
    assert whole.sensitivity == without.sensitivity
    assert np.linalg.norm(whole.values - without.values) <= whole.sensitivity + 1e-9


def test_scores_that_are_no_numbers_still_count_for_one_patient():
    tally = TASKS["binary"].tally(np.full((3, 2), np.nan), np.array([0, 1, 1]), np.array([0, 1, 1]))
    assert tally.values.sum() == pytest.approx(2.0)


def test_without_noise_the_histogram_says_what_the_exact_metrics_say():
    scores, targets = separated(2000, np.random.default_rng(1))
    exact = TASKS["binary"].metrics(scores, targets)
    found = TASKS["binary"].metrics_of(TASKS["binary"].tally(scores, targets, np.arange(2000)))
    assert found["auc"] == pytest.approx(roc_auc_score(targets, scores[:, 1]), abs=0.005)
    assert found["patients"] == 2000
    for name in ("accuracy", "sensitivity", "specificity"):
        assert found[name] == pytest.approx(exact[name], abs=1e-9)


@pytest.mark.parametrize(("patients", "deviation"), [(200, 1.0), (200, 2.2), (1000, 5.0)])
def test_the_interval_holds_the_true_auc_nine_times_in_ten_and_more(patients, deviation):
    random = np.random.default_rng(7)
    scores, targets = separated(200_000, random)
    truth = roc_auc_score(targets, scores[:, 1])
    held = 0
    for _ in range(100):
        scores, targets = separated(patients, random)
        tally = TASKS["binary"].tally(scores, targets, np.arange(patients))
        noised = Tally(tally.values + random.normal(0, deviation, tally.values.shape), tally.sensitivity, deviation)
        found = TASKS["binary"].metrics_of(noised)
        held += found["auc_low"] <= truth <= found["auc_high"]
    assert held >= 86


def test_a_class_that_the_noise_drowns_has_no_metric():
    scores, targets = separated(12, np.random.default_rng(3))
    tally = TASKS["binary"].tally(scores, targets, np.arange(12))
    assert set(TASKS["binary"].metrics_of(Tally(tally.values, tally.sensitivity, 5.0))) == {"patients"}
