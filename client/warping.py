"""Strong augmentation, by MONAI: small rotations and zooms, and changes of brightness, contrast and noise.

Each image's own: what is drawn comes from the generator that is given, so that a seed gives the same bits.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandAdjustContrastd, RandGaussianNoised, RandScaleIntensityd
from monai.transforms.spatial.dictionary import RandAffined
from torch import Tensor

from client.augmentation import augmented
from common.errors import JobError
from common.tasks.parameters import Truth

ANGLE, ZOOM = math.radians(15), 0.1
"""Largest rotation in each plane, in radians, and largest change of size."""


def warped(images: Tensor, targets: Tensor, truth: Truth, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `images` (N, C, *size) in [0, 1] augmented one by one, after light augmentation; masks move along.

    What lies outside the image is 0, and background. Raises JobError for a truth that can't be moved.
    """
    if truth not in ("label", "mask"):
        raise JobError('"data.augment": "strong" is for labels and masks: set it to "light" or "none"')
    images, targets = augmented(images, targets, truth, random)
    transform = _transform(images.dim() - 2, truth == "mask")
    found = []
    for image, target in zip(images, targets, strict=True):
        transform.set_random_state(int(torch.randint(2**31 - 1, (1,), generator=random)))
        parts = {"image": image} | ({"mask": target[None].float()} if truth == "mask" else {})
        found.append(cast(dict[str, Any], transform(parts)))
    moved = torch.stack([one["image"].as_tensor() for one in found]).clamp(0, 1)
    if truth != "mask":
        return moved, targets
    return moved, torch.stack([one["mask"].as_tensor()[0] for one in found]).round().to(targets.dtype)


def _transform(axes: int, masks: bool) -> Compose:
    keys = ["image", "mask"] if masks else ["image"]
    turns = ANGLE if axes == 2 else (ANGLE, ANGLE, ANGLE)
    modes = ["bilinear", "nearest"] if masks else ["bilinear"]
    return Compose([
        RandAffined(
            keys, prob=0.8, rotate_range=turns, scale_range=(ZOOM,) * axes, mode=modes, padding_mode="zeros"
        ),
        RandScaleIntensityd(["image"], factors=0.2, prob=0.5),
        RandAdjustContrastd(["image"], gamma=(0.7, 1.4), prob=0.3),
        RandGaussianNoised(["image"], std=0.03, prob=0.3),
    ])  # fmt: skip
