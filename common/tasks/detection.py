"""Detection: boxes around the job's things, from a heat map of their middles.

One number a case is the loss, whatever the number of boxes, so that it is trained with differential privacy as any
other task. References stand in `heatmap.py` (the detector) and `found.py` (the metrics).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError, JobError
from common.job import Job
from common.tasks.found import Found, average_precision, froc, froc_of, measured
from common.tasks.heatmap import boxes_in, map_loss
from common.tasks.histogram import BINS, EDGES
from common.tasks.means import LEAST, Z95, by_patient, mean_of, noised_mean
from common.tasks.parameters import Detection as Parameters
from common.tasks.patches import random_box_patches, whole
from common.tasks.task import Cases, Network, Shape, Tally

OVERLAPS = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2).tolist())
"""COCO's: average precision is their mean, or that at the first."""
LEAST_SCORE = 0.01
"""A box with a lower score is none."""
MOST_ALARMS = 8.0
"""False positives an image that a tally can tell apart: FROC asks for no more."""
NOISES = 400
HITS, ALARMS = slice(0, BINS), slice(BINS, 2 * BINS)
SENSITIVITY, PRECISION, WITH_BOXES, WITH_CALLS, PATIENTS = range(2 * BINS, 2 * BINS + 5)
"""A tally's values: by bins of scores the boxes found and the false positives, then sums and counts of patients."""


class Detection:
    """Boxes of K labels; the network gives a map of K + 2 axes channels (`heatmap.py`), at its stride.

    Targets: (N, M, 1 + 2 axes) float32, a row (label from 0, first edges, last edges) in pixels, -1 where is no box.
    Scores: (N, most_found + K, 13) float32. First a row for each box found: label (-1: none), score, whether it is a
    hit at the job's overlap, and at each of OVERLAPS. Then a row for each label: the label, how many boxes it truly
    has, and zeros. Where rows of a case are read as boxes, they are matched surest first, each true box once.
    """

    def __init__(self, job: Job) -> None:
        self.labels = job.task.labels
        self.axes = len(job.data.size)
        self.outputs = len(self.labels) + 2 * self.axes
        parameters = job.task.known_parameters
        self.parameters = parameters if isinstance(parameters, Parameters) else Parameters()
        self.patch = job.data.patch
        self.stride = stride_of(job)

    def input_shape(self, shape: Shape) -> Shape:
        """Return the patch, or the whole case."""
        return (shape[0], *self.patch) if self.patch else shape

    def output_shape(self, shape: Shape) -> Shape:
        """Return a map of each output, as coarse as the network's stride."""
        return (self.outputs, *(n // self.stride for n in shape[1:]))

    def targets(self, cases: Cases) -> Tensor:
        """Return the boxes. Raises DataError where cases have none."""
        if cases.truth is None or cases.truth.ndim != 3 or cases.truth.shape[2] != 1 + 2 * self.axes:
            raise DataError("the cases have no boxes: import them with --boxes")
        return torch.from_numpy(np.asarray(cases.truth))

    def made_up(self, count: int, shape: Shape, random: torch.Generator) -> Tensor:
        """Return three boxes a case at random places, and room for one more."""
        drawn = torch.rand(3, count, 3, self.axes, generator=random)
        whole_case = torch.tensor(shape[1:], dtype=torch.float32)
        first = drawn[0] * 0.7 * whole_case
        last = first + (0.05 + 0.25 * drawn[1]) * whole_case
        labels = (drawn[2, :, :, :1] * len(self.labels)).floor()
        boxes = torch.cat([labels, first, last], dim=2)
        return torch.cat([boxes, torch.full_like(boxes[:, :1], -1)], dim=1)

    def inputs(self, images: Tensor, targets: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return random patches in training, whole cases else; of rows of boxes only as many as any case here fills."""
        if self.patch and random is not None:
            images, targets = random_box_patches(images, targets, self.patch, random)
        filled = (targets[..., 0] >= 0).any(dim=0).nonzero()
        return images, targets[:, : int(filled.max()) + 1 if len(filled) else 1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each case's loss: focal over the middles' map, L1 of extents and places."""
        return map_loss(outputs, targets, len(self.labels), self.stride)

    def infer(self, network: Network, inputs: Tensor) -> Tensor:
        """Return the map of whole cases: (N, K + 2 axes, *grid)."""
        if not self.patch or tuple(inputs.shape[2:]) == self.patch:
            return network(inputs)
        return whole(network, inputs, self.patch, self.parameters.overlap)

    def boxes(self, outputs: Tensor) -> list[Tensor]:
        """Return each case's boxes, surest first: (n, 2 + 2 axes), a row (label, score, first edges, last edges)."""
        settings = self.parameters
        return boxes_in(outputs, len(self.labels), self.stride, settings.most_found, settings.suppression, LEAST_SCORE)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what is found and whether it is a hit, and how many boxes there are: (N, most_found + K, 13)."""
        from monai.apps.detection.metrics.matching import matching_batch

        found = [case.cpu().numpy() for case in self.boxes(outputs)]
        true = [case[case[:, 0] >= 0] for case in targets.float().cpu().numpy()]
        matched = matching_batch(
            _overlaps,
            (self.parameters.hit, *OVERLAPS),
            [case[:, 2:] for case in found],
            [case[:, 0] for case in found],
            [case[:, 1] for case in found],
            [case[:, 1:] for case in true],
            [case[:, 0] for case in true],
            max_detections=self.parameters.most_found,
        )
        most = self.parameters.most_found
        scores = torch.zeros(len(found), most + len(self.labels), 3 + len(OVERLAPS))
        scores[:, :most, 0] = -1
        for case, by_label in enumerate(matched):
            rows = [
                np.column_stack([np.full(len(one["dtScores"]), label), one["dtScores"], one["dtMatches"].T])
                for label, one in by_label.items()
            ]
            filled = np.concatenate(rows) if rows else np.zeros((0, scores.shape[2]))
            scores[case, : len(filled)] = torch.from_numpy(filled).float()
            for label in range(len(self.labels)):
                scores[case, most + label, :2] = torch.tensor([label, (true[case][:, 0] == label).sum()])
        return scores

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return ap50, ap, froc, sensitivity and precision, with intervals over cases, and each label's own.

        ap50, ap and froc are means over the labels that have boxes.
        """
        rows, true = self._parted(scores)
        of_labels = {label: self._of_label(rows, true[:, label], label) for label in range(true.shape[1])}
        found: dict[str, float] = {}
        for name in ("ap50", "ap50_low", "ap50_high", "ap", "froc", "froc_low", "froc_high"):
            known = [values[name] for values in of_labels.values() if name in values]
            found |= {name: float(np.mean(known))} if known else {}
        for label, values in of_labels.items():
            found |= {f"{name}.{label}": values[name] for name in ("ap50", "froc") if name in values}
        shares = self._called(rows, true)
        found |= mean_of(shares[:, 0], "sensitivity", largest=1.0)
        return found | mean_of(shares[:, 1], "precision", largest=1.0)

    def tally(self, scores: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Tally:
        """Return sums over patients: a patient's boxes found, as shares, and false positives, by bins of their scores.

        And the sensitivity, the precision, and three counts. A patient's values are means over the patient's cases.
        Each of the seven has an L2 norm of at most 1: boxes found are shares of a case's own boxes, false positives are
        counted up to MOST_ALARMS a case, as shares of it. So the sensitivity is the root of 7. All labels together.
        """
        rows, true = self._parted(scores)
        bins = np.searchsorted(EDGES, rows[..., 1], side="left")
        hits, alarms = np.zeros((len(scores), BINS)), np.zeros((len(scores), BINS))
        cases, places = np.nonzero(rows[..., 0] >= 0)
        hit = rows[cases, places, 2] > 0
        np.add.at(hits, (cases[hit], bins[cases[hit], places[hit]]), 1.0)
        np.add.at(alarms, (cases[~hit], bins[cases[~hit], places[~hit]]), 1.0)
        boxes = true.sum(axis=1, keepdims=True)
        shares = np.where(boxes > 0, hits / np.maximum(boxes, 1), np.nan)
        surest = np.minimum(np.cumsum(alarms[:, ::-1], axis=1) / MOST_ALARMS, 1.0)
        alarms = np.diff(surest, axis=1, prepend=0.0)[:, ::-1]
        means, known = by_patient(np.concatenate([shares, alarms, self._called(rows, true)], axis=1), patients)
        counts = [known[:, SENSITIVITY].sum(), known[:, PRECISION].sum(), len(means)]
        return Tally(np.concatenate([means.sum(axis=0), counts]), math.sqrt(7))

    def metrics_of(self, tally: Tally) -> dict[str, float]:
        """Return froc, sensitivity and precision with intervals, and the number of patients.

        Here every patient counts the same, where exact metrics count every box.
        """
        values, deviation = tally.values, tally.deviation
        found = {"patients": max(0.0, round(float(values[PATIENTS])))}
        found |= noised_mean(values[SENSITIVITY], values[WITH_BOXES], deviation, "sensitivity")
        found |= noised_mean(values[PRECISION], values[WITH_CALLS], deviation, "precision")
        if min(values[WITH_BOXES], values[PATIENTS]) <= max(LEAST * deviation, 0):
            return found
        value, random = _froc_from(values), np.random.default_rng(0)
        noises = random.normal(0, deviation, (NOISES, len(values)))
        spread = np.std([_froc_from(values + noise) for noise in noises])
        half = Z95 * math.sqrt(spread**2 + value * (1 - value) / values[WITH_BOXES])
        return found | {"froc": value, "froc_low": max(0.0, value - half), "froc_high": min(1.0, value + half)}

    def _parted(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of boxes found, and each label's number of true boxes (N, K)."""
        most = scores.shape[1] - len(self.labels)
        return scores[:, :most], scores[:, most:, 1]

    def _of_label(self, rows: np.ndarray, true: np.ndarray, label: int) -> dict[str, float]:
        def at(place: int) -> Found:
            return Found.of(rows[..., 1], rows[..., place] > 0, rows[..., 0] == label, true)

        values = measured(at(3), average_precision, "ap50") | measured(at(2), froc, "froc")
        if values:
            everyone = np.ones(len(true))
            each = [average_precision(at(3 + place), everyone) for place in range(len(OVERLAPS))]
            values["ap"] = float(np.mean(each))
        return values

    def _called(self, rows: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Each case's share of boxes found, and of called boxes that are right: (N, 2), NaN where there are none."""
        called = (rows[..., 0] >= 0) & (rows[..., 1] >= self.parameters.threshold)
        hits = (called & (rows[..., 2] > 0)).sum(axis=1)
        of = np.stack([true.sum(axis=1), called.sum(axis=1)], axis=1)
        return np.where(of > 0, hits[:, None] / np.maximum(of, 1), np.nan)


def stride_of(job: Job) -> int:
    """Return how many pixels lie between the places of the network's map: its parameter `stride`, else 1.

    Raises JobError where the image does not have a whole number of places.
    """
    stride = job.network.parameters.get("stride", 1)
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise JobError('"network.parameters": stride must be a whole number from 1: 1, 2, 4')
    for key, extent in (("data.size", job.data.size), ("data.patch", job.data.patch)):
        if any(n % stride for n in extent):
            raise JobError(f'"{key}": {list(extent)} is no multiple of the network\'s stride of {stride}')
    return stride


def _overlaps(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The overlap (IoU) of every box found with every true one: (n, m), from (n, 2 axes) and (m, 2 axes)."""
    from monai.data.box_utils import box_iou

    return np.asarray(box_iou(found, true))


def _froc_from(values: np.ndarray) -> float:
    """FROC from a tally, noised or not: noise may carry a curve down, which is held level there."""
    curves = [np.cumsum(values[part][::-1]) for part in (HITS, ALARMS)]
    shares = [np.maximum.accumulate(np.maximum(curve, 0)) for curve in curves]
    sensitivity = np.clip(shares[0] / max(values[WITH_BOXES], 1e-9), 0, 1)
    return froc_of(sensitivity, shares[1] * MOST_ALARMS / max(values[PATIENTS], 1e-9))
