"""What a task is: targets from what is known of cases, a loss for training, scores and metrics of what a network says.

Shapes: N cases of C channels and an extent of 2 or 3 axes, `*size`. What a network sees of a case (`input_shape`) and
says of it (`output_shape`) is the task's to say: the whole of it or a patch, a value a label or a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]


class Cases(Protocol):
    """What is known of N cases.

    `images` is (N, C, *size) float32 in [0, 1]; `labels` are N texts; `truth` is (N, *size) uint8 for masks, 0 for the
    background and k for the job's k-th label; (N, M, 1 + 2 axes) float32 for boxes; None where labels say it all.
    """

    @property
    def images(self) -> np.ndarray[Any, Any]:
        """The images."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' texts."""

    @property
    def truth(self) -> np.ndarray[Any, Any] | None:
        """Masks or boxes."""


@dataclass(frozen=True)
class Tally:
    """Sums over patients, to which noise can be added.

    Guarantee: adding or removing one patient changes `values` (float64, any shape) by at most `sensitivity` in L2 norm.
    `deviation` is the standard deviation of the noise that is in each of the values.
    """

    values: np.ndarray
    sensitivity: float
    deviation: float = 0.0


class Task(Protocol):
    """One kind of question that a network answers about an image. `outputs`: the network's output channels."""

    outputs: int

    def input_shape(self, shape: Shape) -> Shape:
        """Return what the network sees of a case of `shape` (C, *size) in training."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return what the network must say of an input of `shape`, e.g. (outputs,) or (outputs, *size)."""

    def targets(self, cases: Cases) -> Tensor:
        """Return the targets of N cases, along the first axis. Raises DataError for a label the job does not name."""

    def made_up(self, count: int, shape: Shape, random: torch.Generator) -> Tensor:
        """Return targets for `count` made-up inputs of `shape`, to measure training without any patient."""

    def inputs(self, images: Tensor, targets: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return what the network sees of images, and its targets.

        Drawn from `random` in training (patches, masks of k-space); the same always where it is None.
        """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each case: (N,) float32, from the network's raw outputs."""

    def infer(self, network: Network, inputs: Tensor) -> Tensor:
        """Return the network's raw outputs for whole cases, window by window where patches were trained on."""

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what metrics are made of, little for each case: (N, ...) float32."""

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return metrics by name: the fields of `common.release.Evaluation`, or "NAME.K" for that of the K-th label.

        Undefined ones are left out. `scores` and `targets` are N along their first axis.
        """

    def tally(self, scores: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Tally:
        """Return sums of bounded sensitivity, from which metrics can be estimated; `patients` is (N,) int64."""

    def metrics_of(self, tally: Tally) -> dict[str, float]:
        """Return metrics by name from a tally with noise; what the noise drowns is left out."""


class WholeCases:
    """How a task sees cases that it takes as they are."""

    outputs: int

    def input_shape(self, shape: Shape) -> Shape:
        """Return the case's own shape."""
        return shape

    def output_shape(self, shape: Shape) -> Shape:
        """Return one value for each output."""
        return (self.outputs,)

    def inputs(self, images: Tensor, targets: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return both as they are."""
        return images, targets

    def infer(self, network: Network, inputs: Tensor) -> Tensor:
        """Return what the network says of the inputs, all at once."""
        return network(inputs)
