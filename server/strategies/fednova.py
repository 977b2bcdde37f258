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
from typing import ClassVar, cast

from common.errors import JobError
from common.job import Job
from common.update import Tensors
from server.strategies.mean import MeanStrategy, Note, TwoMeans, moved
from server.strategies.strategy import Advance, Update


class FedNova(MeanStrategy):
    """Normalised averaging."""

    name: ClassVar[str] = "fednova"
    central: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        """Take the parameters. Raises JobError where the paper has no formula for how the job trains."""
        super().__init__(job)
        training, pull = job.training, job.training.learning_rate * job.aggregation.proximal_mu
        if training.momentum > 0 and pull > 0:
            raise JobError('strategy "fednova": training.momentum and aggregation.proximal_mu do not go together')
        if pull >= 2:
            raise JobError(
                f'strategy "fednova": learning_rate x proximal_mu is {pull:g}, and from 2 on steps lead ever farther '
                "away: make one of them smaller"
            )
        if training.averaging > 0:
            raise JobError('strategy "fednova" normalises the last weights of a round: leave training.averaging at 0')

    def begin(self, model: Tensors, state: Tensors) -> NovaGathering:
        """Return an empty gathering."""
        return NovaGathering(self, model, state)

    def normaliser(self, steps: int) -> float:
        """Return a for so many steps: the L1 norm of how the gradients add up in the site's change."""
        rho = self.job.training.momentum
        pull = self.job.training.learning_rate * self.job.aggregation.proximal_mu
        if rho > 0:
            return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
        if 0 < pull < 1:
            return -math.expm1(steps * math.log1p(-pull)) / pull  # as below, and right for a small pull, too
        return (1 - (1 - pull) ** steps) / pull if pull > 0 else float(steps)


class NovaGathering(TwoMeans):
    """The mean by p_i, for rounds in which all took as many steps, and beside it the mean by p_i / a_i."""

    def weigh_second(self, update: Update) -> float:
        """p_i / a_i, but for the sum over all."""
        strategy = cast(FedNova, self.strategy)
        return strategy.weigh(update) / strategy.normaliser(update.steps)

    def advance(self, mean: Tensors) -> Advance:
        """Scale the normalised mean back."""
        if len({note.steps for note in self.notes}) == 1:
            return Advance(mean)
        return Advance(moved(self.model, self.second.mean(), self._factor(self.notes)))

    def _factor(self, notes: Sequence[Note]) -> float:
        """tau_eff sum_i p_i / a_i: the second mean is by shares of that sum."""
        lengths = [cast(FedNova, self.strategy).normaliser(note.steps) for note in notes]
        whole = math.fsum(note.weight for note in notes)
        effective = math.fsum(note.weight * length for note, length in zip(notes, lengths, strict=True)) / whole
        return effective * math.fsum(note.weight / length for note, length in zip(notes, lengths, strict=True)) / whole
