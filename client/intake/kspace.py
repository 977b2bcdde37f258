"""Raw MR measurements: fully sampled k-space in HDF5, laid out as fastMRI's files.

One data set, "kspace": complex, (slices, rows, columns) of one coil or (slices, coils, rows, columns), its zero
frequency in the middle; rows are the readout. "ismrmrd_header", the ISMRMRD XML header, says how far k-space and image
reach, and what scanner made it. A slice becomes one complex image:

1. Each coil's image is the centred, orthonormal inverse Fourier transform. A pixel measures the encoded field of view
   over k-space's extent; the image is cropped about its middle to the reconstructed field of view (fastMRI oversamples
   the readout twice), never resampled.
2. Coils are weighted by their sensitivities and added. These are the images of the middle of k-space (a Hann window
   over `CALIBRATION` lines) over their root sum of squares; their common phase is that of the strongest combination of
   coils, so that the anatomy's own phase stays.
3. The volume is divided by its largest magnitude.

HDF5's library can be crashed by a damaged file. So a file is read in a process of its own first (`inspect`).

So the magnitude is about the root sum of squares, and phase and noise are the scanner's own. The coils are not kept
apart: what is learnt of it is single-coil reconstruction, as of fastMRI's emulated single-coil knees.

References: Zbontar et al., "fastMRI: An Open Dataset and Benchmarks for Accelerated MRI", 2018; McKenzie et al.,
"Self-calibrating parallel imaging with automatic coil sensitivity extraction", MRM 2002; Inati et al., "ISMRM Raw data
format", MRM 2017.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import subprocess
import sys
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
_LARGEST_SLICE, _LARGEST_FILE, _MOST_COILS, _LARGEST_HEADER = 2**27, 2**34, 256, 2**22
"""Complex numbers of a slice with all its coils and of a file, coils, characters of a header: more is an attack."""
_DENSEST = 100
"""Noise does not compress: a file whose numbers take over so many times its bytes was never measured."""
READ_ALL = "from client.intake.kspace import read_all; read_all()"
_SECONDS, _MEMORY = 1800, 2**35
"""What the process may take that reads a file first."""
_OF_PEOPLE = {
    "patientName": "PatientName", "patientID": "PatientID", "patientBirthdate": "PatientBirthDate",
    "institutionName": "InstitutionName", "referringPhysicianName": "ReferringPhysicianName",
    "stationName": "StationName", "accessionNumber": "AccessionNumber", "studyDate": "StudyDate",
}  # fmt: skip
"""Elements of the ISMRMRD header that tell a person, a place or a day, by DICOM's names for the same."""


Space = dict[str, float]
"""x (readout), y and z of an extent in mm, as far as they are told."""


@dataclass(frozen=True)
class _Header:
    """What the ISMRMRD header says: the fields of view of k-space and of the image, and how many slices z is of."""

    encoded: Space = field(default_factory=dict)
    wanted: Space = field(default_factory=dict)
    slices: float = 1.0
    identifiers: tuple[str, ...] = ()
    acquired: Acquired = field(default_factory=Acquired)

    def placed(self, extent: tuple[int, int]) -> tuple[tuple[int, int], tuple[float, float, float] | None]:
        """Return the rows and columns of the image of k-space of `extent`; and mm between slices, rows and columns.

        Without both fields of view nothing is cropped, and no distance is known.
        """
        spaces = (self.encoded, self.wanted)
        if any(space.get(axis, 0.0) <= 0 for space in spaces for axis in "xy"):
            return extent, None
        rows, columns = (self.encoded[axis] / n for axis, n in zip("xy", extent, strict=True))
        cropped = (round(self.wanted["x"] / rows), round(self.wanted["y"] / columns))
        between = self.wanted.get("z", 0.0) / self.slices
        return (
            (min(max(1, cropped[0]), extent[0]), min(max(1, cropped[1]), extent[1])),
            (between, rows, columns) if between > 0 else None,
        )


def matches(head: bytes) -> bool:
    """Whether the first bytes are those of an HDF5 file."""
    return head.startswith(_HDF5)


def inspect(path: Path) -> Facts:
    """Reconstruct all slices and return what the file says of itself. Raises FileRefusedError when it can't be used."""
    _read_apart(path)
    with _opened(path) as file:
        header, patient = _header(file), _patient(file)
        images = _images(file, header)
        spacing = header.placed(_extent(_measured(file)))[1]
    how = header.acquired
    if spacing is not None:
        how = replace(how, spacing=spacing[1:], thickness=spacing[0])
    sight = Sight()
    for image in images:
        sight.add(with_channels(image, 1))
    slices, rows, columns, _ = images.shape
    return Facts(
        modality="MR", frames=slices, rows=rows, columns=columns, channels=2, identifiers=header.identifiers,
        patient=patient, acquired=how, seen=sight.seen(),
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
    _read_apart(paths[0])  # `predict` asks for this first
    with _opened(paths[0]) as file:
        measured = _measured(file)
        return Grid(tuple((0, frame) for frame in range(len(measured))), _header(file).placed(_extent(measured))[1])


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
    matrix = header.placed(_extent(measured))[0]
    made = np.stack([_slice(measured, place, matrix) for place in range(len(measured))])
    largest = float(np.abs(made).max())
    if not np.isfinite(largest) or largest < np.finfo(np.float32).tiny:
        raise FileRefusedError(
            f"its k-space is empty or its numbers are beyond reason: the image's largest is {largest}"
        )
    made /= np.float32(largest)
    return np.clip(np.stack([made.real, made.imag], axis=-1), -1, 1).astype(np.float32)


def _extent(measured: h5py.Dataset) -> tuple[int, int]:
    return int(measured.shape[-2]), int(measured.shape[-1])


def _slice(measured: h5py.Dataset, place: int, matrix: tuple[int, int]) -> Complex:
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
    top, left = images.shape[-2] // 2 - rows // 2, images.shape[-1] // 2 - columns // 2  # middle onto middle
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
    of_slice = math.prod(found.shape[1:])
    if of_slice > _LARGEST_SLICE or of_slice * len(found) > _LARGEST_FILE:
        raise FileRefusedError(f'"kspace" is {found.shape}: a slice may have {_LARGEST_SLICE:,} numbers')
    if found.ndim == 4 and found.shape[1] > _MOST_COILS:
        raise FileRefusedError(f'"kspace" is {found.shape}: it may have {_MOST_COILS} coils')
    if of_slice * len(found) * found.dtype.itemsize > _DENSEST * max(1, found.id.get_storage_size()):
        raise FileRefusedError('"kspace" was not written whole: its numbers take far more room than the file has')
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
    text = _text(stored[()] if stored.size == 1 else None)
    if text is None or len(text) > _LARGEST_HEADER:
        raise FileRefusedError(f'"{_HEADER}" is no text')
    try:
        root = fromstring(text)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise FileRefusedError(f'"{_HEADER}" is no ISMRMRD header: {one_line(error)}') from error
    said = {_plain(one): text for one in root.iter() if (text := (one.text or "").strip())}
    found = Dataset()
    found.Manufacturer, found.ManufacturerModelName = said.get("systemVendor", ""), said.get("systemModel", "")
    found.ProtocolName = said.get("protocolName") or _text(file.attrs.get("acquisition")) or ""
    found.PatientSex = said.get("patientGender", "")
    if (tesla := _number(said.get("systemFieldStrength_T", ""))) is not None:
        found.MagneticFieldStrength = tesla
    of_people = tuple(sorted(keyword for name, keyword in _OF_PEOPLE.items() if said.get(name)))
    encoded, wanted = (_space(root, f"{name}Space", "fieldOfView_mm") for name in ("encoded", "recon"))
    slices = max(1.0, _space(root, "reconSpace", "matrixSize").get("z", 1.0))
    return _Header(encoded, wanted, slices, of_people, acquired([found]))


def _space(root: Element, space: str, what: str) -> Space:
    """The first encoding's numbers along x, y and z; nothing where they are not told."""
    found = next((one for one in root.iter() if _plain(one) == space), None)
    part = next((one for one in found if _plain(one) == what), None) if found is not None else None
    numbers = {_plain(one): _number(one.text or "") for one in part} if part is not None else {}
    return {axis: number for axis, number in numbers.items() if number is not None}


def _patient(file: h5py.File) -> str:
    """Whose measurement it is, "" where it does not say. Raises FileRefusedError where that is no text."""
    if _PATIENT not in file.attrs:
        return ""
    text = _text(file.attrs[_PATIENT])
    if text is None:
        raise FileRefusedError(f'its attribute "{_PATIENT}" is no text: whose it is can\'t be told')
    return text.strip()


def _text(stored: object) -> str | None:
    """The text of one value as HDF5 gives it, None for anything else."""
    value = np.asarray(stored).item() if np.size(np.asarray(stored)) == 1 else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _read_apart(path: Path) -> None:
    """Read all that is used of a file in another process. Raises FileRefusedError when that process dies of it."""
    command = [sys.executable, "-c", READ_ALL, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, timeout=_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        ended = -1
    if ended:
        raise FileRefusedError(
            "the measurement can't be read: it crashes HDF5's library, or takes too long or too much"
        )


def read_all() -> None:
    """Read the file that the command names, and say nothing: what is merely wrong with it the parent will find."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with contextlib.suppress(FileRefusedError), _opened(Path(sys.argv[1])) as file:
        _header(file), _patient(file)
        measured = _measured(file)
        for place in range(len(measured)):
            measured[place]


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
