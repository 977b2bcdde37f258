"""How far a classifier's scores can be taken at their word, and what it finds where few false alarms are allowed.

References: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950; Naeini,
Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015 (expected calibration
error, over bins of equal width).
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_curve

BINS = 10


def brier(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the mean squared distance of scores (N,) in [0, 1] from what is true (N,) bool: 0 is perfect."""
    return float(np.mean((score - truth) ** 2))


def calibration_error(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the mean distance, over cases, of a bin's share of positives from its mean score: 0 is perfect."""
    bins = np.clip((score * BINS).astype(int), 0, BINS - 1)
    apart = np.zeros(BINS)
    np.add.at(apart, bins, score - truth)
    return float(np.abs(apart).sum() / len(score))


def sensitivity_at(truth: np.ndarray, score: np.ndarray, specificity: float) -> float | None:
    """Return the largest sensitivity of any threshold whose specificity is at least that; None with one class only."""
    if truth.all() or not truth.any():
        return None
    false_alarms, found, _ = roc_curve(truth, score)
    return float(found[false_alarms <= 1 - specificity + 1e-12].max())
