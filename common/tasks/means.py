"""Means over cases and patients of metrics in [0, 1], with intervals; and what noise leaves of them.

References: Student, "The probable error of a mean", Biometrika 1908; Popoviciu's inequality (a variable in [0, 1] with
mean m has a variance of at most m (1 - m)).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm, t

Z95 = float(norm.ppf(0.975))
LEAST = 4.0
"""A noised count says something when it is more than so many standard deviations of its noise."""


def mean_of(values: np.ndarray, name: str, *, largest: float = math.inf) -> dict[str, float]:
    """Return the mean of `values` (N,), NaN left out, as `name`, with the ends of its 95 % interval (Student's t)."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {}
    mean = float(known.mean())
    if len(known) == 1:
        return {name: mean}
    half = float(t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return {name: mean, f"{name}_low": max(0.0, mean - half), f"{name}_high": min(largest, mean + half)}


def by_patient(values: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each patient's mean of `values` (N, ...), NaN left out, and whether it has one: both (patients, ...).

    The mean is 0 where there is none. `patients` is (N,) int64. A patient's own row depends on no other patient.
    """
    _, rows = np.unique(patients, return_inverse=True)
    shape = (int(rows.max()) + 1 if len(rows) else 0, *values.shape[1:])
    sums, counts, known = np.zeros(shape), np.zeros(shape), np.isfinite(values)
    np.add.at(sums, rows, np.where(known, values, 0.0))
    np.add.at(counts, rows, known)
    return sums / np.maximum(counts, 1), counts > 0


def noised_mean(total: float, count: float, deviation: float, name: str) -> dict[str, float]:
    """Return the mean of bounded values, each in [0, 1], from a noised sum and a noised count, with its interval.

    The interval holds the noise of both and the chance of the draw, of which only the largest possible spread is known.
    Nothing where the count can't be told from 0.
    """
    if count <= LEAST * deviation or count <= 0:
        return {}
    mean = min(1.0, max(0.0, total / count))
    spread = math.sqrt(deviation**2 * (1 + mean**2) / count**2 + mean * (1 - mean) / count)
    return {
        name: mean,
        f"{name}_low": max(0.0, mean - Z95 * spread),
        f"{name}_high": min(1.0, mean + Z95 * spread),
    }
