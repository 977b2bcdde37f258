"""Reconstruction: the image from a part of its k-space.

The case's image is taken as fully sampled: its k-space is made by Fourier transform, and columns are left out. With
`data.channels = 1` that is no scanner's raw data: a magnitude image has no phase, and what the scanner did to it
(filters, interpolation, compression) makes the task easier than it is at the scanner. Metrics compare methods on the
same images, and say nothing of raw data. With `data.channels = 2` the image is complex, as the intake makes it of raw
k-space (`client/intake/kspace.py`): phase and noise are the scanner's, its coils are combined before.

References: Zbontar et al., "fastMRI", 2018; Wang et al., "Image Quality Assessment", IEEE TIP 2004 (SSIM); Shimron et
al., "Implicit data crimes: machine learning bias arising from misuse of public data", PNAS 2022.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from common.errors import JobError
from common.job import Job
from common.tasks.kspace import as_channels, column_masks, magnitude, measured, zero_filled
from common.tasks.means import by_patient, mean_of, noised_mean
from common.tasks.parameters import Reconstruction as Parameters
from common.tasks.task import Cases, Network, Shape, Tally

MEASURES = ("psnr", "ssim", "nmse")
HIGHEST_PSNR = 60.0
"""In dB; a better one counts as this: what differs is under a thousandth of full scale."""
WINDOW = 11
"""SSIM's, in pixels, or the largest odd number that fits the image."""


class Reconstruction:
    """The network gives the image, one channel.

    Targets of a step: the images' magnitudes (N, 1, *size) in [0, 1]. It sees the image of what was measured
    (N, 1, *size), or with `sees = "k-space"` what was measured and where (N, 3, *size). Scores: (N, 3) float32, PSNR in
    dB and SSIM (0 where it is less), both of full scale 1, and NMSE, which is not a number for an empty image.
    """

    outputs = 1

    def __init__(self, job: Job) -> None:
        parameters = job.task.known_parameters
        self.parameters = parameters if isinstance(parameters, Parameters) else Parameters()
        self.size = job.data.size
        self.seen = 3 if self.parameters.sees == "k-space" else 1
        _check(job, self.parameters)

    def input_shape(self, shape: Shape) -> Shape:
        """Return one channel, or three of k-space and its mask."""
        return (self.seen, *shape[1:])

    def output_shape(self, shape: Shape) -> Shape:
        """Return an image."""
        return (1, *shape[1:])

    def targets(self, cases: Cases) -> Tensor:
        """Return nothing of each case, (N, 0): the truth is the image itself, which `inputs` is given in any case."""
        return torch.zeros(len(cases.images), 0)

    def made_up(self, count: int, shape: Shape, random: torch.Generator) -> Tensor:
        """Return random magnitudes."""
        return torch.rand(count, 1, *shape[1:], generator=random)

    def inputs(self, images: Tensor, targets: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return what of images (N, 1 or 2, *size) is measured, and their magnitudes.

        By masks drawn from `random`, or by the one that is always the same.
        """
        masks = column_masks(len(images), images.shape[-1], self.parameters, random)
        kspace = measured(images, masks)
        return (as_channels(kspace, masks) if self.seen == 3 else zero_filled(kspace)), magnitude(images)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each case's mean absolute error; with "ssim-l1" 1 - SSIM as well."""
        apart = (outputs - targets).abs().flatten(1).mean(dim=1)
        return apart if self.parameters.loss == "l1" else apart + 1 - self._ssim(outputs, targets)

    def infer(self, network: Network, inputs: Tensor) -> Tensor:
        """Return the images: (N, 1, *size)."""
        return network(inputs)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each image's PSNR, SSIM and NMSE: (N, 3). `targets` may be the complex images themselves."""
        from monai.metrics.regression import PSNRMetric

        found, true = outputs.float().nan_to_num().clamp(0, 1).cpu(), magnitude(targets.float().cpu())
        psnr = PSNRMetric(max_val=1.0, reduction="none")(found, true)
        if not isinstance(psnr, Tensor):
            raise TypeError("MONAI's PSNR must be one tensor")
        of_image = true.square().flatten(1).sum(dim=1)
        nmse = (found - true).square().flatten(1).sum(dim=1) / of_image
        nmse = torch.where(of_image > 0, nmse, math.nan)
        return torch.stack([psnr.flatten().clamp(max=HIGHEST_PSNR), self._ssim(found, true).clamp(min=0), nmse], dim=1)

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return psnr, ssim and nmse, each with its interval over images."""
        found: dict[str, float] = {}
        for place, name in enumerate(MEASURES):
            found |= mean_of(scores[:, place], name, largest=1.0 if name == "ssim" else math.inf)
        return found

    def tally(self, scores: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Tally:
        """Return sums over patients of PSNR (as a share of HIGHEST_PSNR), SSIM and NMSE, and the number of patients.

        A patient's values are means over the patient's images, each in [0, 1]: the sensitivity is the root of 4. An
        empty image has no NMSE; a patient of whom there are only such counts as 0.
        """
        means, _ = by_patient(np.clip(scores.astype(np.float64) / (HIGHEST_PSNR, 1.0, 1.0), 0, 1), patients)
        return Tally(np.concatenate([means.sum(axis=0), [len(means)]]), 2.0)

    def metrics_of(self, tally: Tally) -> dict[str, float]:
        """Return psnr, ssim and nmse with intervals, and the number of patients."""
        *sums, count = tally.values.tolist()
        found = {"patients": max(0.0, float(round(count)))}
        for name, total in zip(MEASURES, sums, strict=True):
            scale = HIGHEST_PSNR if name == "psnr" else 1.0
            known = noised_mean(total, count, tally.deviation, name)
            found |= {key: value * scale for key, value in known.items()}
        return found

    def _ssim(self, found: Tensor, true: Tensor) -> Tensor:
        """Each image's SSIM: (N,)."""
        from monai.metrics.regression import compute_ssim_and_cs

        window = min(WINDOW, *(n - 1 + n % 2 for n in self.size))
        axes = len(self.size)
        whole, _ = compute_ssim_and_cs(
            found, true, spatial_dims=axes, kernel_size=[window] * axes, kernel_sigma=[1.5] * axes, data_range=1.0
        )
        return whole.flatten(1).mean(dim=1)


def _check(job: Job, settings: Parameters) -> None:
    """Raise JobError for what k-space can't be made of, and for a mask that can't be."""
    columns = job.data.size[-1]
    middle = max(1, round(columns * settings.center_fraction))
    if job.data.channels == 3:
        raise JobError('"data.channels": reconstruction is of grey images: set it to 1, or 2 for raw data')
    if job.data.channels == 2 and job.data.augment == "strong":
        raise JobError('"data.augment": "strong" changes brightness, which a complex image has not: set it to "light"')
    if job.data.patch:
        raise JobError('"data.patch": k-space is that of a whole image: leave it out with reconstruction')
    if job.data.scale != "unit":
        raise JobError('"data.scale": reconstruction gives intensities as they are: set it to "unit"')
    if middle * settings.acceleration >= columns:
        raise JobError(
            f'"task.parameters": the middle of {columns} columns (center_fraction) is {middle}, already all that an '
            f"acceleration of {settings.acceleration:g} measures: lower one of them"
        )
