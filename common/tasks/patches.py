"""Patches of large cases: drawn at random to train on, and windows put together again to predict the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.tasks.task import Network

WINDOWS_AT_ONCE = 4
ON_A_STRUCTURE = 0.5
"""The share of patches that are drawn about a place of a structure: the background is mostly more than enough."""


def random_patches(
    images: Tensor, masks: Tensor, size: Sequence[int], random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return one patch of each of `images` (N, C, *extent) and `masks` (N, *extent): (N, C, *size) and (N, *size).

    Half of them lie about a random place of a structure (mask above 0), if the case has one; the others anywhere.
    """
    parts = [_patch(image, mask, size, random) for image, mask in zip(images, masks, strict=True)]
    return torch.stack([image for image, _ in parts]), torch.stack([mask for _, mask in parts])


def whole(network: Network, inputs: Tensor, size: Sequence[int], overlap: float) -> Tensor:
    """Return the network's outputs for whole `inputs` (N, C, *extent), from windows of `size` weighted by distance."""
    from monai.inferers.utils import sliding_window_inference

    found = sliding_window_inference(inputs, tuple(size), WINDOWS_AT_ONCE, network, overlap=overlap, mode="gaussian")
    if not isinstance(found, Tensor):
        raise TypeError("a network that is asked window by window must return one tensor")
    return found


def _patch(image: Tensor, mask: Tensor, size: Sequence[int], random: torch.Generator) -> tuple[Tensor, Tensor]:
    extent, middle = mask.shape, None
    if bool(torch.rand(1, generator=random) < ON_A_STRUCTURE) and bool((mask > 0).any()):
        places = torch.nonzero(mask > 0)
        middle = places[int(torch.randint(len(places), (1,), generator=random))].tolist()
    slices = []
    for axis, part in enumerate(size):
        room = extent[axis] - part
        start = int(torch.randint(room + 1, (1,), generator=random))
        if middle is not None:
            start = min(max(middle[axis] - part // 2, 0), room)
        slices.append(slice(start, start + part))
    return image[(slice(None), *slices)], mask[tuple(slices)]
