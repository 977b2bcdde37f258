"""What a task is: targets from labels, a loss for training, scores from outputs, metrics from scores or tallies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


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
    """One kind of question that a network answers about an image.

    Shapes: N images, K labels. `outputs` is the number of the network's output channels.
    """

    outputs: int

    def target(self, labels: Sequence[str]) -> Tensor:
        """Return the targets of N images from their label texts. Raises DataError for a label the job does not name."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image: (N,) float32, from the network's raw outputs (N, `outputs`)."""

    def scores(self, outputs: Tensor) -> Tensor:
        """Return scores in [0, 1]: (N, K) float32, from the network's raw outputs."""

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return metrics by name (the fields of `common.release.Evaluation`). Undefined ones are left out."""

    def tally(self, scores: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Tally:
        """Return sums of bounded sensitivity, from which metrics can be estimated; `patients` is (N,) int64."""

    def metrics_of(self, tally: Tally) -> dict[str, float]:
        """Return metrics by name from a tally with noise; what the noise drowns is left out."""
