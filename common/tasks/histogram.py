"""Classification's metrics from noised histograms of scores: what may leave where exact metrics may not.

A patient spreads one unit of weight over the bins, the same to each of its images, so that adding or removing a
patient moves a histogram by at most 1 in L1 and in L2 norm. Everything computed from noised bins is post-processing: it
costs no further privacy (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014, proposition 2.1).

The bins' edges are public constants, finest near 0 and 1, where the scores of a good model lie; one is 0.5, at which a
positive is called.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

EDGES = np.array([0.01, 0.03, 0.08, 0.18, 0.34, 0.5, 0.66, 0.82, 0.92, 0.97, 0.99])
BINS = len(EDGES) + 1
MIDDLES = (np.concatenate([[0.0], EDGES]) + np.concatenate([EDGES, [1.0]])) / 2
CALLED = int(np.searchsorted(EDGES, 0.5, side="left")) + 1
"""The first bin whose scores are all above 0.5."""
REDRAWN = 400
Estimate = tuple[float, float, float]
"""A value with the ends of its 95 % interval."""


def histogram(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weight in each bin for negatives and positives: (2, BINS) float64. All arguments are (N,)."""
    found = np.zeros((2, BINS))
    np.add.at(found, (truth.astype(int), np.searchsorted(EDGES, score, side="left")), weight)
    return found


def patient_weights(patients: np.ndarray) -> np.ndarray:
    """Return each image's weight, one over the images of its patient: (N,) float64, a patient's images add up to 1."""
    _, patient, images = np.unique(patients, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / images[patient], dtype=np.float64)


def auc(bins: np.ndarray) -> float | None:
    """Return the area under the ROC curve of histograms (..., 2, BINS); scores in one bin count as ties."""
    negatives, positives = bins[..., 0, :], bins[..., 1, :]
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    return _share((positives * below).sum(axis=-1), positives.sum(axis=-1) * negatives.sum(axis=-1))


def sensitivity(bins: np.ndarray) -> float | None:
    """Return the share of the positives' weight above 0.5."""
    return _share(bins[..., 1, CALLED:].sum(axis=-1), bins[..., 1, :].sum(axis=-1))


def specificity(bins: np.ndarray) -> float | None:
    """Return the share of the negatives' weight up to 0.5."""
    return _share(bins[..., 0, :CALLED].sum(axis=-1), bins[..., 0, :].sum(axis=-1))


def accuracy(bins: np.ndarray) -> float | None:
    """Return the share of the weight on the right side of 0.5."""
    right = bins[..., 1, CALLED:].sum(axis=-1) + bins[..., 0, :CALLED].sum(axis=-1)
    return _share(right, bins.sum(axis=(-1, -2)))


def cross_entropy(bins: np.ndarray) -> float | None:
    """Return the mean of -log p of what is true, p taken as the middle of the score's bin."""
    losses = np.stack([-np.log1p(-MIDDLES), -np.log(MIDDLES)])
    weight = bins.sum(axis=(-1, -2))
    return max(0.0, float((bins * losses).sum(axis=(-1, -2)) / weight)) if weight > 0 else None


def estimate(of: Callable[[np.ndarray], float | None], bins: np.ndarray, deviation: float) -> Estimate | None:
    """Return `of(bins)` with a 95 % interval that holds both the noise, of standard deviation `deviation`, and chance.

    Parametric bootstrap: patients are drawn again from the bins, and noise is added again. None where the noise leaves
    nothing: a class whose weight can't be told from zero.
    """
    weights = bins.sum(axis=-1)
    if (weights <= 2 * deviation * np.sqrt(BINS)).any() or (weights <= 0).any():
        return None
    value = of(bins)
    if value is None:
        return None
    random = np.random.default_rng(0)
    draws = random.poisson(np.maximum(bins, 0), (REDRAWN, *bins.shape)) + random.normal(
        0, deviation, (REDRAWN, *bins.shape)
    )
    redrawn = [found for draw in draws if (found := of(draw)) is not None]
    half = float(np.quantile(np.abs(np.array(redrawn) - np.mean(redrawn)), 0.95))
    return value, max(0.0, value - half), min(1.0, value + half)


def _share(part: np.ndarray, whole: np.ndarray) -> float | None:
    """The part of the whole, in [0, 1]: noise may carry it outside. None where the whole is not positive."""
    return float(np.clip(part / whole, 0.0, 1.0)) if whole > 0 else None
