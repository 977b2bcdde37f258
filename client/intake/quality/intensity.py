"""Images that are much darker, brighter, flatter or harsher than others of their scanner; and blank ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from client.intake.quality.problem import Problem, Shot, counted, problem
from client.intake.quality.series import Series

FEWEST = 12
"""Of fewer series of a scanner nobody can say what is usual."""
FAR = 6.0
"""Robust standard deviations from the scanner's median: one in 500 million normal ones."""
LEAST = 0.01
"""The least that counts as a standard deviation, of intensities in [0, 1]."""
_NORMAL = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
BLANK = 0.002


def problems(every: Sequence[Series]) -> Iterator[Problem]:
    """Yield what is amiss with the intensities of series, each of its scanner and modality."""
    blank = [one for one in every if one.records[0].seen.pixels and _deviation(one) < BLANK]
    if blank:
        places = [one.name for one in blank]
        text = f"nothing is to be seen: all pixels have one value in {counted(len(blank), 'series')}"
        yield problem("blank images", text, places, [one.shots()[:1] for one in blank], grave=True)
    groups: dict[tuple[str, str, str], list[Series]] = defaultdict(list)
    for one in every:
        first = one.records[0]
        if first.seen.pixels and _deviation(one) >= BLANK:
            groups[(first.modality, first.acquired.manufacturer, first.acquired.model)].append(one)
    found = [item for group in groups.values() if len(group) >= FEWEST for item in _far(group)]
    if found:
        text = f"intensities far from the scanner's others: {counted(len(found), 'series')}"
        places = [f"{one.name}: {says}" for one, says in found]
        rows = [[Shot(one.records[len(one.records) // 2], f"{says}: {one.name}")] for one, says in found]
        yield problem("outliers in intensity", text, places, rows, grave=False)


def _far(group: Sequence[Series]) -> Iterator[tuple[Series, str]]:
    for name, values in (("mean", [_mean(one) for one in group]), ("spread", [_deviation(one) for one in group])):
        array = np.array(values)
        middle = float(np.median(array))
        spread = max(_NORMAL * float(np.median(np.abs(array - middle))), LEAST)
        for one, value in zip(group, values, strict=True):
            if abs(value - middle) > FAR * spread:
                yield one, f"{name} {value:.2f}, usual {middle:.2f}"


def _mean(one: Series) -> float:
    return float(np.average([record.seen.mean for record in one.records], weights=_frames(one)))


def _deviation(one: Series) -> float:
    """Of all the series' pixels (the same number in each image)."""
    squares = [record.seen.deviation**2 + record.seen.mean**2 for record in one.records]
    return float(np.sqrt(max(np.average(squares, weights=_frames(one)) - _mean(one) ** 2, 0.0)))


def _frames(one: Series) -> list[int]:
    return [record.frames for record in one.records]
