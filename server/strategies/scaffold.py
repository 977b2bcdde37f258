"""SCAFFOLD: control variates take the drift out of local steps.

    site i, K steps at rate lr:  y <- y - lr (g_i(y) + c - c_i);   c_i <- c_i - c + (x - y) / (K lr)
    coordinator:                 x <- x + eta (mean(y) - x);       c <- c + sum over i in S of p_i (c_i's change)

c_i's change is -c + (x - y_i) / (K_i lr), of which everything is known to the coordinator: the model that the site
sends is enough, and nothing beside it goes up. With DP that model is noised, and so is all that follows from it.

p_i is 1 / N as in the paper where every site counts the same, else the site's share of all examples, so that mean and c
belong to one objective. c is then the mean of the c_i for good, whoever takes part: a site's p_i rests on the count by
which it came in first, and that of a site that was not there yet on the mean count.

References: Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, algorithm 1, option II.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np

from common import strategies
from common.job import Job
from common.update import Tensors
from server.strategies.attendance import attendance, attended
from server.strategies.mean import MeanStrategy, TwoMeans, finite, moved, named, remembered, rounded
from server.strategies.strategy import Advance, Update

WEIGHTS = "weights"
"""In the memory: by what each of the job's sites counts in c; 0 for one that did not take part yet."""


class Scaffold(MeanStrategy):
    """Federated averaging of models whose drift was taken out at the sites."""

    name: ClassVar[str] = "scaffold"
    central: ClassVar[bool] = False  # the control variate needs each site's exact change

    def __init__(self, job: Job) -> None:
        """Take the parameters."""
        super().__init__(job)
        self.places = {site: place for place, site in enumerate(job.sites)}

    def control(self, model: Tensors, state: Tensors) -> Tensors:
        """Return c, and which of their updates it rests on: each site keeps the c_i that belongs to it."""
        whole = remembered(state, "c", model)
        return {name: rounded(c, np.zeros(0, np.float32)) for name, c in whole.items()} | attendance(self.job, state)

    def begin(self, model: Tensors, state: Tensors) -> ScaffoldGathering:
        """Return an empty gathering."""
        return ScaffoldGathering(self, model, state)


class ScaffoldGathering(TwoMeans):
    """The mean of the models, and their mean by p_i / K_i: the sum of p_i (x - y_i) / K_i follows from it."""

    def __init__(self, strategy: Scaffold, model: Tensors, state: Tensors) -> None:
        """Start from nothing."""
        super().__init__(strategy, model, state)
        self.places = strategy.places
        self.known = state.get(WEIGHTS, np.zeros(len(strategy.places)))

    def weigh_second(self, update: Update) -> float:
        """p_i / K_i, but for the sum over all sites."""
        known = float(self.known[self.places[update.site]])
        return (known or self.strategy.weigh(update)) / update.steps

    def advance(self, mean: Tensors) -> Advance:
        """Return the next model, and c."""
        rate, weights = self.strategy.job.training.learning_rate, self._weights()
        before, after = _whole(self.known), _whole(weights)
        there = float(sum(weights[self.places[note.site]] for note in self.notes))
        slow, share = self.second.mean(), self.second.weight / (rate * after)
        control = {
            name: c * ((before - there) / after) + share * (self.model[name].astype(np.float64) - slow[name])
            for name, c in remembered(self.state, "c", self.model).items()
        }
        eta = cast(strategies.Scaffold, self.strategy.parameters).eta
        state = named("c", control) | {WEIGHTS: weights}
        state |= attended(self.strategy.job, self.state, self.notes)
        finite(Advance(self.strategy.control(self.model, state)))  # as it is sent: in float32
        return Advance(moved(self.model, mean, eta), state)

    def _weights(self) -> np.ndarray:
        weights = self.known.copy()
        for note in self.notes:
            place = self.places[note.site]
            weights[place] = weights[place] or note.weight
        return weights


def _whole(weights: np.ndarray) -> float:
    """What all sites count by together, those that are not known yet by the mean of the others."""
    known = weights[weights > 0]
    return float(known.mean() * len(weights)) if len(known) else 0.0
