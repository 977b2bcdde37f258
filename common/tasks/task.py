"""What a task is: targets from labels, a loss for training, scores from outputs, metrics from scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor


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
        """Return metrics by name (those of METRIC_FIELDS "eval.*" without the prefix). Undefined ones are left out."""
