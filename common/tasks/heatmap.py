"""Boxes as a map that a network can learn, and back: where middles lie, how large each thing is, all at a coarse grid.

A map has K channels of where the K labels' middles lie (logits), then for each axis the logarithm of the box's extent
in places of the grid, then for each axis how far the middle lies beyond the first edge of its place. Large and small
boxes weigh the same in the logarithm, where Zhou et al. learn pixels.

Shapes: boxes (N, M, 1 + 2 axes), a row (label from 0, first edges, last edges) in pixels, label -1 where there is none;
a map (N, K + 2 axes, *grid), whose places are `stride` pixels apart.

References: Zhou, Wang and Kraehenbuehl, "Objects as Points", 2019 (CenterNet); Law and Deng, "CornerNet", ECCV 2018
(the focal loss about each middle); Liu et al., "Training-Time-Friendly Network for Real-Time Object Detection", AAAI
2020 (a Gaussian as wide as the box along each axis).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SPREAD = 1 / 6
"""Standard deviation of the Gaussian about a middle, as a share of the box."""
NARROWEST = 0.4
"""Its least standard deviation, in places."""
LARGEST_LOGARITHM = 10.0


def heat_of(boxes: Tensor, labels: int, stride: int, grid: tuple[int, ...]) -> Tensor:
    """Return what the K channels of middles ought to be: (N, K, *grid), 1 at each middle and less around it."""
    axes, (places, _, extents, there) = len(grid), _placed(boxes, stride, grid)
    spread = (extents * SPREAD).clamp(min=NARROWEST)
    near = there[(...,) + (None,) * axes].to(boxes.dtype)
    for axis, count in enumerate(grid):
        along = torch.arange(count, device=boxes.device, dtype=boxes.dtype)
        apart = (along - places[..., axis, None]) / spread[..., axis, None]
        shape = (*boxes.shape[:-1], *(count if other == axis else 1 for other in range(axes)))
        near = near * torch.exp(-apart.square() / 2).reshape(shape)
    of_label = [(boxes[..., 0] == label)[(...,) + (None,) * axes] for label in range(labels)]
    return torch.stack([(near * mine).amax(dim=-axes - 1) for mine in of_label], dim=-axes - 1)


def map_loss(found: Tensor, boxes: Tensor, labels: int, stride: int) -> Tensor:
    """Return each case's loss (N,): focal loss of the middles, L1 of extents and of the middles' places.

    All are sums divided by the case's number of boxes (by 1 where it has none), so that nothing depends on another
    case; nothing in here depends on values but by arithmetic, so that every engine of DP-SGD can follow.
    """
    grid = tuple(found.shape[2:])
    axes = len(grid)
    heat, logits = heat_of(boxes, labels, stride, grid), found[:, :labels]
    sure, unsure = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    middle = (heat == 1).to(found.dtype)
    at_middles = middle * sure * torch.exp(2 * unsure)
    elsewhere = (1 - middle) * (1 - heat) ** 4 * unsure * torch.exp(2 * sure)
    focal = -(at_middles + elsewhere).flatten(1).sum(dim=1)
    places, beyond, extents, there = _placed(boxes, stride, grid)
    wanted = torch.cat([extents.clamp(min=1e-3).log(), beyond], dim=-1)
    index = _flat(places, grid).unsqueeze(1).expand(-1, 2 * axes, -1)
    said = found[:, labels:].flatten(2).gather(2, index).transpose(1, 2)
    apart = ((said - wanted).abs().mean(dim=-1) * there).sum(dim=1) * 2
    return (focal + apart) / there.to(found.dtype).sum(dim=1).clamp(min=1)


def boxes_in(found: Tensor, labels: int, stride: int, most: int, suppression: float, least: float) -> list[Tensor]:
    """Return each case's boxes, surest first: (n, 2 + 2 axes), a row (label, score, first edges, last edges).

    A box is a place of the map that no neighbour beats. Of boxes of one label that overlap by more than `suppression`
    (IoU) the surest is kept. At most `most` a case, all with a score of at least `least`.
    """
    from monai.data.box_utils import batched_nms

    found = found.detach()
    grid, axes = tuple(found.shape[2:]), found.dim() - 2
    heat = torch.sigmoid(found[:, :labels].float())
    pool = functional.max_pool2d if axes == 2 else functional.max_pool3d
    heat = torch.where(pool(heat, 3, stride=1, padding=1) == heat, heat, 0.0).flatten(1)
    scores, order = heat.topk(min(most, heat.shape[1]), dim=1)
    label, place = order // math.prod(grid), order % math.prod(grid)
    of_place = found[:, labels:].float().flatten(2).gather(2, place.unsqueeze(1).expand(-1, 2 * axes, -1))
    extents = of_place[:, :axes].nan_to_num().clamp(max=LARGEST_LOGARITHM).exp().transpose(1, 2)
    beyond = of_place[:, axes:].nan_to_num().clamp(0, 1).transpose(1, 2)
    middles = torch.stack(torch.unravel_index(place, grid), dim=-1) + beyond
    whole = torch.tensor([n * stride for n in grid], device=found.device, dtype=torch.float32)
    first, last = (torch.minimum(((middles + side * extents / 2) * stride).clamp(min=0), whole) for side in (-1, 1))
    rows = torch.cat([label.unsqueeze(-1).float(), scores.unsqueeze(-1), first, last], dim=-1)
    kept = []
    for case in rows:
        case = case[(case[:, 1] >= least) & (case[:, 2 + axes :] > case[:, 2 : 2 + axes]).all(dim=1)]
        kept.append(case[batched_nms(case[:, 2:], case[:, 1], case[:, 0], suppression)] if len(case) else case)
    return kept


def _placed(boxes: Tensor, stride: int, grid: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each box's place on the grid, how far its middle lies beyond it, its extents in places; and whether it is one.

    All (N, M, axes), the last (N, M) bool. What is no box has place 0 and extent 0.
    """
    axes, there = len(grid), boxes[..., 0] >= 0
    corners = torch.where(there.unsqueeze(-1), boxes[..., 1:], 0.0) / stride
    first, last = corners[..., :axes], corners[..., axes:]
    middles = (first + last) / 2
    most = torch.tensor([n - 1 for n in grid], device=boxes.device, dtype=boxes.dtype)
    places = torch.minimum(middles.floor().clamp(min=0), most)
    return places, middles - places, last - first, there


def _flat(places: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Places (N, M, axes) as one number each, as `flatten` counts: (N, M) int64."""
    flat = torch.zeros_like(places[..., 0])
    for axis, count in enumerate(grid):
        flat = flat * count + places[..., axis]
    return flat.long()
