"""Every network of the table really trains with differential privacy, by whole patients, in 2D and in 3D."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from client.dataset import CaseSet
from client.training import Mechanism, Plan, train_round
from common.architectures import NETWORKS
from common.job import Job
from common.networks import build_network, case_shape
from common.tasks.registry import build_task

CPU = torch.device("cpu")
SMALL = {
    "unet": {"width": 4, "levels": 3}, "basic-unet": {"width": 4}, "dynunet": {"width": 4, "levels": 3},
    "attention-unet": {"width": 4, "levels": 3}, "swin-unetr": {"feature_size": 12, "window_size": 4},
    "small-cnn": {"width": 8}, "densenet121": {"init_features": 8, "growth_rate": 4, "bn_size": 2},
    "resnet18": {"widen_factor": 0.25},
}  # fmt: skip
"""Small enough for a test; the layers are the same."""
OF_MASKS = [name for name, one in NETWORKS.items() if one.gives == "map"]


def private_job(network, size, kind="segmentation"):
    data = {"collection": "c", "size": size}
    return Job.model_validate({
        "name": "j", "sites": ["a"], "task": {"kind": kind, "labels": ["x", "y"]}, "data": data,
        "network": {"name": network, "parameters": SMALL.get(network, {})},
        "training": {"learning_rate": 1.0, "momentum": 0.0, "batch_size": 2},
        "privacy": {"mechanism": "dp-sgd", "engine": "plain", "clip_norm": 0.5, "max_images_per_patient": 2},
    })  # fmt: skip


def patients_of(job, count=3, images=2):
    random = np.random.default_rng(0)
    shape = case_shape(job)
    made = random.random((count * images, *shape)).astype(np.float32)
    truth = (made[:, 0] > 0.7).astype(np.uint8)
    return CaseSet(made, ("x", "y") * (count * images // 2), np.repeat(np.arange(count), images), truth)


SWIN_3D = pytest.param("swin-unetr", [64, 64, 64], marks=pytest.mark.slow)
OTHERS_3D = [(name, [32, 32, 32]) for name in OF_MASKS if name != "swin-unetr"]


@pytest.mark.parametrize(("network", "size"), [*((name, [64, 64]) for name in OF_MASKS), *OTHERS_3D, SWIN_3D])
def test_a_segmentation_network_takes_a_private_step_no_longer_than_the_clip_norm_of_each_patient(network, size):
    job = private_job(network, size)
    task, net, cases = build_task(job), build_network(job), patients_of(job)
    before = torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    quiet = Mechanism(noise_multiplier=0.0, sample_rate=1.0)
    train_round(
        net, cases, task.targets(cases), task, job, 1, mechanism=quiet, device=CPU, plan=Plan(1, 1.0, 3)
    )  # fmt: skip
    step = float((torch.nn.utils.parameters_to_vector(net.parameters()).detach() - before).norm())
    # Each of three patients has clip_norm at most; their sum is divided by the expected number of patients in a step.
    assert 0 < step <= 3 * 0.5 / 3 * 1.0001
    assert math.isfinite(step)
