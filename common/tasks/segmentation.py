"""Segmentation: each pixel or voxel belongs to one of the job's structures, or to the background.

References: Milletari et al., "V-Net", 3DV 2016 (Dice loss); Lin et al., "Focal Loss", ICCV 2017; Sudre et al.,
"Generalised Dice", DLMIA 2017; Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy", JMIR 2021
(surface Dice); Maier-Hein et al., "Metrics reloaded", Nature Methods 2024.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from common.errors import DataError
from common.job import Job
from common.tasks.means import by_patient, mean_of, noised_mean
from common.tasks.parameters import Segmentation as Parameters
from common.tasks.patches import random_patches, whole
from common.tasks.task import Cases, Network, Shape, Tally

MEASURES = ("dice", "surface_dice", "hd95")


class Segmentation:
    """Masks of K structures; the network gives K + 1 channels, the first of them the background's.

    Targets: (N, *size) uint8, 0 the background, k the job's k-th label. Scores: (N, K, 3) float32, each structure's
    Dice, surface Dice and 95th percentile of the surfaces' distance. All three are not a number where neither mask has
    the structure; where only one has it they are 0, 0 and the length of the image's diagonal.
    """

    def __init__(self, job: Job) -> None:
        self.labels = job.task.labels
        self.outputs = len(job.task.labels) + 1
        parameters = job.task.known_parameters
        self.parameters = parameters if isinstance(parameters, Parameters) else Parameters()
        self.patch = job.data.patch
        self.spacing = job.data.spacing or (1.0,) * len(job.data.size)
        self.diagonal = math.hypot(*(n * mm for n, mm in zip(job.data.size, self.spacing, strict=True)))

    def input_shape(self, shape: Shape) -> Shape:
        """Return the patch, or the whole case."""
        return (shape[0], *self.patch) if self.patch else shape

    def output_shape(self, shape: Shape) -> Shape:
        """Return a map of each output."""
        return (self.outputs, *shape[1:])

    def targets(self, cases: Cases) -> Tensor:
        """Return the masks. Raises DataError where cases have none."""
        if cases.truth is None or cases.truth.shape[1:] != cases.images.shape[2:]:
            raise DataError("the cases have no masks: import them with --masks")
        return torch.from_numpy(cases.truth)

    def made_up(self, count: int, shape: Shape, random: torch.Generator) -> Tensor:
        """Return masks of random places."""
        return torch.randint(0, self.outputs, (count, *shape[1:]), generator=random, dtype=torch.uint8)

    def inputs(self, images: Tensor, targets: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return random patches in training, and whole cases else."""
        if not self.patch or random is None:
            return images, targets
        return random_patches(images, targets, self.patch, random)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each case's loss by MONAI: Dice and cross-entropy, Dice and focal, or generalised Dice."""
        from monai.losses.dice import DiceLoss, GeneralizedDiceLoss
        from monai.losses.focal_loss import FocalLoss

        truth = functional.one_hot(targets.long(), self.outputs).movedim(-1, 1).to(outputs.dtype)
        if self.parameters.loss == "generalized-dice":
            found = GeneralizedDiceLoss(softmax=True, include_background=False, reduction="none")(outputs, truth)
            return _each(found)
        dice = _each(DiceLoss(softmax=True, include_background=False, reduction="none")(outputs, truth))
        if self.parameters.loss == "dice-focal":
            return dice + _each(FocalLoss(use_softmax=True, reduction="none")(outputs, truth))
        return dice + _each(functional.cross_entropy(outputs, targets.long(), reduction="none"))

    def infer(self, network: Network, inputs: Tensor) -> Tensor:
        """Return the outputs of whole cases: (N, K + 1, *size)."""
        if not self.patch or tuple(inputs.shape[2:]) == self.patch:
            return network(inputs)
        return whole(network, inputs, self.patch, self.parameters.overlap)

    def classes(self, outputs: Tensor) -> Tensor:
        """Return the masks that outputs (N, K + 1, *size) mean: (N, *size) int64, on the CPU."""
        found = outputs.argmax(dim=1).cpu()
        if self.parameters.largest_component:
            for mask in found:
                _keep_largest(mask.numpy(), self.outputs)
        return found

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each structure's Dice, surface Dice and HD95: (N, K, 3)."""
        found, true = (_one_hot(classes, self.outputs) for classes in (self.classes(outputs), targets))
        return torch.stack([self._measured(*case) for case in zip(found, true, strict=True)]).float()

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return dice, surface_dice and hd95, each with its interval over cases, and each structure's own."""
        found: dict[str, float] = {}
        for place, name in enumerate(MEASURES):
            values = scores[:, :, place]
            largest = math.inf if name == "hd95" else 1.0
            found |= mean_of(_mean_over_labels(values), name, largest=largest)
            for label in range(values.shape[1]):
                own = mean_of(values[:, label], name)
                found |= {f"{name}.{label}": own[name]} if own else {}
        return found

    def tally(self, scores: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Tally:
        """Return, for each structure, sums over patients of the three measures, distances as shares of the diagonal.

        (K + 1, 4): the last column counts the patients for whom they are defined, the last row's all patients. A
        patient's values are means over the patient's cases, each in [0, 1]: the sensitivity is sqrt(4 K + 1).
        """
        shares = np.clip(scores.astype(np.float64) / (1.0, 1.0, self.diagonal), 0, 1)
        means, known = by_patient(shares, patients)
        labels = scores.shape[1]
        values = np.zeros((labels + 1, 4))
        values[:labels, :3] = means.sum(axis=0)
        values[:labels, 3] = known[:, :, 0].sum(axis=0)
        values[labels, 3] = len(means)
        return Tally(values, math.sqrt(4 * labels + 1))

    def metrics_of(self, tally: Tally) -> dict[str, float]:
        """Return the measures of all structures together and of each, and the number of patients."""
        values = tally.values
        found = {"patients": max(0.0, round(float(values[-1, 3])))}
        total, deviation = values[:-1].sum(axis=0), tally.deviation * math.sqrt(len(values) - 1)
        for place, name in enumerate(MEASURES):
            scale = self.diagonal if name == "hd95" else 1.0
            together = noised_mean(total[place], total[3], deviation, name)
            found |= {key: value * scale for key, value in together.items()}
            for label, row in enumerate(values[:-1]):
                own = noised_mean(row[place], row[3], tally.deviation, name)
                found |= {f"{name}.{label}": own[name] * scale} if own else {}
        return found

    def _measured(self, found: Tensor, true: Tensor) -> Tensor:
        """One case's measures: (K, 3), from masks (K + 1, *size) of 0 and 1."""
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance
        from monai.metrics.surface_dice import compute_surface_dice

        measured = torch.full((len(found) - 1, 3), math.nan)
        for label in range(1, len(found)):
            ours, theirs = found[label], true[label]
            if not bool(ours.any()) and not bool(theirs.any()):
                continue
            if not bool(ours.any()) or not bool(theirs.any()):
                measured[label - 1] = torch.tensor([0.0, 0.0, self.diagonal])
                continue
            mine, truth = ours[None, None].float(), theirs[None, None].float()
            far = compute_hausdorff_distance(mine, truth, True, percentile=95, spacing=self.spacing)
            near = compute_surface_dice(mine, truth, [self.parameters.tolerance], True, spacing=self.spacing)
            overlap = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
            measured[label - 1] = torch.tensor([float(overlap), float(near), float(far)])
        return measured


def _one_hot(classes: Tensor, outputs: int) -> Tensor:
    return functional.one_hot(classes.long().cpu(), outputs).movedim(-1, 1).bool()


def _keep_largest(mask: np.ndarray, outputs: int) -> None:
    """Leave of each structure in `mask` only its largest connected piece; the others become background."""
    for structure in range(1, outputs):
        pieces, count = ndimage.label(mask == structure)
        if count > 1:
            largest = 1 + int(np.bincount(pieces.ravel())[1:].argmax())
            mask[(pieces > 0) & (pieces != largest)] = 0


def _each(values: Tensor) -> Tensor:
    """The mean of each case's values: (N, ...) to (N,)."""
    return values.flatten(1).mean(dim=1)


def _mean_over_labels(values: np.ndarray) -> np.ndarray:
    """Each case's mean over the structures that it has: (N, K) to (N,), not a number where it has none."""
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    return np.where(counts > 0, np.where(known, values, 0).sum(axis=1) / np.maximum(counts, 1), np.nan)
