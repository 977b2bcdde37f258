"""A network on the images of a source, one image or volume after another: as they come, so that memory stays in bounds.

An image becomes what the network sees exactly as in training: by its format's intensities and `client/placing.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np
import torch
from torch import Tensor, nn

from client.evaluation import BATCH, PIXELS
from client.intake.formats import format_named
from client.intake.image import FileRefusedError, Grid, Pixels
from client.placing import Placement, as_case, placement
from client.results.source import Source
from common.job import DataSection, Job
from common.tasks.task import Task


@dataclass(frozen=True)
class View:
    """One image or volume as the network sees it.

    Shapes: image (C, *size); own (*extent, C), the image as it was before, where it was asked for.

    `order` has for each of its slices the place of its file in the source, and of its frame in that file; of a 2D
    image, the one. `place` says where its pixels lie on the job's grid.
    """

    image: Pixels
    own: Pixels | None
    order: tuple[tuple[int, int], ...]
    place: Placement


@dataclass(frozen=True)
class Answer:
    """What the network says of a view: its raw outputs, (outputs,) or (outputs, *size)."""

    view: View
    outputs: Tensor


def views(source: Source, data: DataSection, *, own: bool = False) -> Iterator[View]:
    """Yield what the network sees of a source: each image at a 2D size, the whole volume at a 3D one.

    With `own` the image as it was before goes with it.

    Raises FileRefusedError when it can't be decoded, or does not fit the size.
    """
    if data.bagged:
        raise FileRefusedError("no slide, and the model is one of slides")
    if len(data.size) == 3:
        yield _volume(source, data, own=own)
        return
    kind = format_named(source.format)
    for file, path in enumerate(source.paths):
        grid = kind.grid([path]) if kind.grid is not None and data.spacing else Grid(())
        for frame, (image, spacing) in enumerate(zip(kind.frames(path), repeat(_spacing(grid, data)), strict=False)):
            place = placement(image.shape[:-1], data, spacing)
            yield View(as_case(image, data, spacing), image if own else None, ((file, frame),), place)


def _volume(source: Source, data: DataSection, *, own: bool) -> View:
    kind = format_named(source.format)
    if kind.volume is None or kind.grid is None:
        raise FileRefusedError("a 2D image, and the model is one of volumes")
    image, grid = kind.volume(source.paths), kind.grid(source.paths)
    spacing = _spacing(grid, data)
    place = placement(image.shape[:-1], data, spacing)
    return View(as_case(image, data, spacing), image if own else None, grid.order, place)


def _spacing(grid: Grid, data: DataSection) -> tuple[float, ...] | None:
    """The distances of pixels in mm, where the job asks for them. Raises FileRefusedError where nothing says them."""
    if not data.spacing:
        return None
    if grid.spacing is None:
        raise FileRefusedError("it does not say how far its pixels lie apart, and the model needs that (data.spacing)")
    return grid.spacing[-len(data.size) :]


def answers(network: nn.Module, task: Task, job: Job, seen: Iterable[View], device: torch.device) -> Iterator[Answer]:
    """Yield what the network says of each view, in their order, some at a time."""
    network.eval()
    pixels = job.data.channels * int(np.prod(job.data.size))
    waiting, most = iter(seen), max(1, min(BATCH, PIXELS // pixels))
    while some := list(islice(waiting, most)):
        images = torch.from_numpy(np.stack([view.image for view in some]))
        with torch.inference_mode():
            outputs = task.infer(network, _seen(task, images).to(device)).float().cpu()
        yield from (Answer(view, one) for view, one in zip(some, outputs, strict=True))


def _seen(task: Task, images: Tensor) -> Tensor:
    """What the network sees of whole images (of k-space, a part). It takes targets, and does not depend on them."""
    targets = task.made_up(len(images), tuple(images.shape[1:]), torch.Generator().manual_seed(0))
    return task.inputs(images, targets, None)[0]
