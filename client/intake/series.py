"""A DICOM volume: the frames of one file or of one series, put in order along the slices' normal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.intake.acquisition import numbers, place
from client.intake.dicom import frame_header, frames, is_inverted, modality_values, read_header, window_of
from client.intake.image import FileRefusedError, Grid, Pixels
from client.intake.intensity import Window, stretched, windowed

_SAME_DIRECTION = 1e-3
_LARGEST_GAP = 1.5
"""A gap of more than this many median slice distances is a missing slice."""


@dataclass(frozen=True)
class Place:
    """Where one frame lies: of which file and frame it is, and what its header says.

    `normal` and `distance` along it (mm), `position` of the first pixel's middle, directions of a row and of a column,
    and `spacing` of rows and columns (mm): None when the header does not say.
    """

    source: tuple[int, int]
    number: int | None
    normal: npt.NDArray[np.float64] | None = None
    distance: float | None = None
    position: npt.NDArray[np.float64] | None = None
    along_row: npt.NDArray[np.float64] | None = None
    along_column: npt.NDArray[np.float64] | None = None
    spacing: tuple[float, float] | None = None
    thickness: float | None = None


@dataclass(frozen=True)
class Slice:
    """One frame in modality units, its padding, and where it is."""

    values: npt.NDArray[Any]
    padding: npt.NDArray[np.bool_]
    window: Window | None
    place: Place


def grid(paths: Sequence[Path]) -> Grid:
    """Return where the slices lie that `volume` makes of these files; of a single image, where that lies.

    Only headers are read. Raises FileRefusedError as `volume` does.
    """
    places = []
    for file, path in enumerate(paths):
        header = read_header(path)
        count = int(header.get("NumberOfFrames") or 1)
        places += [place_of(frame_header(header, frame), (file, frame)) for frame in range(count)]
    ordered = places if len(places) < 2 else _in_order(places)
    return Grid(tuple(place.source for place in ordered), *_measured(ordered))


def _measured(places: Sequence[Place]) -> tuple[tuple[float, float, float] | None, npt.NDArray[np.float64] | None]:
    """The spacing and the affine of slices in order."""
    first, last = places[0], places[-1]
    if first.spacing is None:
        return None, None
    between = first.thickness or 1.0
    if first.position is None or first.along_row is None or first.along_column is None or first.normal is None:
        return (between, *first.spacing), None
    step = first.normal * between
    if len(places) > 1 and last.position is not None:
        step = (last.position - first.position) / (len(places) - 1)
        between = float(np.linalg.norm(step)) or between
    affine = np.eye(4)
    # A step to the next row goes along a column, and one to the next column along a row.
    affine[:3, 0], affine[:3, 3] = step, first.position
    affine[:3, 1], affine[:3, 2] = first.along_column * first.spacing[0], first.along_row * first.spacing[1]
    return (between, *first.spacing), affine


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
    found = {item.place.source: item for file, path in enumerate(paths) for item in _slices(path, file)}
    slices = [found[place.source] for place in _in_order([item.place for item in found.values()])]
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


def _slices(path: Path, file: int) -> list[Slice]:
    header = read_header(path)
    return [
        Slice(values, padding, window_of(frame), place_of(frame, (file, index)))
        for index, (frame, values, padding) in enumerate(modality_values(path, header))
    ]


def place_of(frame: Dataset, source: tuple[int, int] = (0, 0)) -> Place:
    """Return where a frame lies, from its header as `frame_header` gives it."""
    spacing, thickness = (
        numbers(frame, "PixelSpacing") or numbers(frame, "ImagerPixelSpacing"),
        numbers(frame, "SliceThickness"),
    )
    normal, distance = place(frame)
    found = Place(
        source,
        _number(frame),
        normal,
        distance,
        spacing=(spacing[0], spacing[1]) if len(spacing) == 2 and min(spacing) > 0 else None,
        thickness=thickness[0] if len(thickness) == 1 and thickness[0] > 0 else None,
    )
    if normal is None:
        return found
    directions = np.asarray(numbers(frame, "ImageOrientationPatient"))
    position = np.asarray(numbers(frame, "ImagePositionPatient"))
    return replace(found, position=position, along_row=directions[:3], along_column=directions[3:])


def _number(frame: Dataset) -> int | None:
    try:
        return int(frame.InstanceNumber)
    except (AttributeError, TypeError, ValueError):
        return None


def _in_order(places: list[Place]) -> list[Place]:
    if len(places) < 2:
        raise FileRefusedError("a single 2D image, not a volume")
    if all(place.distance is not None for place in places):
        return _by_position(places)
    numbers = [place.number for place in places]
    if len(set(numbers)) == 1:  # the frames of one file stand in their order
        return places
    if None in numbers or len(set(numbers)) < len(numbers):
        raise FileRefusedError("the slices of the series have neither positions nor distinct instance numbers")
    return sorted(places, key=lambda place: place.number or 0)


def _by_position(places: list[Place]) -> list[Place]:
    normal = places[0].normal
    if any(np.abs(place.normal - normal).max() > _SAME_DIRECTION for place in places):  # type: ignore[operator]
        raise FileRefusedError("the slices of the series point in different directions")
    ordered = sorted(places, key=lambda place: place.distance or 0.0)
    gaps = np.diff([place.distance or 0.0 for place in ordered])
    if gaps.min() < 1e-3 * max(float(np.median(gaps)), 1e-6):
        raise FileRefusedError("the series has several images at one position: not a single volume")
    if gaps.max() > _LARGEST_GAP * float(np.median(gaps)):
        raise FileRefusedError("the series has a gap: a slice is missing")
    return ordered
