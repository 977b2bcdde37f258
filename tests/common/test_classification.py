"""Classification: targets from label texts, and metrics with intervals that a statistician would accept."""

import numpy as np
import pytest
import torch

from common.errors import DataError, JobError
from common.job import TaskSection
from common.tasks.registry import TASKS, build_task
from common.update import METRIC_FIELDS

BINARY = build_task(TaskSection(labels=("normal", "pneumonia")))
SEVERAL = build_task(TaskSection(labels=("a", "b", "c")))
MULTI = build_task(TaskSection(labels=("effusion", "nodule"), multilabel=True))


def test_labels_become_targets_in_the_jobs_order():
    assert BINARY.target(["pneumonia", "normal"]).tolist() == [1, 0]
    assert MULTI.target(["nodule|effusion", "", "nodule"]).tolist() == [[1, 1], [0, 0], [0, 1]]


def test_a_label_that_the_job_does_not_name_is_refused():
    with pytest.raises(DataError, match="covid"):
        BINARY.target(["normal", "covid"])


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(JobError, match='did you mean "classification"'):
        build_task(TaskSection(kind="clasification", labels=("a", "b")))


@pytest.mark.parametrize("task", [BINARY, SEVERAL, MULTI])
def test_the_loss_is_one_number_an_image_and_falls_when_the_answer_is_right(task):
    labels = {BINARY: ["normal", "pneumonia"], SEVERAL: ["a", "c"], MULTI: ["nodule", ""]}
    targets = task.target(labels[task])
    outputs = torch.zeros(2, task.outputs)
    right = 5 * (targets if targets.dim() == 2 else torch.nn.functional.one_hot(targets, task.outputs)).float()
    assert task.loss(outputs, targets).shape == (2,)
    assert task.loss(right - 2.5, targets).sum() < task.loss(outputs, targets).sum()


@pytest.mark.parametrize("task", [BINARY, SEVERAL, MULTI])
def test_every_metric_may_leave_and_lies_in_its_interval(task):
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, (60, 2)) if task is MULTI else random.integers(0, task.outputs, 60)
    found = task.metrics(random.random((60, task.outputs)).astype(np.float32), targets)
    assert {f"eval.{name}" for name in found} <= set(METRIC_FIELDS)
    for name in ("auc", "accuracy", "sensitivity", "specificity"):
        assert 0 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] <= 1


def test_sensitivity_and_specificity_are_those_of_the_second_label():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])
    found = BINARY.metrics(scores, np.array([0, 0, 1, 1]))
    assert (found["sensitivity"], found["specificity"], found["accuracy"]) == (0.5, 0.5, 0.5)
    assert found["auc"] == 0.75


def test_with_one_class_only_what_is_undefined_is_left_out():
    found = BINARY.metrics(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    assert "auc" not in found
    assert "sensitivity" not in found
    assert found["specificity"] == 0.5


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random, hits, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        truth = random.integers(0, 2, 80)
        score = random.normal(truth * 1.0, 1.0)
        if 0 < truth.sum() < 80:
            found = BINARY.metrics(np.stack([-score, score], axis=1), truth)
            hits += found["auc_low"] <= 0.7602 <= found["auc_high"]  # Phi(1 / sqrt 2)
    assert 0.91 <= hits / trials <= 0.99


def test_every_task_of_the_table_can_be_built():
    for kind in TASKS:
        assert build_task(TaskSection(kind=kind, labels=("a", "b"))).outputs > 0
