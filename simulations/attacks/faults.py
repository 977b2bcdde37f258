"""Faults to plant in DP-SGD, each one that somebody has made: an audit that catches none of them is worth nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from client.privacy.clipping import Gradients, Loss, Sample
from client.privacy.dpsgd import Parts, Sampler, noisy_sum
from client.privacy.noise import Noise

RATE_FACTOR = 4


@dataclass(frozen=True)
class Fault:
    """A fault: its name, what goes wrong, and how it is planted in the parts of a step."""

    name: str
    meaning: str
    plant: Callable[[Parts], Parts]


class NoNoise:
    """Noise that is not there."""

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return zeros of the tensor's shape."""
        return torch.zeros_like(tensor)


class SeededNoise:
    """Gaussian noise from a fixed seed: everybody can draw it again."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return noise of the tensor's shape with standard deviation `deviation`."""
        drawn = self._random.standard_normal(tuple(tensor.shape)) * deviation
        return torch.from_numpy(drawn).to(device=tensor.device, dtype=tensor.dtype)


def without_noise(parts: Parts) -> Parts:
    """Leave the noise out."""
    return replace(parts, noise=NoNoise())


def clipped_by_image(parts: Parts) -> Parts:
    """Clip each image's gradient instead of each patient's, then sum: n images count n clip norms."""

    def engine(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
        return parts.engine(network, loss, replace(sample, sizes=(1,) * len(sample.images)), clip_norm)

    return replace(parts, engine=engine)


def noise_by_part(parts: Parts) -> Parts:
    """Give each of a step's k physical batches noise of 1/k the deviation: the sum's is 1/sqrt(k) of the claim."""

    def release(start: Gradients, sums: Iterable[Gradients], noise: Noise, deviation: float) -> Gradients:
        # Copied, for an engine may use the same tensors again; and an empty step has one part, of zeros.
        batches = [[tensor.detach().clone() for tensor in gradients] for gradients in sums] or [start]
        total = [torch.zeros_like(tensor) for tensor in start]
        for gradients in batches:
            for into, tensor in zip(total, gradients, strict=True):
                into.add_(tensor + noise.like(tensor, deviation / len(batches)))
        return total

    return replace(parts, release=release)


def same_noise_each_step(parts: Parts) -> Parts:
    """Seed the noise anew in each step: what two steps have in common is noise, and their difference has none."""

    def release(start: Gradients, sums: Iterable[Gradients], noise: Noise, deviation: float) -> Gradients:
        return noisy_sum(start, sums, SeededNoise(0), deviation)

    return replace(parts, release=release)


def same_noise_each_round(parts: Parts) -> Parts:
    """Seed the noise anew in each round, as a job's public seed would: the rounds' differences have no noise."""
    return replace(parts, noise=SeededNoise(0))


def sampled_too_often(parts: Parts) -> Parts:
    """Draw units at four times the rate that the noise was calibrated for."""
    return replace(parts, sampler=_Often(parts.sampler))


class _Often:
    """Draws as often as `RATE_FACTOR` samplers do: a unit that two of them draw is in once."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def draw(self) -> Sequence[np.ndarray]:
        """Return each sampled unit's image rows."""
        drawn = [rows for _ in range(RATE_FACTOR) for rows in self._sampler.draw()]
        return list({int(rows[0]): rows for rows in drawn}.values())


FAULTS = (
    Fault("noise off", "no noise is added", without_noise),
    Fault("clipped by image", "each image is clipped, not each patient", clipped_by_image),
    Fault("noise by batch part", "each of k physical batches gets noise of 1/k the deviation", noise_by_part),
    Fault("seed reused each step", "every step adds the same noise", same_noise_each_step),
    Fault("seed reused each round", "every round adds the noise of the first", same_noise_each_round),
    Fault("sampled too often", f"units are drawn at {RATE_FACTOR} times the accounted rate", sampled_too_often),
)
