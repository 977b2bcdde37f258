"""FedAdam, FedYogi and FedAdagrad: an adaptive optimizer at the coordinator, whose gradient is x - mean.

    d = mean - x,   m <- beta_1 m + (1 - beta_1) d
    v <- v + d^2                                   FedAdagrad
    v <- v - (1 - beta_2) d^2 sign(v - d^2)        FedYogi
    v <- beta_2 v + (1 - beta_2) d^2               FedAdam
    x <- x + eta m / (sqrt(v) + tau)

As in the paper m starts at 0, v at tau^2, and neither is corrected for its start. (Flower's classes start v at 0, and
its FedAdam scales eta by sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1)): the same eta goes farther there in early rounds.)

References: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, "Adaptive Federated Optimization", ICLR
2021, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import numpy as np

from common import strategies
from common.update import Tensors
from server.strategies.mean import MeanStrategy, Note, differences, named, remembered, rounded
from server.strategies.strategy import Advance


class Adaptive(MeanStrategy):
    """What the three have in common: all but the second moment."""

    def second(self, before: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Return the second moment from the one before and the squared difference."""
        raise NotImplementedError

    def finish(self, mean: Tensors, notes: Sequence[Note], model: Tensors, state: Tensors) -> Advance:
        """Take one step of the optimizer."""
        given = cast(strategies.Adaptive, self.parameters)
        first, second = remembered(state, "first", model), remembered(state, "second", model)
        stepped: Tensors = {}
        for name, delta in differences(mean, model).items():
            first[name] = given.beta_1 * first[name] + (1 - given.beta_1) * delta
            before = second[name] if f"second/{name}" in state else second[name] + given.tau**2
            second[name] = self.second(before, delta * delta)
            step = first[name] / (np.sqrt(second[name]) + given.tau)
            stepped[name] = rounded(model[name] + given.eta * step, model[name])
        return Advance(mean | stepped, named("first", first) | named("second", second))


class FedAdagrad(Adaptive):
    """The second moment only grows."""

    name: ClassVar[str] = "fedadagrad"

    def second(self, before: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """v + d^2."""
        return np.asarray(before + squared)


class FedYogi(Adaptive):
    """The second moment moves by no more than d^2."""

    name: ClassVar[str] = "fedyogi"

    def second(self, before: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """v - (1 - beta_2) d^2 sign(v - d^2)."""
        decay = cast(strategies.Adaptive, self.parameters).beta_2
        return np.asarray(before - (1 - decay) * squared * np.sign(before - squared))


class FedAdam(Adaptive):
    """The second moment is a running mean."""

    name: ClassVar[str] = "fedadam"

    def second(self, before: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """beta_2 v + (1 - beta_2) d^2."""
        decay = cast(strategies.Adaptive, self.parameters).beta_2
        return np.asarray(decay * before + (1 - decay) * squared)
