"""What there is to predict on: single images, volumes in one file, and DICOM series, found in a file or folder.

Only headers are read. Nothing is kept of what is found, and a header that names its patient is no hindrance: results go
back to that very patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from client.intake.dicom import read_header
from client.intake.folder import list_folder
from client.intake.formats import HEAD_BYTES, format_named, identify
from client.intake.image import FileRefusedError
from client.intake.pyramid import is_dicom, read_dicom_header
from common.errors import DataError

_ENDINGS = {".dcm", ".dicom", ".ima", ".nii", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".svs", ".h5", ".hdf5"}
"""Endings that a result's name does not repeat."""


@dataclass(frozen=True)
class Source:
    """What one result is written about: an image, a volume in one file, or the files of one DICOM series.

    `name` is where it stands below what was asked about, without its ending: results are called by it. `frames` says
    how many images each file has.
    """

    name: str
    format: str
    paths: tuple[Path, ...]
    frames: tuple[int, ...]

    @property
    def dicom(self) -> bool:
        """Whether results about it can be DICOM objects of its study."""
        return self.format == "dicom" or (self.slide and is_dicom(self.paths[0]))

    @property
    def slide(self) -> bool:
        """Whether it is a whole-slide image."""
        return format_named(self.format).tiles is not None

    @property
    def count(self) -> int:
        """How many images it has in all."""
        return sum(self.frames)


@dataclass(frozen=True)
class Found:
    """What can be predicted on, and the files that can't, each with its reason."""

    sources: tuple[Source, ...]
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _File:
    """A file by its path below the folder; `together` is the same for the files of one source."""

    path: str
    format: str
    frames: int
    together: tuple[Any, ...]


def find_sources(place: Path) -> Found:
    """Return the images, volumes and series of a file or a folder. Raises DataError when it can't be read."""
    if place.is_dir():
        listing = list_folder(place)
        folder, paths, refused = place, [file.path for file in listing.files], list(listing.refused)
    else:
        folder, paths, refused = place.parent, [place.name], []
    files = []
    for path in paths:
        try:
            files.append(_looked_at(folder, path))
        except FileRefusedError as error:
            refused.append((path, str(error)))
        except OSError as error:
            refused.append((path, f"can't be read: {error.strerror}"))
    groups: dict[tuple[Any, ...], list[_File]] = {}
    for file in files:
        groups.setdefault(file.together, []).append(file)
    names = _names([min(file.path for file in group) for group in groups.values()])
    sources = [
        Source(name, group[0].format, tuple(folder / file.path for file in group), tuple(file.frames for file in group))
        for name, group in zip(names, groups.values(), strict=True)
    ]
    return Found(tuple(sources), tuple(sorted(refused)))


def _looked_at(folder: Path, path: str) -> _File:
    """What the first bytes, and of DICOM the header, say of a file. Raises FileRefusedError, OSError."""
    with (folder / path).open("rb") as file:
        kind = identify(file.read(HEAD_BYTES))
    if kind.name == "table":
        raise FileRefusedError("a table's row, not an image")
    if kind.tiles is not None:
        levels = str(read_dicom_header(folder / path).SeriesInstanceUID) if is_dicom(folder / path) else path
        return _File(path, kind.name, 1, (kind.name, levels))
    if kind.name != "dicom":
        return _File(path, kind.name, _frames_of(kind.grid, folder / path), (path,))
    header = read_header(folder / path)
    frames = int(header.get("NumberOfFrames") or 1)
    series = str(header.get("SeriesInstanceUID") or "")
    if frames > 1 or not series:
        return _File(path, kind.name, frames, (path,))
    # A localiser's images share their series and differ in direction or size: they are no volume, nor one mask.
    directions = tuple(round(float(number), 3) for number in header.get("ImageOrientationPatient") or ())
    shape = (int(header.Rows), int(header.Columns))
    return _File(path, kind.name, 1, (str(header.get("StudyInstanceUID")), series, directions, shape))


def _frames_of(grid: Any, path: Path) -> int:
    return 1 if grid is None else len(grid([path]).order)


def _names(paths: Sequence[str]) -> list[str]:
    """A name for each path: without its ending, and different from the others'."""
    taken: set[str] = set()
    return [_free(_stem(path), taken) for path in paths]


def _stem(path: str) -> str:
    found = PurePosixPath(path)
    while found.suffix.lower() in _ENDINGS and found.stem:
        found = found.with_suffix("")
    return str(found)


def _free(name: str, taken: set[str]) -> str:
    candidates: Iterable[str] = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
    found = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(found)
    return found


def require_sources(found: Found, place: Path) -> None:
    """Raise DataError when there is nothing to predict on; the message has the first reasons."""
    if found.sources:
        return
    if not found.refused:
        raise DataError(f"{place}: the folder has no file: is it the right one, and is it mounted?")
    path, reason = found.refused[0]
    more = f" (and {len(found.refused) - 1} more files)" if len(found.refused) > 1 else ""
    where = place / path if place.is_dir() else place
    raise DataError(f"{where}: {reason}{more}: there is no image to predict on")
