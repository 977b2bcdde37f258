"""PNG and JPEG. They name no patient: the label file or the folder says whose they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from client.intake.image import Facts, FileRefusedError, Pixels, one_line
from client.intake.intensity import full_range, stretched
from client.intake.sight import Sight

_EXIF_OF_PEOPLE = {
    ExifTags.Base.Artist: "Artist",
    ExifTags.Base.XPAuthor: "XPAuthor",
    ExifTags.Base.CameraOwnerName: "CameraOwnerName",
    ExifTags.Base.GPSInfo: "GPSInfo",
}
_TEXT_OF_PEOPLE = ("Author", "Patient", "PatientName", "Patient Name")
_GREY_MODES = {"1", "L", "I", "F", "I;16", "I;16B", "I;16L", "LA"}


def matches(head: bytes) -> bool:
    """Whether the first bytes are those of a PNG or a JPEG file."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def inspect(path: Path) -> Facts:
    """Decode the image and return what it says of itself. Raises FileRefusedError when it is damaged or cut short."""
    pixels, identifiers = _read(path)
    rows, columns, channels = pixels.shape
    sight = Sight()
    sight.add(pixels)
    return Facts(
        modality="OT", frames=1, rows=rows, columns=columns, channels=channels, identifiers=identifiers,
        seen=sight.seen(),
    )  # fmt: skip


def frames(path: Path) -> Iterator[Pixels]:
    """Yield the one image as (rows, columns, channels) in [0, 1]. Raises FileRefusedError as `inspect` does."""
    yield _read(path)[0]


def _read(path: Path) -> tuple[Pixels, tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                identifiers = _identifiers(image)
                upright = ImageOps.exif_transpose(image)
                return _pixels(upright), identifiers
        except Exception as error:  # foreign bytes make Pillow raise many kinds
            raise FileRefusedError(f"the image can't be decoded: {one_line(error)}".replace(str(path), "it")) from error


def _pixels(image: Image.Image) -> Pixels:
    """Grey stays grey, all else becomes RGB; transparency is dropped. Over 8 bits: percentiles (see intensity.py)."""
    if image.mode not in _GREY_MODES:
        return full_range(np.asarray(image.convert("RGB")), 255)
    grey = image.convert("L") if image.mode in {"1", "LA"} else image
    values: npt.NDArray[Any] = np.asarray(grey)
    shown = full_range(values, 255) if values.dtype == np.uint8 else stretched(values)
    return shown[..., np.newaxis]


def _identifiers(image: Image.Image) -> tuple[str, ...]:
    """Names of metadata that tell a person or a place."""
    exif = image.getexif()
    tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    found = [name for tag, name in _EXIF_OF_PEOPLE.items() if str(tags.get(tag, "")).strip("\0 ")]
    found += [name for name in _TEXT_OF_PEOPLE if str(image.info.get(name, "")).strip()]
    return tuple(sorted(found))
