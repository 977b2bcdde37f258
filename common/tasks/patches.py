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


def random_box_patches(
    images: Tensor, boxes: Tensor, size: Sequence[int], random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return one patch of each of `images` (N, C, *extent), and the boxes (N, M, 1 + 2 axes) in it, as it cuts them.

    Half of them lie about the middle of a random box, if the case has one; the others anywhere.
    """
    parts = [_box_patch(image, drawn, size, random) for image, drawn in zip(images, boxes, strict=True)]
    return torch.stack([image for image, _ in parts]), torch.stack([drawn for _, drawn in parts])


def moved_boxes(boxes: Tensor, by: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return boxes (M, 1 + 2 axes), -1 where is none, after all moved `by` pixels in an image of `size`.

    A box stays as long as its middle does, and is then cut off at the edge: of less than that too little is seen to say
    what it is. The other rows are -1, and come last.
    """
    axes = len(size)
    step, whole_image = (torch.tensor(tuple(n), dtype=boxes.dtype, device=boxes.device) for n in (by, size))
    first, last = boxes[:, 1 : 1 + axes] + step, boxes[:, 1 + axes :] + step
    middle = (first + last) / 2
    stays = (boxes[:, 0] >= 0) & (middle >= 0).all(dim=1) & (middle < whole_image).all(dim=1)
    cut = [torch.minimum(edge.clamp(min=0), whole_image) for edge in (first, last)]
    moved = torch.cat([boxes[:, :1], *cut], dim=1)
    return torch.cat([moved[stays], torch.full_like(moved[~stays], -1)])


def whole(network: Network, inputs: Tensor, size: Sequence[int], overlap: float) -> Tensor:
    """Return the network's outputs for whole `inputs` (N, C, *extent), from windows of `size` weighted by distance."""
    from monai.inferers.utils import sliding_window_inference

    found = sliding_window_inference(inputs, tuple(size), WINDOWS_AT_ONCE, network, overlap=overlap, mode="gaussian")
    if not isinstance(found, Tensor):
        raise TypeError("a network that is asked window by window must return one tensor")
    return found


def _patch(image: Tensor, mask: Tensor, size: Sequence[int], random: torch.Generator) -> tuple[Tensor, Tensor]:
    middle = None
    if bool(torch.rand(1, generator=random) < ON_A_STRUCTURE) and bool((mask > 0).any()):
        places = torch.nonzero(mask > 0)
        middle = places[int(torch.randint(len(places), (1,), generator=random))].tolist()
    slices = _drawn(mask.shape, middle, size, random)
    return image[(slice(None), *slices)], mask[slices]


def _box_patch(image: Tensor, boxes: Tensor, size: Sequence[int], random: torch.Generator) -> tuple[Tensor, Tensor]:
    middle, known = None, boxes[boxes[:, 0] >= 0]
    if bool(torch.rand(1, generator=random) < ON_A_STRUCTURE) and len(known):
        box = known[int(torch.randint(len(known), (1,), generator=random)), 1:]
        middle = box.reshape(2, -1).mean(dim=0).int().tolist()
    slices = _drawn(image.shape[1:], middle, size, random)
    return image[(slice(None), *slices)], moved_boxes(boxes, [-part.start for part in slices], size)


def _drawn(
    extent: Sequence[int], middle: list[int] | None, size: Sequence[int], random: torch.Generator
) -> tuple[slice, ...]:
    """Where a patch lies: about `middle` as far as there is room, or anywhere."""
    slices = []
    for axis, part in enumerate(size):
        room = extent[axis] - part
        start = int(torch.randint(room + 1, (1,), generator=random))
        if middle is not None:
            start = min(max(middle[axis] - part // 2, 0), room)
        slices.append(slice(start, start + part))
    return tuple(slices)
