"""Faces in head CT and MRI: where they are, and what of a slice belongs to one.

What it does. The head's surface is found in the whole series: its highest point, and its foremost point above the
eyes. From these a plane is laid, tilted backwards, that begins 80 mm below the highest point, 8 mm behind the forehead,
and goes 3 mm back for every 4 mm down. All that lies in front of it is blanked: eyelids, nose, mouth, chin, the front
of the eyes and sinuses. Above the plane's beginning nothing is touched, and behind it neither. The measures are for a
head of 190 mm from front to back, and are scaled to the head in hand.

What it does not do. It is geometry and no anatomy: it supposes a head that lies straight (patient coordinates, PS3.3
C.7.6.2.1.1). Ears, teeth behind the plane and the skull's form stay. It makes recognition harder, and proves nothing.
A head without its highest point in the series, or without positions, can't be treated: such files are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from client.intake.dicom import frame_header

MODALITIES = frozenset({"CT", "MR"})
WORDS = frozenset([
    "head", "brain", "skull", "cranium", "cranial", "cerebral", "cerebrum", "face", "facial", "orbit", "orbits",
    "sinus", "sinuses", "headneck", "neuro", "pituitary", "hippocampus", "kopf", "schaedel", "gehirn", "hirn",
])  # fmt: skip
_SAYS = ("BodyPartExamined", "ProtocolName", "SeriesDescription", "StudyDescription", "RequestedProcedureDescription")
_BEGIN, _BEHIND, _SLOPE = 80.0, 8.0, 0.75
_FOREHEAD = (25.0, 75.0)
_LENGTH, _SCALES = 190.0, (0.7, 1.2)
_STEP = 2.0
_BIN = 4.0
_AIR, _FAINT = -300.0, 0.15
_LEAST_AREA = 1000.0
_CUT_OFF = 0.45
"""Units: mm; the air's bound HU; the least cross-section of a head mm2; faint, and what is cut off, are shares."""


@dataclass(frozen=True)
class Plane:
    """The plane behind a face: `top` is the head's highest z, `front` its foremost y (LPS, mm)."""

    top: float
    front: float
    scale: float

    def is_face(self, y: npt.NDArray[np.float64], z: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether points in patient coordinates are in front of the plane."""
        below = (self.top - z) / self.scale - _BEGIN
        return np.asarray((below >= 0) & ((y - self.front) / self.scale < _BEHIND + _SLOPE * below))


def is_head(header: Dataset) -> bool:
    """Whether a CT or MR file says, by body part, protocol or description, that it shows a head."""
    if header.get("Modality") not in MODALITIES:
        return False
    said = [str(header.get(keyword) or "") for keyword in _SAYS]
    said += [str(item.get("CodeMeaning") or "") for item in header.get("AnatomicRegionSequence") or ()]
    return not WORDS.isdisjoint(re.findall(r"[a-z]+", " ".join(said).casefold()))


@dataclass
class Survey:
    """The surface of one series' head, gathered file by file: points some 2 mm apart, with their values."""

    points: list[npt.NDArray[np.float32]] = field(default_factory=list)
    volume: float = 0.0
    ct: bool = False
    lost: bool = False

    def add(self, header: Dataset, stored: npt.NDArray[Any]) -> None:
        """Add a file's frames (frames, rows, columns)."""
        self.ct = header.get("Modality") == "CT"
        for index, frame in enumerate(stored):
            at = frame_header(header, index)
            grid = _grid(at, frame.shape[:2])
            if grid is None or frame.ndim != 2:
                self.lost = True
                return
            y, z, (between_rows, between_columns) = grid
            rows, columns = (max(1, round(_STEP / between)) for between in (between_rows, between_columns))
            values = apply_modality_lut(frame, at)[::rows, ::columns]
            part = np.stack([y[::rows, ::columns], z[::rows, ::columns], values]).reshape(3, -1)
            self.points.append(part.astype(np.float32))
            self.volume = between_rows * rows * between_columns * columns * _thickness(at)

    def plane(self) -> Plane | str:
        """Return the plane behind the face, or why there is none."""
        if self.lost or not self.points:
            return "the slices' positions in the patient are not known"
        y, z, values = np.concatenate(self.points, axis=1)
        bound = _AIR if self.ct else _FAINT * float(np.percentile(values, 99))
        solid = values > bound
        if not solid.any():
            return "no head is seen in it"
        levels = np.floor((z - z.min()) / _BIN).astype(int)
        areas = np.bincount(levels[solid], minlength=levels.max() + 1) * self.volume / _BIN
        wide = np.flatnonzero(areas >= _LEAST_AREA)
        if not len(wide):
            return "no head is seen in it"
        if wide[-1] >= len(areas) - 2 and areas[-2:].max() > _CUT_OFF * areas.max():
            return "the head's highest point is not in it"
        top = float(z.min() + (wide[-1] + 1) * _BIN)
        upper = solid & (top - z > _FOREHEAD[0]) & (top - z < _FOREHEAD[1])
        if not upper.any():
            return "it ends above the forehead"
        front, back = (float(edge) for edge in np.percentile(y[upper], [0.2, 99.8]))
        return Plane(top, front, float(np.clip((back - front) / _LENGTH, *_SCALES)))


def face_masks(header: Dataset, plane: Plane, shape: tuple[int, int], frames: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield, for each frame, which pixels belong to the face."""
    for index in range(frames):
        grid = _grid(frame_header(header, index), shape)
        if grid is None:  # the survey of the same file has said so before
            return
        yield plane.is_face(grid[0], grid[1])


Grid = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[float, float]]


def _grid(header: Dataset, shape: tuple[int, int]) -> Grid | None:
    """The y and z of each pixel's centre (PS3.3 C.7.6.2.1.1), and the spacing of rows and columns, if known."""
    place = [_numbers(header, keyword, count) for keyword, count in (
        ("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))]  # fmt: skip
    if any(part is None for part in place):
        return None
    position, orientation, spacing = (np.asarray(part) for part in place)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    y, z = (
        position[axis] + orientation[axis] * spacing[1] * columns + orientation[3 + axis] * spacing[0] * rows
        for axis in (1, 2)
    )
    return y, z, (float(spacing[0]), float(spacing[1]))


def _thickness(header: Dataset) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        if found := _numbers(header, keyword, 1):
            return abs(found[0]) or 1.0
    return 1.0


def _numbers(header: Dataset, keyword: str, count: int) -> list[float] | None:
    value = header.get(keyword)
    several = [value] if isinstance(value, int | float) else list(value or ())
    found = [float(number) for number in several]
    return found if len(found) == count and bool(np.isfinite(found).all()) else None
