"""Classification: binary, one of several classes, or several labels at once.

References: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2",
Statistics in Medicine 2006, method 5 (interval of the AUC: as Hanley and McNeil's, Radiology 1982, but honest near 1,
where theirs has no width); Wilson, JASA 1927 (interval of a proportion).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from common.errors import DataError
from common.job import Job
from common.tasks.calibration import brier, calibration_error, sensitivity_at
from common.tasks.histogram import (
    Estimate,
    accuracy,
    auc,
    cross_entropy,
    estimate,
    histogram,
    patient_weights,
    sensitivity,
    specificity,
)
from common.tasks.parameters import Classification as Parameters
from common.tasks.task import Cases, Shape, Tally, WholeCases

Z95 = float(norm.ppf(0.975))
EDGE = 1e-9
AT_SPECIFICITY = "sensitivity_at_specificity"


class Classification(WholeCases):
    """Images get one of K labels, or, with `multilabel`, any of them.

    Targets: (N,) int64 class indices, or (N, K) float32 of 0 and 1 with `multilabel`. Positives of a two-class task are
    those of the second label; with more classes or labels each one is judged against the rest and the mean is given.
    """

    def __init__(self, job: Job) -> None:
        self.labels = job.task.labels
        self.multilabel = job.task.multilabel
        self.outputs = len(job.task.labels)
        parameters = job.task.known_parameters
        self.specificity = parameters.specificity if isinstance(parameters, Parameters) else 0.95

    def targets(self, cases: Cases) -> Tensor:
        """Return the targets of cases from their labels."""
        return self.target(cases.labels)

    def made_up(self, count: int, shape: Shape, random: torch.Generator) -> Tensor:
        """Return the labels in turn."""
        return self.target([self.labels[row % self.outputs] for row in range(count)])

    def target(self, labels: Sequence[str]) -> Tensor:
        """Return the targets of images from their label texts; several labels are joined by "|"."""
        index = {label: number for number, label in enumerate(self.labels)}
        named = [[part for part in text.split("|") if part] if self.multilabel else [text] for text in labels]
        if unknown := next((part for parts in named for part in parts if part not in index), None):
            raise DataError(f'a case has the label "{unknown}", which the job does not name ({", ".join(self.labels)})')
        if not self.multilabel:
            return torch.tensor([index[parts[0]] for parts in named], dtype=torch.int64)
        targets = torch.zeros(len(named), len(self.labels))
        for row, parts in enumerate(named):
            targets[row, [index[part] for part in parts]] = 1.0
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each image's cross-entropy; with `multilabel` the mean of its labels' binary ones."""
        if self.multilabel:
            return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)
        return functional.cross_entropy(outputs, targets, reduction="none")

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return probabilities: (N, K)."""
        return torch.sigmoid(outputs) if self.multilabel else torch.softmax(outputs, dim=1)

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return auc, accuracy, sensitivity and specificity, each with `_low` and `_high`, its 95 % interval.

        And the sensitivity at the fixed specificity, the Brier score, and the calibration error. One that is undefined
        is left out; all are, where a score is not a number: such a model has no performance.
        """
        if not np.isfinite(scores).all():
            return {}
        truth = self._truth(targets)
        called = scores > 0.5 if self.multilabel else np.eye(self.outputs, dtype=bool)[scores.argmax(axis=1)]
        right = called == truth if self.multilabel else (called & truth).any(axis=1)
        columns = [(truth[:, k], called[:, k], scores[:, k]) for k in self._judged]
        return {
            **_mean([_auc(true, score) for true, _, score in columns], "auc"),
            **_mean([_proportion(int(right.sum()), right.size)], "accuracy"),
            **_mean(
                [_proportion(int((call & true).sum()), int(true.sum())) for true, call, _ in columns], "sensitivity"
            ),
            **_mean(
                [_proportion(int((~call & ~true).sum()), int((~true).sum())) for true, call, _ in columns],
                "specificity",
            ),
            **_mean_value(
                [sensitivity_at(true, score, self.specificity) for true, _, score in columns], AT_SPECIFICITY
            ),
            **_mean_value([brier(true, score) for true, _, score in columns], "brier"),
            **_mean_value([calibration_error(true, score) for true, _, score in columns], "ece"),
        }

    def tally(self, scores: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Tally:
        """Return a histogram of scores by truth for each judged label: (judged, 2, BINS).

        A patient's weight is 1 in each label's histogram, so the sensitivity is the root of their number. A score that
        is not a number counts as 0.
        """
        truth, weight = self._truth(targets), patient_weights(patients)
        known = np.nan_to_num(scores, nan=0.0)
        values = np.stack([histogram(truth[:, k], known[:, k], weight) for k in self._judged])
        return Tally(values, math.sqrt(len(values)))

    def metrics_of(self, tally: Tally) -> dict[str, float]:
        """Return auc, sensitivity, specificity with intervals, and the weight of all patients as `patients`.

        Accuracy too where there are two classes; with more, a histogram does not say which one was called.
        """
        named = {"auc": auc, "sensitivity": sensitivity, "specificity": specificity}
        if self._two_classes:
            named |= {"accuracy": accuracy}
        found = {"patients": max(0.0, round(float(tally.values.sum(axis=(1, 2)).mean())))}
        losses = [estimate(cross_entropy, bins, tally.deviation) for bins in tally.values]
        if known := _mean(losses, "loss"):
            found["loss"] = known["loss"]
        for name, of in named.items():
            found |= _mean([estimate(of, bins, tally.deviation) for bins in tally.values], name)
        return found

    @property
    def _two_classes(self) -> bool:
        return self.outputs == 2 and not self.multilabel

    @property
    def _judged(self) -> Sequence[int]:
        return [1] if self._two_classes else range(self.outputs)

    def _truth(self, targets: np.ndarray) -> np.ndarray:
        """Whether each label is true of each image: (N, K) bool."""
        return targets > 0.5 if self.multilabel else np.eye(self.outputs, dtype=bool)[targets]


def _auc(truth: np.ndarray, score: np.ndarray) -> Estimate | None:
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    area = float(roc_auc_score(truth, score))
    even = (positives + negatives) / 2 - 1

    def beyond(bound: float) -> float:
        """How much further the AUC lies from `bound` than an AUC of `bound` would stray in 95 % of test sets."""
        spread = 1 + even * ((1 - bound) / (2 - bound) + bound / (1 + bound))
        return abs(area - bound) - Z95 * math.sqrt(bound * (1 - bound) * spread / (positives * negatives))

    # At 0 and 1 nothing strays, so the ends are sought just inside.
    low = brentq(beyond, 0.0, area - EDGE) if area > EDGE and beyond(area - EDGE) < 0 else area
    high = brentq(beyond, area + EDGE, 1.0) if area < 1 - EDGE and beyond(area + EDGE) < 0 else area
    return area, low, high


def _proportion(hits: int, total: int) -> Estimate | None:
    if not total:
        return None
    interval = binomtest(hits, total).proportion_ci(0.95, "wilson")
    share = hits / total
    return share, min(share, float(interval.low)), max(share, float(interval.high))


def _mean_value(values: Sequence[float | None], name: str) -> dict[str, float]:
    known = [value for value in values if value is not None]
    return {name: float(np.mean(known))} if known else {}


def _mean(estimates: Sequence[Estimate | None], name: str) -> dict[str, float]:
    """The mean over labels where it is defined, with the mean of the intervals' ends (wider than the mean's own)."""
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return {}
    value, low, high = (float(np.mean(part)) for part in zip(*known, strict=True))
    return {name: value, f"{name}_low": low, f"{name}_high": high}
