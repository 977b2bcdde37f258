"""Canaries: made-up units among real ones, in the training or not by the toss of a coin.

Gradient canaries are the worst that a unit can be: each has a gradient along a direction that nobody else's has, longer
than any clip norm. The direction is a weight of its own, in a linear layer beside the network, so that every engine
makes these gradients as it makes any other; what comes out along it is what training did to this unit, and no more.

Image canaries are what an outsider could slip in: pictures of the real ones turned upside down, with a wrong label.

A canary whose coin says no keeps its place as a blank unit, whose gradient is zero, so that the number of units (and
with it the sampling rate) tells nothing about the coins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from client.dataset import CaseSet
from common.errors import UsageError
from common.job import Job
from common.tasks.task import Cases, Shape, Tally, Task, WholeCases

ORDINARY, BLANK, FIRST = 4.0, 8.0, 16.0
"""Intensities that no image has (theirs are in [0, 1]): below the first ordinary; a blank; canary i is FIRST + i."""
LENGTH = 10.0
"""A gradient canary's norm before clipping, in clip norms."""


@dataclass(frozen=True)
class Canaries:
    """The coins: `gradient` (G,) and `image` (I,) bool, whether each canary is in the training; images of each unit."""

    gradient: np.ndarray
    image: np.ndarray
    images_a_unit: int

    def __len__(self) -> int:
        return len(self.gradient) + len(self.image)

    @classmethod
    def toss(cls, gradient: int, image: int, images_a_unit: int, random: np.random.Generator) -> Canaries:
        """Toss a coin for each."""
        return cls(random.random(gradient) < 0.5, random.random(image) < 0.5, images_a_unit)


class ImagesWithCanaries:
    """The real images, and after them those of the canaries, which are made when they are asked for.

    Stands for an array of shape (N, C, *size) wherever rows of it are read: nothing of the real one is copied.
    """

    def __init__(self, images: np.ndarray, canaries: Canaries, *, hidden: bool = True) -> None:
        self._images, self._canaries, self._hidden = images, canaries, hidden
        self.shape = (len(images) + len(canaries) * canaries.images_a_unit, *images.shape[1:])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the images of `rows`, a slice or an array of row numbers."""
        wanted = np.arange(self.shape[0])[rows]
        return np.stack([self._row(int(row)) for row in wanted]) if len(wanted) else np.empty((0, *self.shape[1:]))

    def _row(self, row: int) -> np.ndarray:
        beyond = row - len(self._images)
        if beyond < 0:
            return np.asarray(self._images[row])
        unit, which = divmod(beyond, self._canaries.images_a_unit)
        gradient = len(self._canaries.gradient)
        if unit < gradient:
            return self._filled(FIRST + unit if self._canaries.gradient[unit] else BLANK)
        if self._hidden and not self._canaries.image[unit - gradient]:
            return self._filled(BLANK)
        source = (unit - gradient) * self._canaries.images_a_unit + which
        return np.asarray(self._images[source % len(self._images)])[:, ::-1]

    def _filled(self, value: float) -> np.ndarray:
        return np.full(self.shape[1:], value, dtype=np.float32)


def with_canaries(cases: CaseSet, canaries: Canaries, job: Job, *, hidden: bool = True) -> CaseSet:
    """Return `cases` with the canaries after them; unless `hidden`, image canaries that are out are shown too."""
    labels = [job.task.labels[0]] * (len(canaries.gradient) * canaries.images_a_unit)
    for row in range(len(canaries.image) * canaries.images_a_unit):
        labels.append(_wrong(cases.labels[row % len(cases.labels)], job.task.labels))
    units = np.repeat(np.arange(len(canaries)), canaries.images_a_unit) + cases.patient_count
    images = cast(np.ndarray, ImagesWithCanaries(cases.images, canaries, hidden=hidden))
    return CaseSet(images, (*cases.labels, *labels), np.concatenate([cases.patients, units]))


def _wrong(label: str, labels: Sequence[str]) -> str:
    return next((other for other in labels if other != label), "")


class Tapped(nn.Module):
    """The job's network with a weight for each gradient canary beside it.

    Its outputs are the network's, then the canary's own weight, then the mark that says what the image is.
    """

    def __init__(self, network: nn.Module, canaries: int) -> None:
        super().__init__()
        self.network = network
        self.tap = nn.Linear(canaries, 1, bias=False)
        nn.init.zeros_(self.tap.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K + 2) for `images` (N, C, *size) of a network with K outputs."""
        marks = images.flatten(1)[:, 0]
        ordinary = (marks < ORDINARY).view(-1, *(1,) * (images.dim() - 1))
        outputs = self.network(torch.where(ordinary, images, torch.zeros_like(images)))
        numbers = torch.arange(self.tap.in_features, device=images.device, dtype=images.dtype)
        tapped = self.tap((marks[:, None] - FIRST == numbers).to(images.dtype))
        return torch.cat([outputs, tapped.to(outputs.dtype), marks[:, None].to(outputs.dtype)], dim=1)


class TappedTask(WholeCases):
    """A task whose loss is, for a gradient canary, its own weight times `length`, and for a blank nothing."""

    def __init__(self, task: Task, length: float) -> None:
        self._task, self._length = task, length
        self.outputs = task.outputs

    def targets(self, cases: Cases) -> Tensor:
        """Return the targets of N cases."""
        return self._task.targets(cases)

    def made_up(self, count: int, shape: Shape, random: torch.Generator) -> Tensor:
        """Return targets of made-up cases."""
        return self._task.made_up(count, shape, random)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each image's loss: (N,)."""
        usual = self._task.loss(outputs[:, :-2], targets)
        tapped, marks = self._length * outputs[:, -2].to(usual.dtype), outputs[:, -1]
        return torch.where(marks < ORDINARY, usual, torch.where(marks >= FIRST, tapped, torch.zeros_like(tapped)))

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the network's scores: (N, K)."""
        return self._task.scores(outputs[:, :-2], targets)

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return the metrics of the network's scores."""
        return self._task.metrics(scores, targets)

    def tally(self, scores: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Tally:
        """Return the sums from which the metrics are estimated."""
        return self._task.tally(scores, targets, patients)

    def metrics_of(self, tally: Tally) -> dict[str, float]:
        """Return the metrics that a tally gives."""
        return self._task.metrics_of(tally)


def tapped(network: nn.Module, task: Task, job: Job, canaries: Canaries) -> tuple[Tapped, TappedTask]:
    """Return network and task made ready for the canaries. Raises UsageError for a task without labels of images."""
    if job.task.kind != "classification":
        raise UsageError(
            f'the audit plants images with a label, and a task "{job.task.kind}" has none: use another job'
        )
    return Tapped(network, len(canaries.gradient)), TappedTask(task, LENGTH * job.privacy.clip_norm)
