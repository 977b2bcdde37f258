"""How an image, its mask and its boxes come onto the job's grid, and back: one placement for all three.

By default an image is stretched to the job's size, not keeping the aspect. With `data.spacing` it is brought to that
spacing (mm) and then cropped, or padded with 0, about its middle. Images go through an antialiased triangle filter
along each axis; masks take the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.intake.image import Pixels
from client.intake.intensity import with_channels
from common.errors import DataError
from common.job import DataSection

Extent = tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """An image of `extent` is resized to `resized`, and its first pixel then lies at `offset` of an image of `size`."""

    extent: Extent
    resized: Extent
    offset: tuple[int, ...]
    size: Extent

    def scaled(self, coordinates: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return where points (..., axes) of the image lie on the job's grid, in pixels from its first edge."""
        return np.asarray(coordinates * np.divide(self.resized, self.extent) + self.offset, dtype=np.float64)

    def unscaled(self, coordinates: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return where points (..., axes) of the job's grid lie in the image. Inverse of `scaled`."""
        return np.asarray((coordinates - np.array(self.offset)) / np.divide(self.resized, self.extent))


def placement(extent: Sequence[int], data: DataSection, spacing: Sequence[float] | None) -> Placement:
    """Return the placement of an image of `extent` whose pixels lie `spacing` mm apart (None: it does not matter)."""
    whole, size = tuple(extent), tuple(data.size)
    if not data.spacing or spacing is None:
        return Placement(whole, size, (0,) * len(size), size)
    resized = tuple(max(1, round(n * mm / step)) for n, mm, step in zip(whole, spacing, data.spacing, strict=True))
    offset = tuple((wanted - there) // 2 for wanted, there in zip(size, resized, strict=True))
    return Placement(whole, resized, offset, size)


def as_case(image: Pixels, data: DataSection, spacing: Sequence[float] | None = None) -> Pixels:
    """Return an image or volume (*extent, C) in the form that the job wants: (C, *size)."""
    shown = with_channels(image, data.channels)
    place = placement(shown.shape[:-1], data, spacing)
    channels = np.moveaxis(shown, -1, 0)
    return np.stack([fitted(_resized(channel, place.resized), place) for channel in channels])


def as_mask(mask: npt.NDArray[Any], data: DataSection, spacing: Sequence[float] | None = None) -> npt.NDArray[Any]:
    """Return a mask (*extent) as the job wants it: (*size), each pixel that of the nearest place."""
    place = placement(mask.shape, data, spacing)
    return fitted(nearest(mask, place.resized), place)


def as_boxes(
    boxes: npt.NDArray[np.float32],
    extent: Sequence[int],
    data: DataSection,
    most: int,
    spacing: Sequence[float] | None = None,
) -> npt.NDArray[np.float32]:
    """Return boxes (n, 1 + 2 axes) of an image of `extent` on the job's grid: (most, 1 + 2 axes), -1 where is none.

    A box is cut off where the image is; one of which nothing is left is none. Raises DataError for more than `most`.
    """
    place, axes = placement(extent, data, spacing), len(data.size)
    corners = np.clip(place.scaled(boxes[:, 1:].reshape(-1, 2, axes)), 0, place.size)
    there = (corners[:, 1] - corners[:, 0] > 0).all(axis=1)
    if there.sum() > most:
        raise DataError(f"an image has {there.sum()} boxes, and the job takes {most}: raise task.parameters.most_boxes")
    found = np.full((most, 1 + 2 * axes), -1, dtype=np.float32)
    kept = np.concatenate([boxes[:, :1], corners.reshape(-1, 2 * axes)], axis=1)[there]
    found[: len(kept)] = kept
    return found


def mask_back(mask: npt.NDArray[Any], place: Placement) -> npt.NDArray[Any]:
    """Return a mask of the job's grid (*size) on the image's own (*extent); what was cropped away is 0."""
    resized = np.zeros(place.resized, dtype=mask.dtype)
    ours, theirs = _overlap(place)
    resized[theirs] = mask[ours]
    return nearest(resized, place.extent)


def map_back(values: Pixels, place: Placement) -> Pixels:
    """Return a map (*size) of values in [0, 1] on the image's own grid (*extent), smoothly; what was cropped is 0."""
    resized = np.zeros(place.resized, dtype=np.float32)
    ours, theirs = _overlap(place)
    resized[theirs] = values[ours]
    return _resized(resized, place.extent)


def nearest(mask: npt.NDArray[Any], size: Sequence[int]) -> npt.NDArray[Any]:
    """Return an array at another size: each place takes the value of the one whose middle is nearest."""
    for axis, (there, wanted) in enumerate(zip(mask.shape, size, strict=True)):
        if there != wanted:
            places = np.minimum(((np.arange(wanted) + 0.5) * there / wanted).astype(int), there - 1)
            mask = np.take(mask, places, axis=axis)
    return mask


def fitted(resized: npt.NDArray[Any], place: Placement) -> npt.NDArray[Any]:
    """Return a resized image cropped, or padded with 0, to the job's size."""
    if place.resized == place.size:
        return resized
    ours, theirs = _overlap(place)
    found = np.zeros(place.size, dtype=resized.dtype)
    found[ours] = resized[theirs]
    return found


def _overlap(place: Placement) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of the job's grid that the resized image covers, and that part of the resized image."""
    starts = [max(0, offset) for offset in place.offset]
    ends = [min(n, off + there) for n, off, there in zip(place.size, place.offset, place.resized, strict=True)]
    ours = tuple(slice(start, max(start, end)) for start, end in zip(starts, ends, strict=True))
    theirs = tuple(slice(own.start - off, own.stop - off) for own, off in zip(ours, place.offset, strict=True))
    return ours, theirs


def _resized(channel: Pixels, size: Extent) -> Pixels:
    """Resize one channel. The triangle filter is separable: a volume is resized in its slices, then across."""
    if len(size) == 2:
        return _resized_plane(channel, (size[0], size[1]))
    slices, rows, columns = size
    planes = np.stack([_resized_plane(plane, (rows, columns)) for plane in channel])
    across = _resized_plane(planes.reshape(len(planes), -1), (slices, rows * columns))
    return across.reshape(slices, rows, columns)


def _resized_plane(plane: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (rows, columns) by a triangle filter whose support grows with the reduction, so nothing aliases."""
    if plane.shape == size:
        return plane
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))  # mode "F"
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized, dtype=np.float32), -1, 1)  # parts of a complex image may be negative
