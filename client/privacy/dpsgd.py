"""One step of DP-SGD, put together from its parts: draw units, clip each one's gradient, sum, add noise, divide.

The parts are values in one frozen dataclass, so that an audit can put a broken one in place of a right one and see
whether an attack notices. A site never does: it trains with the parts that `usual_parts` makes.

Guarantees, with the usual parts: adding or removing one unit changes the sum before noise by at most `clip_norm` in L2
norm, whatever its images; the noise is Gaussian of deviation `noise_multiplier * clip_norm` and is drawn once a step;
the sum is divided by a number that depends on no record. An empty sample gives noise alone.

References: Abadi et al., CCS 2016 (DP-SGD); De et al., "Unlocking High-Accuracy Differentially Private Image
Classification through Scale", 2022 (several augmented views of an image in one gradient, clipped once).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from client.privacy.clipping import Engine, Gradients, Loss, Sample, plain, trainable
from client.privacy.noise import Noise, make_noise
from client.privacy.sampling import PoissonSampler, Units
from common.job import PrivacySection

Load = Callable[[np.ndarray], tuple[Tensor, Tensor]]
"""Images and targets, on the network's device, of rows of the case set. A row may come twice: it is augmented anew."""


@dataclass(frozen=True)
class Mechanism:
    """The noise that was paid for: its multiplier, and the sampling rate that it was accounted with."""

    noise_multiplier: float
    sample_rate: float


class Sampler(Protocol):
    """Draws the units of a step."""

    def draw(self) -> Sequence[np.ndarray]:
        """Return each sampled unit's image rows."""


class Release(Protocol):
    """Makes what is released of a step from the sums of its physical batches."""

    def __call__(self, start: Gradients, sums: Iterable[Gradients], noise: Noise, deviation: float) -> Gradients:
        """Return the noisy sum. `start` is zeros of the gradients' shapes, which it may add to in place."""


def noisy_sum(start: Gradients, sums: Iterable[Gradients], noise: Noise, deviation: float) -> Gradients:
    """Add up all physical batches, then add noise: once a step, however many batches there were."""
    for gradients in sums:
        torch._foreach_add_(start, gradients)
    return [total + noise.like(total, deviation) for total in start]


@dataclass(frozen=True)
class Parts:
    """What a step of DP-SGD is made of.

    `expected_units` is what the noisy sum is divided by; `views` is how often each image of a unit enters its gradient;
    `physical_batch` is how many images may be in memory at once.
    """

    sampler: Sampler
    engine: Engine
    release: Release
    noise: Noise
    clip_norm: float
    noise_multiplier: float
    expected_units: float
    physical_batch: int
    views: int = 1


def usual_parts(
    privacy: PrivacySection, units: Units, mechanism: Mechanism, planned: int, engine: Engine, device: torch.device
) -> Parts:
    """Return the parts that the job's privacy section asks for, with fresh randomness.

    The noisy sum is divided by the units that a step of `planned` units would have: `planned` is public, the true
    number is not.
    """
    return Parts(
        sampler=PoissonSampler(units, mechanism.sample_rate, privacy.max_images_per_patient),
        engine=within_memory(engine),
        release=noisy_sum,
        noise=make_noise(device, secure=privacy.secure_noise),
        clip_norm=privacy.clip_norm,
        noise_multiplier=mechanism.noise_multiplier,
        expected_units=mechanism.sample_rate * planned,
        physical_batch=privacy.physical_batch,
        views=privacy.augmentations,
    )


def within_memory(engine: Engine) -> Engine:
    """Return an engine that gives a unit larger than the physical batch to `plain`, which can take it in pieces."""

    def bounded(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
        fits = len(sample.images) <= sample.at_once
        return (engine if fits else plain)(network, loss, sample, clip_norm)

    return bounded


def private_gradient(network: nn.Module, loss: Loss, load: Load, parts: Parts) -> tuple[Gradients, float]:
    """Return the noisy mean gradient of one step, and the units' mean loss, which is private and must not leave."""
    chosen, losses = parts.sampler.draw(), [0.0]

    def sums() -> Iterator[Gradients]:
        for group in packed([np.repeat(rows, parts.views) for rows in chosen], parts.physical_batch):
            images, targets = load(np.concatenate(group))
            sample = Sample(images, targets, tuple(len(rows) for rows in group), at_once=parts.physical_batch)
            gradients, total_loss = parts.engine(network, loss, sample, parts.clip_norm)
            losses.append(total_loss)
            yield gradients

    start = [torch.zeros_like(parameter) for parameter in trainable(network)]
    noisy = parts.release(start, sums(), parts.noise, parts.noise_multiplier * parts.clip_norm)
    return [total / parts.expected_units for total in noisy], sum(losses) / max(1, len(chosen))


def packed(units: Sequence[np.ndarray], limit: int) -> Iterator[list[np.ndarray]]:
    """Pack whole units into groups of at most `limit` images (one unit alone may have more)."""
    group: list[np.ndarray] = []
    for rows in units:
        if group and sum(map(len, group)) + len(rows) > limit:
            yield group
            group = []
        group.append(rows)
    if group:
        yield group
