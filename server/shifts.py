"""How far a site's patients are from the others', beyond what chance and noise would make of the same patients.

The distance is Jensen and Shannon's (the root of the divergence to base 2, from 0 to 1; Endres and Schindelin, IEEE
Transactions on Information Theory 2003) between the shares of a site and of all others together. Few patients and noise
alone make a distance; so it is set against the distances that redrawn sites of the same size, with the same noise, have
when all of them are drawn from one common distribution. A patient counts as one draw, which overstates chance where
a patient's weight is spread over many bins: a shift is then told later, not sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common import bins
from common.errors import RunError
from server.records import RunDetail

REDRAWN = 2000
RARE = 0.999
"""A shift is told when its distance is over this quantile of what chance and noise make: one false alarm in 1,000."""
LEAST = 0.1
"""... and over this distance: a smaller one hardly matters to a training."""
INTERVAL = 0.95
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SiteStatistics:
    """What a site told. `deviation` is that of the noise on each weight, 0 where the counts are exact."""

    site: str
    deviation: float
    epsilon: float | None
    histograms: Mapping[str, Array]

    @property
    def patients(self) -> float:
        """How many patients there are: the mean of all histograms' sums, those of fewer bins counting more."""
        parts = [(float(weights.sum()), 1 / len(weights)) for weights in self.histograms.values()]
        return max(0.0, float(np.average([total for total, _ in parts], weights=[weight for _, weight in parts])))

    @property
    def patients_deviation(self) -> float:
        """The standard deviation of the noise in that number."""
        return self.deviation / float(np.sqrt(sum(1 / len(weights) for weights in self.histograms.values())))


@dataclass(frozen=True)
class Shift:
    """How far a site is from the others in what `histogram` counts.

    `low` and `high` are the ends of the distance's 95 % interval, `floor` what chance and noise alone hardly ever pass;
    `told` says whether it is a shift, `says` in which bin it is largest.
    """

    histogram: str
    kind: str
    site: str
    distance: float
    low: float
    high: float
    floor: float
    told: bool
    says: str


def statistics_in(detail: RunDetail) -> list[SiteStatistics]:
    """Return what the sites of a run told. Raises RunError when it was none for statistics, or none has come yet."""
    asked = [record for record in detail.rounds if record.kind == "statistics"]
    found = [
        SiteStatistics(
            row.site,
            float(row.metrics.get("stat.deviation", 0.0)),
            row.metrics.get("privacy.epsilon"),
            {name.removeprefix("stat."): np.array(weights) for name, weights in row.statistics.items()},
        )
        for record in asked[-1:]
        for row in record.sites
        if row.statistics
    ]
    if not found:
        why = f"it is {detail.summary.status}" if asked or not detail.rounds else "it was a training"
        raise RunError(f"run {detail.summary.name} has no statistics ({why}): wardround statistics JOB asks for them")
    return found


def shifts(sites: Sequence[SiteStatistics], labels: Sequence[str]) -> list[Shift]:
    """Return how far each site is from the others, in each histogram that all have; the told ones first."""
    if len(sites) < 2:
        return []
    random = np.random.default_rng(0)
    found = []
    for name in (bins.LABEL, *bins.HISTOGRAMS):
        having = [site for site in sites if name in site.histograms]
        found += [_shift(site, having, name, labels, random) for site in having if len(having) > 1]
    return sorted(found, key=lambda shift: (not shift.told, -shift.distance))


def distance(one: Array, other: Array) -> Array:
    """Return the Jensen-Shannon distance of weights (..., bins); negative ones, which noise makes, count as 0."""
    p, q = _shares(one), _shares(other)
    middle = (p + q) / 2
    divergence = (_relative(p, middle) + _relative(q, middle)) / 2
    return np.asarray(np.sqrt(np.clip(divergence, 0, 1)))


def mean_and_deviation(weights: Array, values: Sequence[float]) -> tuple[float, float] | None:
    """Return the mean and standard deviation of what was counted, from the bins' middles; None where there is none."""
    known = np.clip(weights[: len(values)], 0, None)
    if known.sum() <= 0:
        return None
    mean = float(np.average(values, weights=known))
    return mean, float(np.sqrt(np.average((np.array(values) - mean) ** 2, weights=known)))


def _shift(
    site: SiteStatistics,
    having: Sequence[SiteStatistics],
    name: str,
    labels: Sequence[str],
    random: np.random.Generator,
) -> Shift:
    others = [one for one in having if one is not site]
    mine, theirs = site.histograms[name], np.sum([one.histograms[name] for one in others], axis=0)
    sizes = (round(site.patients), round(sum(one.patients for one in others)))
    noises = (site.deviation, float(np.sqrt(sum(one.deviation**2 for one in others))))
    common = _shares(mine + theirs)
    alike = distance(*(_redrawn(common, size, noise, random) for size, noise in zip(sizes, noises, strict=True)))
    again = distance(
        *(_redrawn(_shares(own), size, noise, random)
          for own, size, noise in zip((mine, theirs), sizes, noises, strict=True))
    )  # fmt: skip
    found, floor = float(distance(mine, theirs)), float(np.quantile(alike, RARE))
    half = float(np.quantile(np.abs(again - again.mean()), INTERVAL))
    counted = bins.histogram(name, labels)
    at = int(np.argmax(np.abs(_shares(mine) - _shares(theirs))))
    says = f"{_shares(mine)[at]:.0%} in “{counted.bins[at]}”, the others {_shares(theirs)[at]:.0%}"
    told = found > max(floor, LEAST)
    low, high = max(0.0, found - half), min(1.0, found + half)
    return Shift(name, counted.kind, site.site, found, low, high, floor, told, says)


def _redrawn(shares: Array, size: int, noise: float, random: np.random.Generator) -> Array:
    drawn = random.multinomial(size, shares, REDRAWN)
    return np.asarray(drawn + random.normal(0, noise, drawn.shape)) if noise else drawn.astype(np.float64)


def _shares(weights: Array) -> Array:
    """The weights over their sum; all alike where nothing is left of them."""
    kept = np.clip(weights, 0, None)
    total = kept.sum(axis=-1, keepdims=True)
    alike = np.full_like(kept, 1 / kept.shape[-1])
    return np.asarray(np.divide(kept, total, out=alike, where=total > 0))


def _relative(p: Array, q: Array) -> Array:
    """The Kullback-Leibler divergence to base 2; q is positive wherever p is."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log2(ratio)).sum(axis=-1))
