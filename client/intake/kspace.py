"""Raw MR measurements: fully sampled k-space in HDF5, laid out as fastMRI's files.

One data set, "kspace": complex, (slices, rows, columns) of one coil or (slices, coils, rows, columns), its zero
frequency in the middle; rows are the readout. "ismrmrd_header", the ISMRMRD XML header, says of which matrix and extent
the image is, and what scanner made it. A slice becomes one complex image:

1. Each coil's image is the centred, orthonormal inverse Fourier transform, cropped about its middle to the matrix that
   the header names (fastMRI oversamples the readout twice).
2. Coils are weighted by their sensitivities and added. These are the images of the middle of k-space (a Hann window
   over `CALIBRATION` lines) over their root sum of squares; their common phase is that of the strongest combination of
   coils, so that the anatomy's own phase stays.
3. The volume is divided by its largest magnitude.

So the magnitude is about the root sum of squares, and phase and noise are the scanner's own. The coils are not kept
apart: what is learnt of it is single-coil reconstruction, as of fastMRI's emulated single-coil knees.

References: Zbontar et al., "fastMRI: An Open Dataset and Benchmarks for Accelerated MRI", 2018; McKenzie et al.,
"Self-calibrating parallel imaging with automatic coil sensitivity extraction", MRM 2002; Inati et al., "ISMRM Raw data
format", MRM 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import h5py
import numpy as np
import numpy.typing as npt
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydicom.dataset import Dataset
from scipy import fft

from client.intake.acquisition import acquired
from client.intake.image import Acquired, Facts, FileRefusedError, Grid, Pixels, one_line
from client.intake.intensity import with_channels
from client.intake.sight import Sight

Complex = npt.NDArray[np.complex64]
CALIBRATION = 32
"""Lines about the middle of k-space, along both axes, of which the coils' sensitivities are made."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MEASURED, _HEADER, _MASK, _PATIENT = "kspace", "ismrmrd_header", "mask", "patient_id"
_LARGEST_SLICE, _LARGEST_HEADER = 2**28, 2**22
"""Complex numbers of a slice with all its coils, and bytes of a header: more is no measurement but an attack."""
_OF_PEOPLE = {
    "patientName": "PatientName", "patientID": "PatientID", "patientBirthdate": "PatientBirthDate",
    "institutionName": "InstitutionName", "referringPhysicianName": "ReferringPhysicianName",
    "stationName": "StationName", "accessionNumber": "AccessionNumber", "studyDate": "StudyDate",
}  # fmt: skip
"""Elements of the ISMRMRD header that tell a person, a place or a day, by DICOM's names for the same."""


@dataclass(frozen=True)
class _Header:
    """What the ISMRMRD header says: (rows, columns) of the image or None, mm between slices, rows and columns."""

    matrix: tuple[int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    identifiers: tuple[str, ...] = ()
    acquired: Acquired = field(default_factory=Acquired)


def matches(head: bytes) -> bool:
    """Whether the first bytes are those of an HDF5 file."""
    return head.startswith(_HDF5)


def inspect(path: Path) -> Facts:
    """Reconstruct all slices and return what the file says of itself. Raises FileRefusedError when it can't be used."""
    with _opened(path) as file:
        header, patient = _header(file), file.attrs.get(_PATIENT, "")
        images = _images(file, header)
    sight = Sight()
    for image in images:
        sight.add(with_channels(image, 1))
    slices, rows, columns, _ = images.shape
    return Facts(
        modality="MR", frames=slices, rows=rows, columns=columns, channels=2, identifiers=header.identifiers,
        patient=patient if isinstance(patient, str) else "", acquired=header.acquired, seen=sight.seen(),
    )  # fmt: skip


def frames(path: Path) -> Iterator[Pixels]:
    """Yield each slice as (rows, columns, 2), real and imaginary part, its scale set by the whole volume."""
    yield from volume([path])


def volume(paths: Sequence[Path]) -> Pixels:
    """Return the slices of the one file as (slices, rows, columns, 2) in [-1, 1]. Raises FileRefusedError."""
    with _opened(paths[0]) as file:
        return _images(file, _header(file))


def grid(paths: Sequence[Path]) -> Grid:
    """Return how far the pixels of the one file lie apart; where they lie, it does not say. Raises FileRefusedError."""
    with _opened(paths[0]) as file:
        return Grid(tuple((0, frame) for frame in range(len(_measured(file)))), _header(file).spacing)


def combined(kspace: Complex, matrix: tuple[int, int] | None = None) -> Complex:
    """Return the complex image (rows, columns) of a slice's k-space (coils, rows, columns), cropped to `matrix`."""
    images = _cropped(_image_of(kspace), matrix)
    if len(images) == 1:
        return np.asarray(images[0])
    low: Complex = _cropped(_image_of(kspace * _middle(kspace.shape[-2:])), matrix)
    flat = low.reshape(len(low), -1)
    strongest = np.linalg.eigh(flat @ flat.conj().T)[1][:, -1]  # the combination of coils with the most signal
    phase = np.angle(np.tensordot(strongest.conj(), low, axes=1))
    size = np.sqrt((np.abs(low) ** 2).sum(axis=0))
    seen = np.divide(low, size, out=np.zeros_like(low), where=size > 0) * np.exp(-1j * phase)
    return np.asarray((seen.conj() * images).sum(axis=0), dtype=np.complex64)


def _images(file: h5py.File, header: _Header) -> Pixels:
    measured = _measured(file)
    made = np.stack([_slice(measured, place, header.matrix) for place in range(len(measured))])
    largest = float(np.abs(made).max())
    if largest == 0:
        raise FileRefusedError("its k-space is empty: all of it is 0")
    made /= np.float32(largest)
    return np.clip(np.stack([made.real, made.imag], axis=-1), -1, 1).astype(np.float32)


def _slice(measured: h5py.Dataset, place: int, matrix: tuple[int, int] | None) -> Complex:
    kspace = np.asarray(measured[place], dtype=np.complex64)
    if not np.isfinite(kspace).all():
        raise FileRefusedError(f"its k-space has values that are no numbers, in slice {place + 1}")
    return combined(kspace if kspace.ndim == 3 else kspace[np.newaxis], matrix)


def _image_of(kspace: Complex) -> Complex:
    axes = (-2, -1)
    image = fft.ifft2(fft.ifftshift(kspace, axes=axes), axes=axes, norm="ortho")
    return np.asarray(fft.fftshift(image, axes=axes), dtype=np.complex64)


def _cropped(images: Complex, matrix: tuple[int, int] | None) -> Complex:
    if matrix is None:
        return images
    rows, columns = (min(wanted, there) for wanted, there in zip(matrix, images.shape[-2:], strict=True))
    top, left = (images.shape[-2] - rows) // 2, (images.shape[-1] - columns) // 2
    return images[..., top : top + rows, left : left + columns]


def _middle(extent: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A window over k-space (rows, columns): 1 in its middle, 0 beyond the lines of calibration."""
    windows = []
    for length in extent:
        window, lines = np.zeros(length, dtype=np.float32), min(CALIBRATION, length)
        start = length // 2 - lines // 2
        window[start : start + lines] = np.hanning(lines + 2)[1:-1]
        windows.append(window)
    return np.outer(*windows)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open the file, and turn whatever HDF5 raises for a broken one into one reason."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileRefusedError:
        raise
    except Exception as error:  # foreign bytes make HDF5 raise many kinds
        reason = one_line(error).replace(str(path), "it")
        raise FileRefusedError(f"the measurement can't be read: {reason}") from error


def _measured(file: h5py.File) -> h5py.Dataset:
    """The k-space of the file, not read yet. Raises FileRefusedError for any other HDF5 file."""
    if _MEASURED not in file:
        raise FileRefusedError('an HDF5 file without "kspace": raw MR data are read in the layout of fastMRI')
    found = _own(file, _MEASURED)
    if found.dtype.kind != "c" or found.ndim not in (3, 4) or 0 in found.shape:
        raise FileRefusedError(
            f'"kspace" is {found.dtype} {found.shape}: complex numbers (slices, coils, rows, columns) are read'
        )
    if int(np.prod(found.shape[1:], dtype=np.int64)) > _LARGEST_SLICE:
        raise FileRefusedError(f'a slice of "kspace" has more than {_LARGEST_SLICE:,} numbers')
    if _MASK in file:
        raise FileRefusedError("its k-space is undersampled already (it has a mask): only fully sampled data are used")
    return found


def _own(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set that is all in this file: links and external storage could lead to any other file of the machine."""
    link = file.get(name, getlink=True)
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise FileRefusedError(f'"{name}" is no data set of the file itself')
    return found


def _header(file: h5py.File) -> _Header:
    """What the header says; nothing where there is none. Raises FileRefusedError for one that is broken."""
    if _HEADER not in file:
        return _Header()
    stored = _own(file, _HEADER)
    if stored.size != 1 or stored.nbytes > _LARGEST_HEADER:
        raise FileRefusedError(f'"{_HEADER}" is no text')
    text = stored[()]
    try:
        root = fromstring(text if isinstance(text, bytes | str) else bytes(text))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise FileRefusedError(f'"{_HEADER}" is no ISMRMRD header: {one_line(error)}') from error
    said = {_plain(one): (one.text or "").strip() for one in root.iter()}
    found = Dataset()
    found.Manufacturer, found.ManufacturerModelName = said.get("systemVendor", ""), said.get("systemModel", "")
    found.ProtocolName = said.get("protocolName") or str(file.attrs.get("acquisition", ""))
    if (tesla := _number(said.get("systemFieldStrength_T", ""))) is not None:
        found.MagneticFieldStrength = tesla
    matrix, spacing = _extent(root)
    how = acquired([found])
    if spacing is not None:
        how = replace(how, spacing=spacing[1:], between=spacing[0])
    of_people = tuple(sorted(keyword for name, keyword in _OF_PEOPLE.items() if said.get(name)))
    return _Header(matrix, spacing, of_people, how)


def _extent(root: Element) -> tuple[tuple[int, int] | None, tuple[float, float, float] | None]:
    """The matrix (rows, columns) of the image, and mm between its slices, rows and columns. x is the readout."""
    space = next((one for one in root.iter() if _plain(one) == "reconSpace"), None)
    if space is None:
        return None, None
    parts = {_plain(part): {_plain(one): _number(one.text or "") for one in part} for part in space}
    matrix = [parts.get("matrixSize", {}).get(axis) for axis in "zxy"]
    extent = [parts.get("fieldOfView_mm", {}).get(axis) for axis in "zxy"]
    if any(n is None or n < 1 for n in matrix):
        return None, None
    counts = [int(n or 1) for n in matrix]
    if any(mm is None or mm <= 0 for mm in extent):
        return (counts[1], counts[2]), None
    between, rows, columns = (float(mm or 0) / n for mm, n in zip(extent, counts, strict=True))
    return (counts[1], counts[2]), (between, rows, columns)


def _plain(element: Element) -> str:
    """An element's name without its namespace."""
    name: Any = element.tag
    return str(name).rpartition("}")[2]


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if np.isfinite(found) else None
