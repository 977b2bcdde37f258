"""FedAvgM: federated averaging with momentum at the coordinator.

    v <- beta v + (mean - x),   x <- x + eta v

References: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019 (arXiv:1909.06335), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from common import strategies
from common.update import Tensors
from server.strategies.mean import MeanStrategy, Note, differences, moved, named, remembered, rounded
from server.strategies.strategy import Advance


class FedAvgM(MeanStrategy):
    """Federated averaging with server momentum. With beta = 0 and eta = 1 it is FedAvg."""

    name: ClassVar[str] = "fedavgm"

    def finish(self, mean: Tensors, notes: Sequence[Note], model: Tensors, state: Tensors) -> Advance:
        """Move along the velocity."""
        eta, beta = (given := cast(strategies.FedAvgM, self.parameters)).eta, given.beta
        before = remembered(state, "velocity", model)
        velocity = {name: beta * before[name] + delta for name, delta in differences(mean, model).items()}
        if beta == 0 or not any(tensor.any() for tensor in before.values()):
            return Advance(moved(model, mean, eta), named("velocity", velocity))
        stepped = {name: rounded(model[name] + eta * speed, model[name]) for name, speed in velocity.items()}
        return Advance(mean | stepped, named("velocity", velocity))
