"""What every format gives of a file: facts about it, and its pixels as the network will see them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import DataError

Pixels = npt.NDArray[np.float32]
"""Intensities in [0, 1]: an image is (rows, columns, channels), a volume (slices, rows, columns, channels).

1 channel is grey and 3 are colour; 2 are the real and the imaginary part of a complex image, of at most 1 in magnitude.
"""


class FileRefusedError(DataError):
    """One file that can't be used. The message is the reason, without the file's name and without any patient's."""


@dataclass(frozen=True)
class Acquired:
    """How an image was made, of whom in general, and where its slices lie. "", None or () is what nobody says.

    Units: field T; age the decade's first year; spacing (between rows, between columns), thickness and between (the
    declared distance of slices) mm. `orientation` are the six direction cosines where all slices share them; `places`
    the distance of each slice along their normal, in mm. `protocol` are known words of the series' description.
    """

    manufacturer: str = ""
    model: str = ""
    field: float | None = None
    protocol: str = ""
    sex: str = ""
    age: int | None = None
    spacing: tuple[float, ...] = ()
    thickness: float | None = None
    between: float | None = None
    orientation: tuple[float, ...] = ()
    places: tuple[float, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What is kept of a file's pixels, as the network sees them (see sight.py); nothing for what has none.

    `pixels` is a digest of all of them; `mean`, `deviation` and `histogram` (in 10,000ths) are of the intensities in
    [0, 1]; `copy` is one image in 24 x 25 grey squares, in base64.
    """

    pixels: str = ""
    mean: float = 0.0
    deviation: float = 0.0
    histogram: tuple[int, ...] = ()
    copy: str = ""


@dataclass(frozen=True)
class Copy:
    """The de-identified copy of a DICOM file, which is read in its place; or, without a path, that there is none.

    `method` tells how it is made, `treatment` what was done: counts by attribute (`deidentification.treatment`).
    """

    method: str
    path: str = ""
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    treatment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a file says of itself. The identities are as they stand in the file: they never leave memory.

    `frames` counts the 2D images in it; `identifiers` are the keywords of attributes that identify a person.
    `burned_in` is True or False as the file states it, None when it does not say.
    """

    modality: str
    frames: int
    rows: int
    columns: int
    channels: int
    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    identifiers: tuple[str, ...] = ()
    burned_in: bool | None = None
    acquired: Acquired = field(default_factory=Acquired)
    seen: Seen = field(default_factory=Seen)


@dataclass(frozen=True)
class Grid:
    """Where the slices of a volume come from, and where they lie.

    `order` has for each slice the place of its file among those given, and of its frame in that file. `spacing` is the
    distance of slices, rows and columns in mm, None where the files do not say; a single image has a slice distance of
    its thickness, or 1. `affine` takes (slice, row, column, 1) to x, y, z in mm towards the patient's left, posterior
    and head (LPS, PS3.3 C.7.6.2.1.1); None where the files do not say.
    """

    order: tuple[tuple[int, int], ...]
    spacing: tuple[float, float, float] | None = None
    affine: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Cut:
    """How a slide is cut: at most so many tiles of rows x columns pixels of `mpp` micrometres."""

    tiles: int
    rows: int
    columns: int
    mpp: float


@dataclass(frozen=True)
class Format:
    """One file format of the table `FORMATS`.

    `matches` looks at a file's first KiB. `inspect` reads the whole file, pixels included, and raises
    FileRefusedError. `frames` yields each 2D image; `volume` assembles one 3D image of one or several files and is
    None for a format that has none. `grid` says where the slices of such a volume, or the frames of a file, lie.
    `tiles` yields the tiles of a slide, of one or several files, and is None for a format that has no slides.
    """

    name: str
    matches: Callable[[bytes], bool]
    inspect: Callable[[Path], Facts]
    frames: Callable[[Path], Iterator[Pixels]]
    volume: Callable[[Sequence[Path]], Pixels] | None = None
    grid: Callable[[Sequence[Path]], Grid] | None = None
    tiles: Callable[[Sequence[Path], Cut], Iterator[Pixels]] | None = None


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an exception's text as one short line."""
    strerror = getattr(error, "strerror", None)
    text = " ".join(str(strerror or error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextmanager
def reasoned(problem: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever is raised for a broken file, but for `passing`, into one reason without the file's name.

    Warnings are not for the steward. Raises FileRefusedError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except FileRefusedError:
            raise
        except passing:
            raise
        except MemoryError as error:
            raise FileRefusedError(f"{problem}: it needs more memory than there is") from error
        except Exception as error:  # foreign bytes make pydicom and its plugins raise nearly anything
            raise FileRefusedError(f"{problem}: {one_line(error)}") from error
