"""Compares a scenario's arms over seeds: mean, spread, and paired tests against the first arm.

Pairs are runs of the same seed, so they share hospitals, held-out patients and initial model. p is of the paired t test
and of Wilcoxon's signed-rank test, each adjusted over all comparisons by Holm's method (Holm, Scandinavian Journal of
Statistics 1979). With n seeds Wilcoxon's p can't fall below 2 / 2^n: with under six it can't reach 0.05.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from simulations.arms import point
from simulations.results import Result

FEWEST_SEEDS = 6
"""With fewer, Wilcoxon's test can't reach 0.05 two-sided."""


@dataclass(frozen=True)
class Line:
    """An arm at one point of the grid, over its seeds.

    `difference` is that of means to the first arm over the seeds that both have; `t` and `wilcoxon` are adjusted p.
    """

    arm: str
    kind: str
    varied: Mapping[str, Any]
    values: Mapping[int, float]
    failed: int
    others: Mapping[str, float]
    epsilon: float | None
    megabytes: float
    seconds: float
    difference: float | None = None
    t: float | None = None
    wilcoxon: float | None = None

    @property
    def title(self) -> str:
        """The arm and the point, for people."""
        return ", ".join(part for part in (self.arm, point(self.varied)) if part)

    @property
    def mean(self) -> float | None:
        """The mean over seeds."""
        return float(np.mean(list(self.values.values()))) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds (n - 1)."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None


def compare(results: Sequence[Result], scope: str, metric: str, first: str) -> list[Line]:
    """Return a line for each arm at each point, in their order, with tests against the arm `first` at that point."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps([result.cell.arm, dict(result.cell.varied)]), []).append(result)
    lines = [_line(found, scope, metric) for found in groups.values()]
    tested = [_tested(line, _reference(line, lines, first)) for line in lines]
    adjusted = [holm([line.t for line in tested]), holm([line.wilcoxon for line in tested])]
    return [
        Line(**{**line.__dict__, "t": t, "wilcoxon": wilcoxon})
        for line, t, wilcoxon in zip(tested, *adjusted, strict=True)
    ]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted for their number; None stays None."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted


def caution(lines: Sequence[Line]) -> str:
    """Return what is to be said of the tests with so many seeds; nothing where they mean what they say."""
    seeds = min((len(line.values) for line in lines if line.values), default=0)
    if seeds < 2:
        return "One seed says nothing about spread: no test can be made. Give the scenario more seeds."
    if seeds < FEWEST_SEEDS:
        return (
            f"{seeds} seeds are too few for tests to mean much: Wilcoxon's p can't fall below {2 / 2**seeds:g}, and "
            f"the t test rests on {seeds - 1} degree{'s' if seeds > 2 else ''} of freedom. Read the spread; use "
            f"{FEWEST_SEEDS} seeds or more to test."
        )
    return ""


def _line(found: Sequence[Result], scope: str, metric: str) -> Line:
    first = found[0].cell
    done = [result for result in found if result.completed]
    values = {result.cell.seed: value for result in done if (value := result.final(scope, metric)) is not None}
    names = dict.fromkeys(
        (row.scope, row.metric)
        for result in done
        for row in result.outcome.rows
        if row.final and row.scope != "site" and not row.metric.endswith(("_low", "_high"))
    )
    others = {f"{place}.{name}": _mean([result.final(place, name) for result in done]) for place, name in names}
    return Line(
        first.arm,
        first.kind,
        first.varied,
        values,
        len(found) - len(values),
        {name: value for name, value in others.items() if value is not None},
        max((result.outcome.epsilon for result in done if result.outcome.epsilon is not None), default=None),
        (_mean([float(result.bytes) for result in done]) or 0.0) / 1e6,
        _mean([result.outcome.seconds for result in done]) or 0.0,
    )


def _reference(line: Line, lines: Sequence[Line], first: str) -> Line | None:
    """The first arm at the same point, as far as its own grid says; None for itself, and where it is not done yet."""
    if line.arm == first:
        return None
    there = [other for other in lines if other.arm == first]
    same = [other for other in there if all(line.varied.get(key) == value for key, value in other.varied.items())]
    return same[0] if same else None


def _tested(line: Line, reference: Line | None) -> Line:
    if reference is None:
        return line
    seeds = sorted(set(line.values) & set(reference.values))
    if not seeds:
        return line
    differences = np.array([line.values[seed] - reference.values[seed] for seed in seeds])
    t = wilcoxon = None
    if len(seeds) > 1:
        t = 1.0 if not differences.any() else _p(stats.ttest_1samp(differences, 0.0).pvalue)
        wilcoxon = 1.0 if not differences.any() else _p(stats.wilcoxon(differences).pvalue)
    return Line(**{**line.__dict__, "difference": float(differences.mean()), "t": t, "wilcoxon": wilcoxon})


def _p(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None
