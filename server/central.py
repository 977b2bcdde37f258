"""Central differential privacy: the coordinator clips each site's update, averages, and adds noise once a round.

Unit: a whole site. Adding or removing all that one site sends changes the sum of the clipped updates by at most the
clip norm in L2 norm (up to float32's rounding), so one round is a Gaussian mechanism. The sum is divided by the number
of sites that the job names, which is public, and not by how many answered. A round that finds no quorum publishes
nothing and costs nothing.

With adaptive clipping the clip norm follows a quantile of the updates' norms, from a noised count of those that were
not clipped. The count and the sum share the round's noise multiplier z: with a deviation of b for the count, the sum
gets z' = (z^-2 - (2 b)^-2)^-1/2 (Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive
Clipping", NeurIPS 2021, theorem 1 and algorithm 1).

Flower's own wrappers (`DifferentialPrivacyServerSideFixedClipping`, `...AdaptiveClipping`) do the same arithmetic, but
they hold every reply of a round in memory, weight updates by examples unless told not to, and draw noise from NumPy's
global generator; the running mean here is exact and holds one update at a time.

References: McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.job import Job
from common.privacy import Spending, epsilon_of, noise_for
from common.update import Tensors
from server.aggregation import RunningMean
from server.strategies.mean import MeanStrategy, differences
from server.strategies.strategy import Advance, Update

LEARNING_RATE = 0.2
"""How fast the clip norm follows, in its logarithm: the paper's value."""
COUNT_SHARE = 20
"""The count's deviation is the number of sites over this, or the noise multiplier if that is larger."""


@dataclass(frozen=True)
class CentralRound:
    """What a round's privacy consisted of. `epsilon` is of all rounds so far, at the job's delta, for a whole site."""

    clip_norm: float
    next_clip_norm: float
    noise_multiplier: float
    epsilon: float
    delta: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields, for the registry."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CentralRound:
        """Return what `to_dict` gave."""
        return cls(**fields)


class ClippedSum:
    """One round's updates, clipped and summed as they arrive: one update in memory beside the sum."""

    def __init__(self, model: Tensors, clip_norm: float) -> None:
        self._model, self.clip_norm = model, clip_norm
        self._sum = RunningMean(model)
        self.unclipped = 0

    @property
    def updates(self) -> int:
        """How many sites' updates are in it."""
        return self._sum.updates

    def add(self, tensors: Tensors, examples: int, where: str) -> None:
        """Add one site's model. `examples` has no influence: every site counts the same.

        Raises UpdateError as `RunningMean.add` does.
        """
        deltas = differences(tensors, self._model)
        length = _length(deltas)
        factor = min(1.0, self.clip_norm / length) if length > 0 else 1.0
        clipped = {
            name: (tensor + factor * deltas[name]).astype(tensor.dtype) if name in deltas else tensor
            for name, tensor in self._model.items()
        }
        self._sum.add(clipped, 1, where)
        self.unclipped += length <= self.clip_norm

    def noisy_mean(self, sites: int, deviation: float, random: np.random.Generator) -> Tensors:
        """Return the model moved by the sum of the clipped updates plus noise of `deviation`, both over `sites`."""
        moved, share = dict(self._model), self._sum.updates / sites
        for name, delta in differences(self._sum.mean(), self._model).items():
            noise = random.normal(0.0, deviation / sites, delta.shape)
            moved[name] = (self._model[name] + share * delta + noise).astype(self._model[name].dtype)
        return moved


class Central:
    """A run's central privacy, from its first round or (with the clip norm it had reached) from a later one."""

    def __init__(self, job: Job, strategy: MeanStrategy, clip_norm: float | None = None) -> None:
        """Calibrate the noise for all rounds of the job. Raises RefusedError when none is enough."""
        self._job, self._strategy, privacy = job, strategy, job.privacy
        self.clip_norm = clip_norm if clip_norm is not None else privacy.clip_norm
        self.noise_multiplier = noise_for(privacy.epsilon, privacy.delta, 1.0, job.aggregation.rounds)
        # Drawn anew by every process: noise that could be recomputed could be taken off again.
        self._random = np.random.default_rng(int.from_bytes(os.urandom(16), "big"))

    def begin(self, model: Tensors, state: Tensors) -> CentralGathering:
        """Return an empty gathering for a round that starts from `model`."""
        return CentralGathering(self, ClippedSum(model, self.clip_norm), model, state)

    def advance(self, mean: Tensors, model: Tensors, state: Tensors) -> Advance:
        """Return what the strategy makes of a mean. It costs nothing: of the sites it sees the noisy mean only."""
        return self._strategy.finish(mean, (), model, state)

    def finish(self, total: ClippedSum, number: int) -> tuple[Tensors, CentralRound]:
        """Return the noisy mean after round `number`, and what it cost; moves the clip norm if it is adaptive."""
        privacy, sites = self._job.privacy, len(self._job.sites)
        noise, following = self.noise_multiplier, total.clip_norm
        if privacy.clipping == "adaptive":
            noise, count_deviation = split_noise(self.noise_multiplier, sites)
            share = (total.unclipped + self._random.normal(0.0, count_deviation)) / sites
            following = total.clip_norm * math.exp(-LEARNING_RATE * (share - privacy.target_quantile))
        mean = total.noisy_mean(sites, noise * total.clip_norm, self._random)
        self.clip_norm = following
        spent = epsilon_of([Spending(self.noise_multiplier, 1.0, number)], privacy.delta)
        return mean, CentralRound(total.clip_norm, following, self.noise_multiplier, spent, privacy.delta)


class CentralGathering:
    """A round under central privacy: what the strategy averages is clipped, and its mean noised."""

    def __init__(self, central: Central, total: ClippedSum, model: Tensors, state: Tensors) -> None:
        """Start from nothing."""
        self._central, self._total, self._model, self._state = central, total, model, state

    @property
    def updates(self) -> int:
        """How many updates are in it."""
        return self._total.updates

    def add(self, update: Update) -> None:
        """Add an update; every site counts the same. Raises UpdateError as `RunningMean.add` does."""
        self._total.add(update.tensors, update.examples, update.site)

    def finish(self, number: int) -> tuple[Advance, CentralRound]:
        """Return what round `number` makes, and what it cost."""
        mean, spent = self._central.finish(self._total, number)
        return self._central.advance(mean, self._model, self._state), spent


def split_noise(noise_multiplier: float, sites: int) -> tuple[float, float]:
    """Return the noise multiplier of the sum and the deviation of the count, which together cost `noise_multiplier`.

    The count is of bits shifted by a half, so that a site moves it by at most a half.
    """
    count_deviation = max(sites / COUNT_SHARE, noise_multiplier)
    return (noise_multiplier**-2 - (2 * count_deviation) ** -2) ** -0.5, count_deviation


def _length(deltas: Tensors) -> float:
    return math.sqrt(sum(float(np.sum(delta * delta)) for delta in deltas.values()))
