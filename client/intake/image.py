"""What every format gives of a file: facts about it, and its pixels as the network will see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import DataError

Pixels = npt.NDArray[np.float32]
"""Intensities in [0, 1]: an image is (rows, columns, channels), a volume (slices, rows, columns, channels)."""


class FileRefusedError(DataError):
    """One file that can't be used. The message is the reason, without the file's name and without any patient's."""


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


@dataclass(frozen=True)
class Format:
    """One file format of the table `FORMATS`.

    `matches` looks at a file's first KiB. `inspect` reads the whole file, pixels included, and raises
    FileRefusedError. `frames` yields each 2D image; `volume` assembles one 3D image of one or several files and is
    None for a format that has none.
    """

    name: str
    matches: Callable[[bytes], bool]
    inspect: Callable[[Path], Facts]
    frames: Callable[[Path], Iterator[Pixels]]
    volume: Callable[[Sequence[Path]], Pixels] | None = None


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an exception's text as one short line."""
    strerror = getattr(error, "strerror", None)
    text = " ".join(str(strerror or error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
