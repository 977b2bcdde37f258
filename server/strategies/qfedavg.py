"""q-FedAvg: sites on which the model does badly count more, the more so the larger q.

    d_k = L (x - y_k),   L = 1 / learning rate,   h_k = q F_k^(q-1) ||d_k||^2 + L F_k^q
    x <- x - sum_k F_k^q d_k / sum_k h_k

F_k is the loss of the received model at site k: on its training split, or with DP, where that can't leave, as estimated
on the validation split from noised counts. With q = 0 it is FedAvg in which every site counts the same.

References: Li, Sanjabi, Beirami and Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from common import strategies
from common.errors import JobError, UpdateError
from common.job import Job
from common.update import Tensors
from server.strategies.mean import MeanStrategy, Note, moved
from server.strategies.strategy import Advance, Update

LEAST_LOSS = 1e-9
"""A site without loss still counts by a trace: 0 to the power of 0 or less has no value."""
LOWEST, HIGHEST = -29, 28
"""F^q is kept between 2 to the power of these, what a mean can be weighted by: a loss beyond counts as the nearest."""


class QFedAvg(MeanStrategy):
    """Fair federated averaging."""

    name: ClassVar[str] = "qfedavg"
    central: ClassVar[bool] = False
    measures: ClassVar[bool] = True

    def __init__(self, job: Job) -> None:
        """Take the parameters. Raises JobError where the losses would not be known in every round."""
        super().__init__(job)
        if job.private and job.aggregation.evaluate_every != 1:
            raise JobError('strategy "qfedavg" with DP needs the validation loss of every round: evaluate_every = 1')

    @property
    def q(self) -> float:
        """How much fairness counts."""
        return cast(strategies.QFedAvg, self.parameters).q

    def weigh(self, update: Update) -> float:
        """F^q. Raises UpdateError for a site that does not say its loss."""
        return float(self.loss(update.metrics, update.site) ** self.q)

    def finish(self, mean: Tensors, notes: Sequence[Note], model: Tensors, state: Tensors) -> Advance:
        """Take the fair step."""
        inverse = 1.0 / self.job.training.learning_rate
        losses = [self.loss(note.metrics, note.site) for note in notes]
        above = inverse * math.fsum(note.weight for note in notes)
        below = math.fsum(
            self.q * loss ** (self.q - 1) * (inverse * note.length) * (inverse * note.length) + inverse * note.weight
            for note, loss in zip(notes, losses, strict=True)
        )
        return Advance(moved(model, mean, above / below))

    def loss(self, metrics: Mapping[str, float], site: str) -> float:
        """Return the received model's loss at a site, F. Raises UpdateError when the answer does not say it."""
        found = metrics.get("train.loss_before", metrics.get("eval.loss"))
        if found is None or not math.isfinite(found) or found < 0:
            raise UpdateError(f"{site}: q-FedAvg needs the received model's loss, and the answer does not say it")
        slope = max(self.q, HIGHEST / 1000)  # for smaller q no loss is too large
        return float(min(max(found, LEAST_LOSS, 2.0 ** (LOWEST / slope)), 2.0 ** (HIGHEST / slope)))
