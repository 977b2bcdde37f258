"""A DICOM volume: the frames of one file or of one series, put in order along the slices' normal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.intake.acquisition import place
from client.intake.dicom import frames, is_inverted, modality_values, read_header, window_of
from client.intake.image import FileRefusedError, Pixels
from client.intake.intensity import Window, stretched, windowed

_SAME_DIRECTION = 1e-3
_LARGEST_GAP = 1.5
"""A gap of more than this many median slice distances is a missing slice."""


@dataclass(frozen=True)
class Slice:
    """One frame in modality units, its padding, and where it is: distance along the normal in mm, or None."""

    values: npt.NDArray[Any]
    padding: npt.NDArray[np.bool_]
    window: Window | None
    normal: npt.NDArray[np.float64] | None
    distance: float | None
    number: int | None


def volume(paths: Sequence[Path]) -> Pixels:
    """Assemble a multi-frame file, or the single-frame files of one series, as (slices, rows, columns, channels).

    Slices are sorted by Image Position (Patient) along the normal of Image Orientation (Patient), PS3.3 C.7.6.2.1.1;
    without positions by Instance Number, and frames of one file keep their order. A VOI window is used when every
    slice has the same one; else the percentiles of the whole volume, so that slices stay comparable.

    Raises
    ------
    FileRefusedError
        A file can't be decoded; or the slices differ in shape or direction, share a position, or one is missing.
    """
    header = read_header(paths[0])
    if str(header.get("Modality", "")) == "SM":
        raise FileRefusedError("the frames of a slide are tiles, not the slices of a volume")
    if int(header.get("SamplesPerPixel", 1)) > 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR":
        return _colour_volume(paths)
    slices = _in_order([item for path in paths for item in _slices(path)])
    if len({item.values.shape for item in slices}) > 1:
        raise FileRefusedError("the slices of the series differ in size")
    values = np.stack([item.values for item in slices])
    padding = np.stack([item.padding for item in slices])
    windows = {item.window for item in slices}
    window = windows.pop() if len(windows) == 1 else None
    shown = stretched(values, ~padding) if window is None else windowed(values, window)
    if is_inverted(header):
        shown = 1 - shown
    shown[padding] = 0
    return shown[..., np.newaxis]


def _colour_volume(paths: Sequence[Path]) -> Pixels:
    if len(paths) > 1:
        raise FileRefusedError("colour images of one series are no volume")
    return np.stack(list(frames(paths[0])))


def _slices(path: Path) -> list[Slice]:
    header = read_header(path)
    return [
        Slice(values, padding, window_of(frame), *place(frame), _number(frame))
        for frame, values, padding in modality_values(path, header)
    ]


def _number(frame: Dataset) -> int | None:
    try:
        return int(frame.InstanceNumber)
    except (AttributeError, TypeError, ValueError):
        return None


def _in_order(slices: list[Slice]) -> list[Slice]:
    if len(slices) < 2:
        raise FileRefusedError("a single 2D image, not a volume")
    if all(item.distance is not None for item in slices):
        return _by_position(slices)
    numbers = [item.number for item in slices]
    if len(set(numbers)) == 1:  # the frames of one file stand in their order
        return slices
    if None in numbers or len(set(numbers)) < len(numbers):
        raise FileRefusedError("the slices of the series have neither positions nor distinct instance numbers")
    return sorted(slices, key=lambda item: item.number or 0)


def _by_position(slices: list[Slice]) -> list[Slice]:
    normal = slices[0].normal
    if any(np.abs(item.normal - normal).max() > _SAME_DIRECTION for item in slices):  # type: ignore[operator]
        raise FileRefusedError("the slices of the series point in different directions")
    ordered = sorted(slices, key=lambda item: item.distance or 0.0)
    gaps = np.diff([item.distance or 0.0 for item in ordered])
    if gaps.min() < 1e-3 * max(float(np.median(gaps)), 1e-6):
        raise FileRefusedError("the series has several images at one position: not a single volume")
    if gaps.max() > _LARGEST_GAP * float(np.median(gaps)):
        raise FileRefusedError("the series has a gap: a slice is missing")
    return ordered
