"""Light augmentation: what a radiograph could as well have been, and still show the same."""

from __future__ import annotations

import torch
from torch import Tensor

from common.tasks.parameters import Truth
from common.tasks.patches import moved_boxes

SHIFT = 0.06
"""Largest shift, as a share of the image's size."""


def augmented(images: Tensor, targets: Tensor, truth: Truth, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift each of `images` (N, C, *size) by a few pixels, and mirror half of the 2D ones left to right.

    What is true of a place moves with it: masks (N, *size), boxes (N, M, 1 + 2 axes), and where the image itself is the
    target. What is shifted out comes in again at the other edge; but where there are boxes it is gone, and 0 comes in:
    a thing in two halves at two edges has no box.
    """
    if truth == "boxes":
        pairs = [_moved_with_boxes(image, drawn, random) for image, drawn in zip(images, targets, strict=True)]
        return torch.stack([image for image, _ in pairs]), torch.stack([drawn for _, drawn in pairs])
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
    image = torch.roll(image, _shifts(image, random), dims=list(spatial))
    return image.flip(-1) if _mirrored(image, random) else image


def _moved_with_boxes(image: Tensor, boxes: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    shifts, size = _shifts(image, random), image.shape[1:]
    shifted = torch.zeros_like(image)
    to = tuple(slice(max(0, by), n + min(0, by)) for by, n in zip(shifts, size, strict=True))
    out_of = tuple(slice(max(0, -by), n - max(0, by)) for by, n in zip(shifts, size, strict=True))
    shifted[(slice(None), *to)] = image[(slice(None), *out_of)]
    moved = moved_boxes(boxes, shifts, size)
    if not _mirrored(image, random):
        return shifted, moved
    there, axes = moved[:, 0] >= 0, len(size)
    mirrored = moved.clone()
    mirrored[there, axes], mirrored[there, -1] = size[-1] - moved[there, -1], size[-1] - moved[there, axes]
    return shifted.flip(-1), mirrored


def _shifts(image: Tensor, random: torch.Generator) -> list[int]:
    return [int(torch.randint(-int(SHIFT * n), int(SHIFT * n) + 1, (1,), generator=random)) for n in image.shape[1:]]


def _mirrored(image: Tensor, random: torch.Generator) -> bool:
    """Whether an image is to be mirrored: never a volume, whose sides differ."""
    return image.dim() == 3 and bool(torch.rand(1, generator=random) < 0.5)
