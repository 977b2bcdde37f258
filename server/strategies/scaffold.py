"""SCAFFOLD: control variates take the drift out of local steps.

    site i, K steps at rate lr:  y <- y - lr (g_i(y) + c - c_i);   c_i <- c_i - c + (x - y) / (K lr)
    coordinator:                 x <- x + eta (mean(y) - x);       c <- c + 1/N sum over i in S of (c_i's change)

c_i's change is -c + (x - y_i) / (K_i lr), of which everything is known to the coordinator: the model that the site
sends is enough, and nothing beside it goes up. With DP that model is noised, and so is all that follows from it.

References: Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, algorithm 1, option II.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np

from common import strategies
from common.update import Tensors
from server.aggregation import RunningMean
from server.strategies.mean import MeanGathering, MeanStrategy, moved, named, remembered
from server.strategies.strategy import Advance, Update


class Scaffold(MeanStrategy):
    """Federated averaging of models whose drift was taken out at the sites."""

    name: ClassVar[str] = "scaffold"
    central: ClassVar[bool] = False  # the control variate needs each site's exact change

    def control(self, model: Tensors, state: Tensors) -> Tensors:
        """Return c."""
        return {name: tensor.astype(np.float32) for name, tensor in remembered(state, "c", model).items()}

    def begin(self, model: Tensors, state: Tensors) -> ScaffoldGathering:
        """Return an empty gathering."""
        return ScaffoldGathering(self, model, state)


class ScaffoldGathering(MeanGathering):
    """The mean of the models, and their mean by 1/K: the sum of (x - y_i) / K_i follows from it."""

    def __init__(self, strategy: MeanStrategy, model: Tensors, state: Tensors) -> None:
        """Start from nothing."""
        super().__init__(strategy, model, state)
        self.by_step = RunningMean(model)

    def add(self, update: Update) -> None:
        """Add an update to both means."""
        super().add(update)
        self.by_step.add(update.tensors, 1.0 / update.steps, update.site)

    def merge(self, other: MeanGathering) -> None:
        """Add all of another gathering's updates."""
        super().merge(other)
        self.by_step.merge(cast(ScaffoldGathering, other).by_step)

    def finish(self) -> Advance:
        """Return the next model, and c."""
        job, model = self.strategy.job, self.model
        sites, rate = len(job.sites), job.training.learning_rate
        mean = self.mean.mean()
        slow, weight = self.by_step.mean(), self.by_step.weight
        control = {
            name: c
            - (self.updates / sites) * c
            + weight * (model[name].astype(np.float64) - slow[name]) / (rate * sites)
            for name, c in remembered(self.state, "c", model).items()
        }
        eta = cast(strategies.Scaffold, self.strategy.parameters).eta
        return Advance(moved(model, mean, eta), named("c", control))
