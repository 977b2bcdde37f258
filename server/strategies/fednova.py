"""FedNova: each site's change is divided by how far its steps could have carried it, and all are scaled back together.

    x <- x + tau_eff sum_i p_i (y_i - x) / a_i,   p_i = n_i / n,   tau_eff = sum_i p_i a_i

a_i = tau_i for tau_i steps of SGD; with momentum rho, [tau - rho (1 - rho^tau) / (1 - rho)] / (1 - rho); with FedProx's
pull mu at rate lr, [1 - (1 - lr mu)^tau] / (lr mu). With equal steps it is FedAvg, to the bit.

References: Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, equation 8 and section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from common.errors import JobError
from common.job import Job
from common.update import Tensors
from server.strategies.mean import MeanStrategy, Note, moved
from server.strategies.strategy import Advance, Update


class FedNova(MeanStrategy):
    """Normalised averaging."""

    name: ClassVar[str] = "fednova"
    central: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        """Take the parameters. Raises JobError for momentum together with a pull: there is no formula for both."""
        super().__init__(job)
        if job.training.momentum > 0 and job.aggregation.proximal_mu > 0:
            raise JobError('strategy "fednova": training.momentum and aggregation.proximal_mu do not go together')

    def weigh(self, update: Update) -> float:
        """p_i / a_i, but for the sum over all."""
        return super().weigh(update) / self.normaliser(update.steps)

    def finish(self, mean: Tensors, notes: Sequence[Note], model: Tensors, state: Tensors) -> Advance:
        """Scale the normalised mean back."""
        shares = [note.weight * self.normaliser(note.steps) for note in notes]
        whole = math.fsum(shares)
        effective = (
            math.fsum(share * self.normaliser(note.steps) for share, note in zip(shares, notes, strict=True)) / whole
        )
        factor = effective * math.fsum(note.weight for note in notes) / whole
        return Advance(moved(model, mean, 1.0 if math.isclose(factor, 1.0, rel_tol=1e-12) else factor))

    def normaliser(self, steps: int) -> float:
        """Return a for so many steps: the L1 norm of how the gradients add up in the site's change."""
        rho = self.job.training.momentum
        shrink = self.job.training.learning_rate * self.job.aggregation.proximal_mu
        if rho > 0:
            return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
        return (1 - (1 - shrink) ** steps) / shrink if shrink > 0 else float(steps)
