"""NIfTI-1 and NIfTI-2, plain or gzipped, in one file. The slices are axial, as in DICOM: rows run to posterior."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.imageglobals import LoggingOutputSuppressor

from client.intake.image import Acquired, Facts, FileRefusedError, Grid, Pixels, one_line
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


def grid(paths: Sequence[Path]) -> Grid:
    """Return where the slices of the one file lie: as `volume` orders them. Raises FileRefusedError."""
    with _readable(paths[0]), _image(paths[0]) as image:
        affine, shape = np.asarray(image.affine, dtype=np.float64), (*image.shape[:3], 1, 1, 1)[:3]
    turn = _turn(affine)
    turns: Any = orientations
    turned = affine @ turns.inv_ornt_aff(turn, shape)  # of voxels turned as `_in_lps` turns them, in RAS+
    columns_first = np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned
    in_lps = columns_first[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(in_lps[:3, :3], axis=0)
    slices = int(np.asarray(shape)[np.asarray(turn[:, 0], dtype=int).argsort()][2])
    order = tuple((0, frame) for frame in range(slices))
    return Grid(order, (float(spacing[0]), float(spacing[1]), float(spacing[2])), in_lps)


def read_classes(path: Path) -> npt.NDArray[np.int64]:
    """Return a label map's values as (slices, rows, columns), ordered as `volume` orders an image's.

    Raises FileRefusedError when it is no label map: values that are not whole numbers.
    """
    with _readable(path):
        values = _values(path)[0]
    if not np.array_equal(values, np.rint(values)):
        raise FileRefusedError("no mask: its values are not whole numbers")
    return values.astype(np.int64)


def write_classes(classes: npt.NDArray[np.uint8], like: Path, path: Path) -> None:
    """Write a label map (slices, rows, columns), ordered as `volume` orders, on the very grid of the file `like`.

    Raises FileRefusedError when `like` can't be read.
    """
    nibabel.save(_on_the_grid_of(like, classes, np.uint8), path)


def write_values(values: Pixels, like: Path, path: Path, description: str) -> None:
    """Write values (slices, rows, columns), ordered as `volume` orders, on the very grid of the file `like`.

    The description is cut off after 79 bytes. Raises FileRefusedError when `like` can't be read.
    """
    made = _on_the_grid_of(like, values, np.float32)
    made.header["descrip"] = description.encode()[:79]
    nibabel.save(made, path)


def write_unplaced(values: Pixels, spacing: tuple[float, ...] | None, path: Path, description: str) -> None:
    """Write values (slices, rows, columns) of which only the spacing is known (mm, in that order), not where they lie.

    The description is cut off after 79 bytes.
    """
    kind: Any = nibabel.Nifti1Image
    made = kind(values.transpose(2, 1, 0).astype(np.float32), None)
    if spacing is not None:
        made.header.set_zooms(spacing[::-1])
        made.header.set_xyzt_units("mm")
    made.header["descrip"] = description.encode()[:79]
    nibabel.save(made, path)


def _on_the_grid_of(like: Path, values: npt.NDArray[Any], kind: Any) -> Any:
    """An image of values (slices, rows, columns) that lies where the file `like` does."""
    turns: Any = orientations
    with _readable(like), _image(like) as image:
        header, affine, shape = image.header.copy(), np.asarray(image.affine), image.shape
        back = turns.ornt_transform(turns.axcodes2ornt("LPS"), turns.io_orientation(affine))
        turned = np.asarray(turns.apply_orientation(values.transpose(2, 1, 0), back), dtype=kind)
        made = type(image)(turned.reshape(shape), affine, header)
    made.header.extensions.clear()  # an embedded DICOM header is of the image
    made.set_data_dtype(kind)
    made.header.set_slope_inter(1, 0)
    made.header["cal_min"], made.header["cal_max"] = 0, 0
    return made


def _read(path: Path) -> tuple[Pixels, tuple[str, ...], Acquired]:
    with _readable(path):
        values, identifiers, how = _values(path)
    if not np.isfinite(values).any():
        raise FileRefusedError("the volume holds no finite value")
    return stretched(values)[..., np.newaxis], identifiers, how


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever nibabel raises for a broken file into one reason."""
    try:
        with LoggingOutputSuppressor():  # what nibabel makes of a broken header is in the reason
            yield
    except FileRefusedError:
        raise
    except EOFError as error:
        raise FileRefusedError("the volume can't be decoded: the file is cut short") from error
    except Exception as error:  # foreign bytes make nibabel raise many kinds
        reason = one_line(error).replace(str(path), "it")
        raise FileRefusedError(f"the volume can't be decoded: {reason}") from error


@contextmanager
def _image(path: Path) -> Iterator[Any]:
    """The file as nibabel sees it, its values not read yet. A file's name does not tell its format."""
    with path.open("rb") as plain:
        packed = plain.read(2) == _GZIP
        plain.seek(0)
        stream: Any = gzip.open(plain) if packed else plain  # noqa: SIM115 - closed with the file under it
        start = stream.read(8)
        stream.seek(0)
        two = 540 in {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
        image = (nibabel.Nifti2Image if two else nibabel.Nifti1Image).from_stream(stream)
        _check_shape(image)
        yield image


def _values(path: Path) -> tuple[npt.NDArray[np.float32], tuple[str, ...], Acquired]:
    """The values, scaled as the header says, as (slices, rows, columns) in LPS order; and how far apart they are."""
    with _image(path) as image:
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
    turned: npt.NDArray[np.float32] = turns.apply_orientation(values, _turn(affine))
    return turned


def _turn(affine: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each axis of the file: which axis it becomes, and whether it is flipped (nibabel's orientation array)."""
    turns: Any = orientations
    return np.asarray(turns.ornt_transform(turns.io_orientation(affine), turns.axcodes2ornt("LPS")))


def _check_shape(image: Any) -> None:
    shape = image.shape
    if image.header.get_data_dtype().fields is not None or image.header.get_data_dtype().kind == "c":
        raise FileRefusedError("colour or complex NIfTI is not read: one number a voxel is")
    if len(shape) < 2 or any(extent != 1 for extent in shape[3:]):
        raise FileRefusedError(f"a volume has 2 or 3 dimensions, this has {len(shape)}: split it by time or echo")
    if 0 in shape:
        raise FileRefusedError("the volume is empty")
