"""Light augmentation: what a radiograph could as well have been, and still show the same."""

from __future__ import annotations

import torch
from torch import Tensor

SHIFT = 0.06
"""Largest shift, as a share of the image's size."""


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Shift each of `images` (N, C, *size) by a few pixels, and mirror half of the 2D ones left to right."""
    moved = []
    for image in images:
        spatial = range(1, image.dim())
        shifts = [
            int(torch.randint(-int(SHIFT * image.shape[d]), int(SHIFT * image.shape[d]) + 1, (1,), generator=random))
            for d in spatial
        ]
        image = torch.roll(image, shifts, dims=list(spatial))
        if image.dim() == 3 and bool(torch.rand(1, generator=random) < 0.5):
            image = image.flip(-1)
        moved.append(image)
    return torch.stack(moved)
