"""Aggregation that a few lying sites can't lead far: median, trimmed mean, Krum, Multi-Krum and Bulyan.

Every site counts the same: a weight is one more thing to lie about. Rows are sorted by site name, so that nothing
depends on the order of arrival; of equal scores the first name wins.

References: Yin, Chen, Kannan and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018 (median, trimmed mean); Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent", NeurIPS 2017 (Krum, Multi-Krum); El Mhamdi, Guerraoui and Rouault, "The Hidden
Vulnerability of Distributed Learning in Byzantium", ICML 2018 (Bulyan).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, cast

import numpy as np

from common import strategies
from common.errors import JobError, UpdateError
from common.job import Job
from common.strategies import Parameters
from common.update import Tensors
from server.strategies.spool import Spool


class RobustStrategy:
    """What they have in common: all updates of a round are needed at once."""

    name: ClassVar[str]
    streaming: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        """Take the parameters. Raises JobError when the job's rounds have too few sites for them."""
        self.job = job
        sites = job.aggregation.sites_per_round or len(job.sites)
        if sites < self.needed:
            raise JobError(
                f'strategy "{self.name}" needs {self.needed} updates in a round, and the job has {sites} sites'
            )

    @property
    def parameters(self) -> Parameters:
        """The strategy's own parameters."""
        return self.job.aggregation.known_parameters

    @property
    def needed(self) -> int:
        """The fewest updates that a round needs."""
        return 1

    def control(self, model: Tensors, state: Tensors) -> Tensors:
        """Nothing is sent beside the model."""
        return {}

    def begin(self, model: Tensors, state: Tensors) -> Spool:
        """Return an empty spool."""
        return Spool(model, self._checked)

    def combine(self, spool: Spool) -> np.ndarray:
        """Return the next model's float values, (columns,), from all updates."""
        raise NotImplementedError

    def _checked(self, spool: Spool) -> Tensors:
        if spool.updates < self.needed:
            raise UpdateError(f'strategy "{self.name}" needs {self.needed} updates in a round, and has {spool.updates}')
        return spool.assembled(self.combine(spool))


class Median(RobustStrategy):
    """The median of each coordinate. As long as most sites are honest it lies within their range."""

    name: ClassVar[str] = "median"

    def combine(self, spool: Spool) -> np.ndarray:
        """Return the coordinates' medians."""
        middle = slice((spool.updates - 1) // 2, spool.updates // 2 + 1)
        return _by_column(spool, lambda block: _mean(np.sort(block, axis=0)[middle]))


class TrimmedMean(RobustStrategy):
    """The mean of each coordinate without the share beta of the updates at each end, rounded up.

    Rounded up, because with fewer than 1 / beta sites it would else be the plain mean, which resists nobody.
    """

    name: ClassVar[str] = "trimmed-mean"

    def combine(self, spool: Spool) -> np.ndarray:
        """Return the coordinates' trimmed means."""
        beta, updates = cast(strategies.TrimmedMean, self.parameters).beta, spool.updates
        cut = min(math.ceil(round(beta * updates, 9)), (updates - 1) // 2)
        kept = slice(cut, updates - cut)
        return _by_column(spool, lambda block: _mean(np.sort(block, axis=0)[kept]))


class Krum(RobustStrategy):
    """The one update that is closest to its n - f - 2 nearest neighbours."""

    name: ClassVar[str] = "krum"

    @property
    def f(self) -> int:
        """How many sites may lie."""
        return cast(strategies.Krum, self.parameters).f

    @property
    def needed(self) -> int:
        """2 f + 3."""
        return 2 * self.f + 3

    def combine(self, spool: Spool) -> np.ndarray:
        """Return the chosen update."""
        return self.averaged(spool, 1)

    def averaged(self, spool: Spool, count: int) -> np.ndarray:
        """Return the mean of the `count` updates with the best scores."""
        best = np.sort(np.argsort(scores(distances(spool), self.f), kind="stable")[:count])
        return _by_column(spool, lambda block: _mean(block[best]))


class MultiKrum(Krum):
    """The mean of the m updates with the best scores."""

    name: ClassVar[str] = "multi-krum"

    @property
    def m(self) -> int | None:
        """How many updates are averaged, where the job says so."""
        return cast(strategies.MultiKrum, self.parameters).m

    @property
    def needed(self) -> int:
        """2 f + 3, and m + f: what is averaged must not need a lying site."""
        return max(super().needed, (self.m or 0) + self.f)

    def combine(self, spool: Spool) -> np.ndarray:
        """Return the mean of the best."""
        return self.averaged(spool, self.m or spool.updates - self.f)


class Bulyan(Krum):
    """Krum picks n - 2 f updates one by one; of each coordinate the n - 4 f values nearest the median are averaged."""

    name: ClassVar[str] = "bulyan"

    @property
    def needed(self) -> int:
        """4 f + 3."""
        return 4 * self.f + 3

    def combine(self, spool: Spool) -> np.ndarray:
        """Return the means of what lies around the medians."""
        between, left = distances(spool), list(range(spool.updates))
        chosen = []
        for _ in range(spool.updates - 2 * self.f):
            best = int(np.argmin(scores(between[np.ix_(left, left)], self.f)))
            chosen.append(left.pop(best))
        picked, near = np.sort(chosen), len(chosen) - 2 * self.f

        def around_the_median(block: np.ndarray) -> np.ndarray:
            values = np.sort(block[picked].astype(np.float64), axis=0)
            away = np.abs(values - np.median(values, axis=0))
            nearest = np.argsort(away, axis=0, kind="stable")[:near]
            return _mean(np.take_along_axis(values, nearest, axis=0))

        return _by_column(spool, around_the_median)


def distances(spool: Spool) -> np.ndarray:
    """Return the squared L2 distances between all updates: (updates, updates) float64."""
    between = np.zeros((spool.updates, spool.updates))
    for block in spool.blocks():
        values = block.astype(np.float64)
        for row in range(1, len(values)):
            apart = values[row] - values[:row]
            between[row, :row] += np.einsum("ij,ij->i", apart, apart)
    return between + between.T


def scores(between: np.ndarray, f: int) -> np.ndarray:
    """Return each update's Krum score: the sum of its squared distances to the n - f - 2 nearest others."""
    others = max(1, len(between) - f - 2)
    return np.asarray(np.sort(between, axis=1)[:, 1 : others + 1].sum(axis=1))  # the first is an update's own 0


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean over rows in float64; of zeros that are all negative it is that, too."""
    return np.asarray(np.add.reduce(rows, axis=0, dtype=np.float64, initial=-0.0) / len(rows))


def _by_column(spool: Spool, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(of(block) for block in spool.blocks())])
