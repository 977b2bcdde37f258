"""NIfTI-1 and NIfTI-2, plain or gzipped, in one file. The slices are axial, as in DICOM: rows run to posterior."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.imageglobals import LoggingOutputSuppressor

from client.intake.image import Acquired, Facts, FileRefusedError, Pixels, one_line
from client.intake.intensity import stretched
from client.intake.sight import Sight

_GZIP = b"\x1f\x8b"
_DICOM_EXTENSION = 2
"""NIfTI extension code of an embedded DICOM header."""


def matches(head: bytes) -> bool:
    """Whether the first bytes, unpacked if they are gzipped, are a NIfTI header."""
    start = _unpacked(head) if head.startswith(_GZIP) else head
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    if 540 in sizes:
        return start[4:7] in {b"n+2", b"ni2"}
    return 348 in sizes and start[344:347] in {b"n+1", b"ni1"}


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 600)
    except zlib.error:
        return b""


def inspect(path: Path) -> Facts:
    """Read the volume and return what it says of itself. Raises FileRefusedError when it can't be used."""
    pixels, identifiers, how = _read(path)
    slices, rows, columns, _ = pixels.shape
    sight = Sight()
    for image in pixels:
        sight.add(image)
    return Facts(
        modality="OT", frames=slices, rows=rows, columns=columns, channels=1, identifiers=identifiers,
        acquired=how, seen=sight.seen(),
    )  # fmt: skip


def frames(path: Path) -> Iterator[Pixels]:
    """Yield each axial slice as (rows, columns, 1), its intensities set by the whole volume."""
    yield from _read(path)[0]


def volume(paths: Sequence[Path]) -> Pixels:
    """Return the volume of the one file as (slices, rows, columns, 1) in [0, 1]. Raises FileRefusedError."""
    pixels = _read(paths[0])[0]
    if len(pixels) < 2:
        raise FileRefusedError("a single 2D image, not a volume")
    return pixels


def _read(path: Path) -> tuple[Pixels, tuple[str, ...], Acquired]:
    try:
        with LoggingOutputSuppressor():  # what nibabel makes of a broken header is in the reason
            values, identifiers, how = _values(path)
    except FileRefusedError:
        raise
    except EOFError as error:
        raise FileRefusedError("the volume can't be decoded: the file is cut short") from error
    except Exception as error:  # foreign bytes make nibabel raise many kinds
        reason = one_line(error).replace(str(path), "it")
        raise FileRefusedError(f"the volume can't be decoded: {reason}") from error
    if not np.isfinite(values).any():
        raise FileRefusedError("the volume holds no finite value")
    return stretched(values)[..., np.newaxis], identifiers, how


def _values(path: Path) -> tuple[npt.NDArray[np.float32], tuple[str, ...], Acquired]:
    """The values, scaled as the header says, as (slices, rows, columns) in LPS order; and how far apart they are."""
    with path.open("rb") as plain:
        packed = plain.read(2) == _GZIP
        plain.seek(0)
        stream: Any = gzip.open(plain) if packed else plain  # noqa: SIM115 - closed with the file under it
        start = stream.read(8)
        stream.seek(0)
        two = 540 in {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
        image = (nibabel.Nifti2Image if two else nibabel.Nifti1Image).from_stream(stream)
        _check_shape(image)
        values = np.asarray(image.dataobj, dtype=np.float32)
    identifiers = [e for e in image.header.extensions if e.get_code() == _DICOM_EXTENSION]
    values = values.reshape((*values.shape[:3], 1, 1, 1)[:3])
    found = ("an embedded DICOM header",) * bool(identifiers)
    return _in_lps(values, image.affine).transpose(2, 1, 0), found, _distances(image.affine)


def _distances(affine: npt.NDArray[Any]) -> Acquired:
    """The lengths of a voxel's edges (mm) along posterior, left and superior."""
    turns: Any = orientations
    lengths = np.zeros(3)
    for edge, (axis, _) in zip(affine[:3, :3].T, turns.io_orientation(affine), strict=True):
        if np.isfinite(axis):
            lengths[int(axis)] = round(float(np.linalg.norm(edge)), 4)
    left, posterior, superior = (float(length) for length in lengths)
    return Acquired(spacing=(posterior, left), between=superior)


def _in_lps(values: npt.NDArray[np.float32], affine: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Turn and flip the axes so that they run to left, posterior and superior, as near as the affine allows."""
    turns: Any = orientations
    turn = turns.ornt_transform(turns.io_orientation(affine), turns.axcodes2ornt("LPS"))
    turned: npt.NDArray[np.float32] = turns.apply_orientation(values, turn)
    return turned


def _check_shape(image: Any) -> None:
    shape = image.shape
    if image.header.get_data_dtype().fields is not None or image.header.get_data_dtype().kind == "c":
        raise FileRefusedError("colour or complex NIfTI is not read: one number a voxel is")
    if len(shape) < 2 or any(extent != 1 for extent in shape[3:]):
        raise FileRefusedError(f"a volume has 2 or 3 dimensions, this has {len(shape)}: split it by time or echo")
    if 0 in shape:
        raise FileRefusedError("the volume is empty")
