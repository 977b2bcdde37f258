"""Classification: targets from label texts, and metrics with intervals that a statistician would accept."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from common.errors import DataError, JobError
from common.job import Job
from common.release import METRIC_FIELDS
from common.tasks.registry import TASKS, build_task


def task_of(**task):
    job = {"name": "j", "sites": ["a"], "task": task, "data": {"collection": "c"}}
    return build_task(Job.model_validate(job))


BINARY = task_of(labels=("normal", "pneumonia"))
SEVERAL = task_of(labels=("a", "b", "c"))
MULTI = task_of(labels=("effusion", "nodule"), multilabel=True)


def test_labels_become_targets_in_the_jobs_order():
    assert BINARY.target(["pneumonia", "normal"]).tolist() == [1, 0]
    assert MULTI.target(["nodule|effusion", "", "nodule"]).tolist() == [[1, 1], [0, 0], [0, 1]]


def test_a_label_that_the_job_does_not_name_is_refused():
    with pytest.raises(DataError, match="covid"):
        BINARY.target(["normal", "covid"])


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(JobError, match='did you mean "classification"'):
        task_of(kind="clasification", labels=("a", "b"))


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


@pytest.mark.parametrize(("positives", "negatives", "apart"), [(40, 40, 1.0), (10, 30, 2.0), (5, 200, 2.5)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(positives, negatives, apart):
    random, hits, trials = np.random.default_rng(1), 0, 300
    truth = np.repeat([1, 0], [positives, negatives])
    for _ in range(trials):
        score = random.normal(truth * apart, 1.0)
        found = BINARY.metrics(np.stack([-score, score], axis=1), truth)
        hits += found["auc_low"] <= norm.cdf(apart / math.sqrt(2)) <= found["auc_high"]
    assert 0.91 <= hits / trials <= 0.995


def test_a_perfect_score_on_few_images_is_not_reported_as_certain():
    truth = np.repeat([0, 1], 5)
    found = BINARY.metrics(np.eye(2)[truth], truth)
    assert (found["auc"], found["accuracy"]) == (1.0, 1.0)
    assert found["auc_low"] < 0.7
    assert found["sensitivity_low"] < 0.7
    assert found["auc_high"] == 1.0


@pytest.mark.parametrize("task", [BINARY, SEVERAL, MULTI])
def test_a_model_that_answers_no_number_has_no_metrics(task):
    scores = np.full((4, task.outputs), 0.5)
    scores[2] = np.nan
    assert task.metrics(scores, np.zeros((4, 2)) if task is MULTI else np.array([0, 1, 0, 1])) == {}


def test_several_classes_are_each_judged_against_the_rest_and_the_mean_is_given():
    random = np.random.default_rng(3)
    truth, scores = random.integers(0, 3, 90), random.dirichlet([1, 1, 1], 90)
    found = SEVERAL.metrics(scores, truth)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr", average="macro"))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, scores.argmax(axis=1)))
    assert found["sensitivity"] == pytest.approx(recall_score(truth, scores.argmax(axis=1), average="macro"))


def test_every_task_of_the_table_can_be_built():
    for kind in TASKS:
        assert task_of(kind=kind, labels=("a", "b")).outputs > 0
