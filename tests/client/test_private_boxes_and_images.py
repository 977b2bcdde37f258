"""Detection and reconstruction really train with differential privacy, by whole patients."""

import numpy as np
import pytest
import torch

from client.dataset import CaseSet
from client.evaluation import Split, noised_metrics, predict
from client.privacy.choice import Workload, is_right
from client.privacy.engines import ENGINES
from client.training import Mechanism, Plan, train_round
from common.job import Job
from common.networks import build_network, case_shape
from common.tasks.registry import build_task

CPU = torch.device("cpu")
DETECTOR = ("detection", "heatmap-detector", {"width": 4, "levels": 2, "stride": 2}, {})
RESIDUAL = ("reconstruction", "residual-unet", {"width": 4, "levels": 2}, {})
UNROLLED = ("reconstruction", "unrolled-cnn", {"width": 4, "cascades": 2}, {"sees": "k-space"})
EVERY = [(which, size) for which in (DETECTOR, RESIDUAL, UNROLLED) for size in ([32, 32], [8, 16, 16])]


def private_job(which, size, **privacy):
    kind, network, parameters, task = which
    return Job.model_validate({
        "name": "j", "sites": ["a"], "data": {"collection": "c", "size": size, "augment": "light"},
        "task": {"kind": kind, "labels": ["x", "y"] if kind == "detection" else [], "parameters": task},
        "network": {"name": network, "parameters": parameters},
        "training": {"learning_rate": 1.0, "momentum": 0.0, "batch_size": 2},
        "privacy": {"mechanism": "dp-sgd", "engine": "plain", "clip_norm": 0.005, "max_images_per_patient": 2},
    })  # fmt: skip


def patients_of(job, count=3):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2 * count, *case_shape(job), generator=random).numpy()
    boxes = build_task(job).made_up(2 * count, images.shape[1:], random).numpy()
    truth = boxes if job.task.kind == "detection" else None
    return CaseSet(images, ("",) * len(images), np.repeat(np.arange(count), 2), truth)


@pytest.mark.parametrize(("which", "size"), EVERY)
def test_a_private_step_is_no_longer_than_the_clip_norm_of_each_patient(which, size):
    job = private_job(which, size)
    task, net, cases = build_task(job), build_network(job), patients_of(job)
    before = torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    quiet, plan = Mechanism(noise_multiplier=0.0, sample_rate=1.0), Plan(1, 1.0, 3)
    train_round(net, cases, task.targets(cases), task, job, 1, mechanism=quiet, device=CPU, plan=plan)
    step = float((torch.nn.utils.parameters_to_vector(net.parameters()).detach() - before).norm())
    # Each of three patients has clip_norm at most; their sum is divided by the three patients of a step.
    assert 0 < step <= 0.005 * 1.0001


@pytest.mark.parametrize(("which", "wrong"), [
    (DETECTOR, set()), (RESIDUAL, set()), (UNROLLED, {"bookkeeping", "hooks", "ghost"}),
])  # fmt: skip
def test_these_engines_are_right(which, wrong):
    job = private_job(which, [16, 16])
    task, network = build_task(job), build_network(job)
    work = Workload(task.input_shape(case_shape(job)), 1, 8)
    assert {name for name in ENGINES if not is_right(name, network, task, work)} == wrong


@pytest.mark.parametrize("which", [DETECTOR, RESIDUAL])
def test_noised_metrics_of_many_patients_leave(which):
    job = private_job(which, [16, 16])
    task, cases = build_task(job), patients_of(job, 60)
    split = Split(cases, task.targets(cases))
    found = noised_metrics(predict(build_network(job), split, task, CPU), split, task, 1.0)
    best = found.froc if which is DETECTOR else found.ssim
    assert found.basis == "noised"
    assert 0 <= best <= 1
    assert 40 < found.patients < 80
