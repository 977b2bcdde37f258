"""How good found boxes are: average precision and FROC, with intervals.

What is found in N cases is one row a box: its case, its score, whether it is a hit. Intervals come from drawing whole
cases again (bootstrap), for boxes of one image go right or wrong together.

References: Lin et al., "Microsoft COCO", ECCV 2014 (average precision, at 101 recalls); Setio et al., "Validation,
comparison, and combination of algorithms for automatic detection of pulmonary nodules in computed tomography images:
The LUNA16 challenge", Medical Image Analysis 2017 (FROC: mean sensitivity at 1/8 to 8 false positives an image); Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATES = np.array([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
"""False positives an image."""
RECALLS = np.linspace(0, 1, 101)
REDRAWN = 200


@dataclass(frozen=True)
class Found:
    """Boxes found, surest first: `cases` (D,) int, `hits` (D,) bool; `true` (N,): each case's number of true boxes."""

    cases: np.ndarray
    hits: np.ndarray
    true: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, hits: np.ndarray, known: np.ndarray, true: np.ndarray) -> Found:
        """Take (N, D) scores, hits, and whether each is a box at all."""
        cases, places = np.nonzero(known)
        order = np.argsort(-scores[cases, places], kind="stable")
        return cls(cases[order], hits[cases, places][order], true)


Measure = Callable[[Found, np.ndarray], float]
"""Of what was found, each case counted so many times (N,); where there is a true box."""


def average_precision(found: Found, weight: np.ndarray) -> float:
    """Return the mean over 101 recalls of the best precision at that recall or a higher one."""
    hits, alarms = _running(found, weight)
    if not len(hits):
        return 0.0
    recall = hits / float(weight @ found.true)
    precision = hits / np.maximum(hits + alarms, 1e-12)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(places < len(best), best[np.minimum(places, len(best) - 1)], 0.0).mean())


def froc(found: Found, weight: np.ndarray) -> float:
    """Return the mean sensitivity at `RATES` false positives an image."""
    hits, alarms = _running(found, weight)
    return froc_of(hits / float(weight @ found.true), alarms / float(weight.sum()))


def froc_of(sensitivity: np.ndarray, alarms: np.ndarray) -> float:
    """Return the mean sensitivity at `RATES`, read between the points of a curve that rises in both."""
    curve = np.concatenate([[0.0], sensitivity])
    return float(np.interp(RATES, np.concatenate([[0.0], alarms]), curve).mean())


def measured(found: Found, measure: Measure, name: str) -> dict[str, float]:
    """Return a measure as `name`, with the ends of its 95 % interval; nothing where there is no true box.

    The same cases give the same interval: what is drawn is fixed.
    """
    cases = len(found.true)
    if not found.true.sum() > 0:
        return {}
    value = measure(found, np.ones(cases))
    random = np.random.default_rng(0)
    draws = random.multinomial(cases, np.full(cases, 1 / cases), REDRAWN).astype(float)
    again = [measure(found, weight) for weight in draws if weight @ found.true > 0]
    if cases < 2 or not again:
        return {name: value}
    low, high = (float(end) for end in np.quantile(again, [0.025, 0.975]))
    return {name: value, f"{name}_low": min(low, value), f"{name}_high": max(high, value)}


def _running(found: Found, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hits and false positives among the surest 1, 2, ... boxes, each case counted by its weight."""
    counted = weight[found.cases]
    return np.cumsum(counted * found.hits), np.cumsum(counted * ~found.hits)
