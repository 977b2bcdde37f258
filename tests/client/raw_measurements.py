"""Raw MR measurements in fastMRI's layout, simulated: coils, phase, noise and an oversampled readout."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

NAMESPACE = 'xmlns="http://www.ismrm.org/ISMRMRD"'


def header(rows: int, columns: int, extra: str = "", millimetres=(2.0, 1.0, 0.5), finer: int = 1) -> str:
    """An ISMRMRD header: the image is rows x columns, `millimetres` between slices, rows and columns.

    The scanner's own image was interpolated to so many times as many pixels (`finer`).
    """
    between, row, column = millimetres
    return (
        f'<?xml version="1.0"?><ismrmrdHeader {NAMESPACE}>{extra}'
        "<acquisitionSystemInformation><systemVendor>ACME</systemVendor><systemModel>Magnus</systemModel>"
        "<systemFieldStrength_T>2.8936</systemFieldStrength_T></acquisitionSystemInformation>"
        f"<encoding><encodedSpace><matrixSize><x>{2 * rows}</x><y>{columns}</y><z>1</z></matrixSize><fieldOfView_mm>"
        f"<x>{2 * rows * row}</x><y>{columns * column}</y><z>{between}</z></fieldOfView_mm></encodedSpace>"
        f"<reconSpace><matrixSize><x>{finer * rows}</x><y>{finer * columns}</y><z>1</z></matrixSize>"
        f"<fieldOfView_mm><x>{rows * row}</x><y>{columns * column}</y><z>{between}</z></fieldOfView_mm></reconSpace>"
        "</encoding></ismrmrdHeader>"
    )


def with_phase(image: np.ndarray, blob: float = 1.2) -> np.ndarray:
    """A complex image: a slow phase, as of an uneven field, and a place whose phase is its own."""
    rows, columns = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
    inside = (rows - 0.2) ** 2 + (columns + 0.1) ** 2 < 0.05
    return image * np.exp(1j * (rows + 0.5 * columns + blob * inside))


def coils_of(extent, count: int) -> np.ndarray:
    """Smooth complex sensitivities (coils, rows, columns), each strongest at its own place about the head."""
    rows, columns = np.mgrid[-1 : 1 : extent[0] * 1j, -1 : 1 : extent[1] * 1j]
    made = []
    for angle in np.arange(count) * 2 * np.pi / count:
        size = np.exp(-((rows - np.sin(angle)) ** 2 + (columns - np.cos(angle)) ** 2))
        made.append(size * np.exp(1j * (angle + 0.5 * rows * np.cos(angle))))
    return np.stack(made)


def kspace_of(images: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    shifted = np.fft.ifftshift(images, axes=axes)
    return np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=axes).astype(np.complex64)


def measure(images, coils: int = 4, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """The k-space (slices, coils, 2 rows, columns) of complex images (slices, rows, columns): readout twice as wide."""
    images = np.asarray(images)
    count, rows, columns = images.shape
    wide = np.zeros((count, coils, 2 * rows, columns), dtype=np.complex64)
    wide[:, :, rows // 2 : rows // 2 + rows] = images[:, None] * coils_of((rows, columns), coils)
    random = np.random.default_rng(seed)
    spread = noise * (random.normal(size=wide.shape) + 1j * random.normal(size=wide.shape))
    return kspace_of(wide) + spread.astype(np.complex64)


def write(path: Path, kspace, xml: str = "", patient="", *, as_list: bool = False, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if xml:
            file["ismrmrd_header"] = [xml.encode()] if as_list else xml.encode()
        if np.size(patient) != 1 or patient != "":
            file.attrs["patient_id"] = patient
        for name, value in more.items():
            file[name] = value
    return path
