"""FedDyn: a linear and a quadratic term at each site make the sites' optima agree with the common one.

    h <- h - alpha / m sum over i in P of (y_i - x),   x <- mean over P of y_i - h / alpha

m is the number of all sites, P those that took part; every site counts the same.

References: Acar, Zhao, Matas Navarro, Mattina, Whatmough and Saligrama, "Federated Learning Based on Dynamic
Regularization", ICLR 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from common import strategies
from common.update import Tensors
from server.strategies.attendance import attendance, attended
from server.strategies.mean import MeanStrategy, Note, differences, named, remembered, rounded
from server.strategies.strategy import Advance, Update


class FedDyn(MeanStrategy):
    """The mean, corrected by the sum of all drifts so far."""

    name: ClassVar[str] = "feddyn"
    central: ClassVar[bool] = False

    def control(self, model: Tensors, state: Tensors) -> Tensors:
        """Tell the sites which of their updates h rests on: each keeps the gradient that belongs to it."""
        return attendance(self.job, state)

    def weigh(self, update: Update) -> float:
        """Every site counts the same."""
        return 1.0

    def finish(self, mean: Tensors, notes: Sequence[Note], model: Tensors, state: Tensors) -> Advance:
        """Take the drift off the mean."""
        alpha = cast(strategies.FedDyn, self.parameters).alpha
        share = len(notes) / len(self.job.sites)
        drift = remembered(state, "h", model)
        stepped: Tensors = {}
        for name, delta in differences(mean, model).items():
            drift[name] = drift[name] - alpha * share * delta
            stepped[name] = rounded(mean[name] - drift[name] / alpha, model[name])
        return Advance(mean | stepped, named("h", drift) | attended(self.job, state, notes))
