"""Poisson sampling of units. The rate that is drawn with is the rate that is accounted: `sampling_rate`.

References: Abadi et al., CCS 2016 (the sampled Gaussian mechanism); Chua et al., "How Private are DP-SGD
Implementations?", ICML 2024 (why shuffled batches may not be accounted as Poisson ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.privacy.randomness import SecureStream


@dataclass(frozen=True)
class Units:
    """The images of each unit, as row indices into the case set. A unit is a patient or a single image."""

    images: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.images)


def units_of(patients: np.ndarray, unit: str) -> Units:
    """Group images by unit: `patients` (N,) holds each image's patient; `unit` is "patient" or "image"."""
    if unit == "image":
        return Units(tuple(np.array([row]) for row in range(len(patients))))
    order = np.argsort(patients, kind="stable")
    _, starts = np.unique(patients[order], return_index=True)
    return Units(tuple(np.split(order, starts[1:])))


class PoissonSampler:
    """Draws a sample of units for each step: each unit is in with probability `rate`, independently of all else.

    The numbers are cryptographic: who could predict the sample could undo its amplification. A sample may be empty;
    the step is taken (and accounted) all the same.
    """

    def __init__(self, units: Units, rate: float, max_images: int) -> None:
        self._units, self.rate, self._max_images = units, rate, max_images
        self._random = SecureStream()

    def draw(self) -> Sequence[np.ndarray]:
        """Return the sampled units' image rows; of a unit with more than the stated bound, a random choice of them."""
        chosen = np.flatnonzero(self._random.uniform(len(self._units)) < self.rate)
        return [self._bounded(self._units.images[unit]) for unit in chosen]

    def _bounded(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) <= self._max_images:
            return rows
        return np.sort(rows[np.argsort(self._random.uniform(len(rows)))[: self._max_images]])
