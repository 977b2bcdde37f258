"""Which engine makes the clipped gradients: the fastest of those that were seen to be right on this very network.

Opacus' hooks refuse some networks and are wrong on others without a word (VNet, with a layer used twice under another
name), so no engine but the plain one is trusted before it has given the plain one's gradients here. All is measured on
random images: the choice tells nothing about a patient.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from client.privacy.clipping import Gradients, Loss, Sample, plain, trainable
from client.privacy.engines import ENGINES, GRADIENT_AN_IMAGE, ONE_IMAGE
from common.tasks.task import Task

AGREEMENT = 1e-9
"""Largest relative distance from the plain engine's gradients, in float64."""
PROOF_SIZES = (2, 1)
TIMED_IMAGES, TIMES = 16, 2
LARGEST_GRADIENTS = 1024**3
log = logging.getLogger("wardround.privacy")


@dataclass(frozen=True)
class Workload:
    """What an engine is to work on: inputs of `shape` (C, *size), how many a unit and at once."""

    shape: tuple[int, ...]
    images_a_unit: int
    at_once: int

    def sample(self, task: Task, sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Sample:
        """Return random images with made-up targets."""
        count = sum(sizes)
        random = torch.Generator().manual_seed(0)
        images = torch.rand(count, *self.shape, generator=random, dtype=dtype)
        targets = task.made_up(count, self.shape, random)
        targets = targets.to(dtype) if targets.is_floating_point() else targets
        return Sample(images.to(device), targets.to(device), sizes, self.at_once)


def choose_engine(network: nn.Module, task: Task, work: Workload) -> str:
    """Return the name of the fastest engine that gives the gradients of `plain` on this network.

    One that holds a gradient an image is left out where these would take more than `LARGEST_GRADIENTS` bytes, or where
    memory has no room for two units. The network's parameters and its mode are not changed.
    """
    if work.at_once < max(sum(PROOF_SIZES), 2 * work.images_a_unit):
        return "plain"
    offered = [name for name in ENGINES if name != "plain" and _is_offered(name, network, work)]
    right = ["plain", *(name for name in offered if is_right(name, network, task, work))]
    if len(right) == 1:
        return "plain"
    device = next(network.parameters()).device
    units = max(2, min(TIMED_IMAGES, work.at_once) // work.images_a_unit)
    sample = work.sample(task, (work.images_a_unit,) * units, device, torch.float32)
    seconds = {name: _seconds(name, network, task.loss, sample) for name in right}
    chosen = min(seconds, key=lambda name: seconds[name])
    log.info("engine %s: %s", chosen, ", ".join(f"{name} {1000 * took:.0f} ms" for name, took in seconds.items()))
    return chosen


def _is_offered(name: str, network: nn.Module, work: Workload) -> bool:
    size = sum(parameter.numel() * parameter.element_size() for parameter in trainable(network))
    fits = name not in GRADIENT_AN_IMAGE or size * work.at_once <= LARGEST_GRADIENTS
    return fits and (name not in ONE_IMAGE or work.images_a_unit == 1)


def is_right(name: str, network: nn.Module, task: Task, work: Workload) -> bool:
    """Whether an engine agrees with `plain` on units of several sizes, with every gradient clipped and with none.

    In float64: there rounding makes no pooling layer choose another pixel. In training mode, unless the network draws
    random numbers there (dropout, drop-connect), which two engines draw differently.
    """
    try:
        exact = copy.deepcopy(network).double().train()
        sizes = (1,) * sum(PROOF_SIZES) if name in ONE_IMAGE else PROOF_SIZES
        sample = work.sample(task, sizes, next(network.parameters()).device, torch.float64)
        free, again = (plain(exact, task.loss, sample, math.inf)[0] for _ in range(2))
        if disagreement(free, again) > 0:
            exact.eval()
        apart = [_apart(name, exact, task.loss, sample, clip) for clip in (math.inf, 1e-3 * _length(free))]
    except Exception as error:
        log.info("engine %s does not take this network: %s", name, (str(error).splitlines() or [""])[0][:120])
        return False
    right = all(error <= AGREEMENT for error in apart)  # not so if one is not a number
    if not right:
        log.warning("engine %s gives wrong gradients on this network (relative errors %.2g, %.2g)", name, *apart)
    return right


def _apart(name: str, network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> float:
    ours, truth = (engine(network, loss, sample, clip_norm)[0] for engine in (ENGINES[name], plain))
    return disagreement(ours, truth)


def _seconds(name: str, network: nn.Module, loss: Loss, sample: Sample) -> float:
    ENGINES[name](network, loss, sample, 1.0)  # the first pass pays for warming up
    times = []
    for _ in range(TIMES):
        started = time.perf_counter()
        ENGINES[name](network, loss, sample, 1.0)  # its loss is read, so a GPU has finished when it returns
        times.append(time.perf_counter() - started)
    return min(times)


def disagreement(ours: Gradients, truth: Gradients) -> float:
    """Return the relative L2 distance of two gradients; infinite from one that is zero, which proves nothing."""
    length = _length(truth)
    apart = _length([a.double() - b.double() for a, b in zip(ours, truth, strict=True)])
    return apart / length if length > 0 else math.inf


def _length(gradients: Gradients) -> float:
    return math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients))
