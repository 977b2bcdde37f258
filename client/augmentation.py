"""Light augmentation: what a radiograph could as well have been, and still show the same."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import JobError
from common.tasks.parameters import Truth

SHIFT = 0.06
"""Largest shift, as a share of the image's size."""


def augmented(images: Tensor, targets: Tensor, truth: Truth, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift each of `images` (N, C, *size) by a few pixels, and mirror half of the 2D ones left to right.

    What is true of a place moves with it: masks (N, *size), and where the image itself is the target. Raises JobError
    for a truth that can't be moved.
    """
    if truth == "boxes":
        raise JobError('"data.augment": boxes can\'t be moved along by "light": set it to "none"')
    moved = [_moved(image, random) for image in _with_masks(images, targets, truth)]
    together = torch.stack(moved)
    if truth == "mask":
        channels = images.shape[1]
        return together[:, :channels], together[:, channels].round().to(targets.dtype)
    return together, together if truth == "image" else targets


def _with_masks(images: Tensor, targets: Tensor, truth: Truth) -> Tensor:
    """Masks as one more channel: shifts and mirrors are the same to all channels, and to whole numbers exact."""
    return torch.cat([images, targets.unsqueeze(1).to(images.dtype)], dim=1) if truth == "mask" else images


def _moved(image: Tensor, random: torch.Generator) -> Tensor:
    spatial = range(1, image.dim())
    shifts = [
        int(torch.randint(-int(SHIFT * image.shape[d]), int(SHIFT * image.shape[d]) + 1, (1,), generator=random))
        for d in spatial
    ]
    image = torch.roll(image, shifts, dims=list(spatial))
    if image.dim() == 3 and bool(torch.rand(1, generator=random) < 0.5):
        image = image.flip(-1)
    return image
