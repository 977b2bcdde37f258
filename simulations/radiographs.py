"""Writes projection radiographs as real DICOM files, as the digital detectors of different makers would.

Objects follow PS3.3 A.26 (Digital X-Ray; for processing where there is no window) or A.2 (Computed Radiography). They
are de-identified as PS3.15 Annex E asks: a study code as PatientID, no name, no dates, PatientIdentityRemoved YES.
"""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from scipy.ndimage import gaussian_filter

from common.files import write_atomically

Encoding = Literal["none", "rle", "jpeg2000"]
TRANSFER_SYNTAXES: dict[Encoding, UID] = {
    "none": ExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
}
LABELS_FILE = "labels.csv"
DETECTOR_WIDTH = 430.0
"""Side of a DX detector, in mm."""


@dataclass(frozen=True)
class Scanner:
    """A detector and its habits. `noise` and `blur` (in pixels) only shape phantoms, not images that are wrapped."""

    model: str
    modality: Literal["DX", "CR"] = "DX"
    bits: int = 12
    inverted: bool = False  # MONOCHROME1: the largest stored value is black
    window: bool = True
    encoding: Encoding = "none"
    noise: float = 0.02
    blur: float = 0.5
    manufacturer: str = "Ward Round Phantoms"


@dataclass(frozen=True)
class Exposure:
    """Who and what a file shows: the patient's study code, and numbers that tell studies and views apart."""

    patient: str
    study: int = 1
    instance: int = 1
    view: str = "PA"


def detect(attenuation: np.ndarray, scanner: Scanner, generator: np.random.Generator) -> np.ndarray:
    """Return what `scanner` stores of an attenuation map (rows, columns): uint16, 0 .. 2**bits - 1, dense is bright.

    Quantum noise grows with attenuation, since fewer photons arrive; exposure and contrast differ from image to image.
    """
    sharp = attenuation.astype(np.float32)
    image = gaussian_filter(sharp, scanner.blur) if scanner.blur else sharp
    image = image + scanner.noise * np.exp(0.4 * image) * generator.standard_normal(image.shape, dtype=np.float32)
    contrast, brightness = generator.uniform(0.85, 1.15), generator.normal(0, 0.04)
    scaled = np.clip(image / 2.4 * contrast + brightness + 0.05, 0, 1)
    return np.asarray(np.round(scaled * (2**scanner.bits - 1)), dtype=np.uint16)


def radiograph(pixels: np.ndarray, scanner: Scanner, exposure: Exposure, *, origin: str) -> FileDataset:
    """Return `pixels` (rows, columns; unsigned, dense is bright, below 2**bits) as a DICOM object.

    `origin` is a text from which, with the exposure, the UIDs are made: the same text gives the same UIDs, another one
    gives others (UUID-derived, PS3.5 B.2).
    """
    if pixels.ndim != 2 or pixels.dtype.kind != "u" or int(pixels.max()) >= 2**scanner.bits:
        raise ValueError(f"pixels must be 2D, unsigned and below 2**{scanner.bits}: {pixels.shape} {pixels.dtype}")
    dataset = _envelope(scanner, exposure, origin)
    _describe(dataset, scanner, exposure)
    _put_pixels(dataset, pixels, scanner)
    if scanner.encoding != "none":
        dataset.compress(TRANSFER_SYNTAXES[scanner.encoding], generate_instance_uid=False)
    return dataset


def save(dataset: FileDataset, path: Path) -> None:
    """Write a DICOM file (PS3.10). Not synced: phantoms are made again faster than a disk syncs thousands of files."""
    dataset.save_as(path, enforce_file_format=True)


def write_table(path: Path, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Write a CSV file: `heading`, then each of `rows` once, in their order."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(heading)
    table.writerows(dict.fromkeys(map(tuple, rows)))
    write_atomically(path, text.getvalue().encode())
    return path


def wrap_arrays_as_dicom(
    images: np.ndarray, labels: Sequence[str], folder: Path, *, site: str, scanner: Scanner | None = None
) -> Path:
    """Write each image of `images`, (N, rows, columns) uint8, as a DICOM file of a patient of its own, with labels.csv.

    The grey values are kept exactly: stored in 8 bits with a window that spans them (a `scanner` may ask for another
    encoding, or MONOCHROME1). Returns the path of labels.csv, which is keyed by PatientID.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels):
        raise ValueError(f"images must be (N, rows, columns) uint8 with N labels: {images.shape} {images.dtype}")
    scanner = scanner or Scanner(model="Archive", modality="CR", bits=8, manufacturer="Unknown")
    rows = []
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True), start=1):
        patient = f"{site.upper()}-{number:05d}"
        folder_of_patient = folder / f"{number // 500:03d}"
        folder_of_patient.mkdir(parents=True, exist_ok=True)
        save(radiograph(pixels, scanner, Exposure(patient), origin=site), folder_of_patient / f"{patient}.dcm")
        rows.append((patient, label))
    return write_table(folder / LABELS_FILE, ("PatientID", "label"), rows)


def _sop_class(scanner: Scanner) -> UID:
    if scanner.modality == "CR":
        return ComputedRadiographyImageStorage
    return DigitalXRayImageStorageForPresentation if scanner.window else DigitalXRayImageStorageForProcessing


def make_uid(*parts: object) -> UID:
    """Return the UID that follows from `parts`: UUID-derived, PS3.5 B.2."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}")


def _envelope(scanner: Scanner, exposure: Exposure, origin: str) -> FileDataset:
    """File meta information and every identifier."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _sop_class(scanner)
    meta.MediaStorageSOPInstanceUID = make_uid("instance", origin, exposure.patient, exposure.study, exposure.instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = make_uid("study", origin, exposure.patient, exposure.study)
    dataset.SeriesInstanceUID = make_uid("series", origin, exposure.patient, exposure.study)
    dataset.PatientID = exposure.patient
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "PS3.15 Annex E; code as PatientID, dates removed"
    # Type 2: present and empty, since they would identify.
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
                    "ReferringPhysicianName", "StudyID", "PatientOrientation"):  # fmt: skip
        setattr(dataset, keyword, "")
    dataset.SeriesNumber, dataset.InstanceNumber = 1, exposure.instance
    return dataset


def _describe(dataset: Dataset, scanner: Scanner, exposure: Exposure) -> None:
    """Equipment, series and what the image shows."""
    dataset.Modality = scanner.modality
    dataset.Manufacturer, dataset.ManufacturerModelName = scanner.manufacturer, scanner.model
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""] if scanner.modality == "DX" else ["ORIGINAL", "PRIMARY"]
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", exposure.view
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    if scanner.modality == "DX":
        dataset.PresentationIntentType = "FOR PRESENTATION" if scanner.window else "FOR PROCESSING"
        dataset.ImageLaterality = "U"
        dataset.AnatomicRegionSequence = [make_code("51185008", "SCT", "Chest")]
        dataset.PositionerType, dataset.DetectorType = "", ""
        dataset.PixelIntensityRelationship = "LOG"
        dataset.PixelIntensityRelationshipSign = 1 if scanner.inverted else -1
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
        dataset.AcquisitionContextSequence = []


def make_code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return a coded concept (PS3.3 8.8)."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _put_pixels(dataset: Dataset, pixels: np.ndarray, scanner: Scanner) -> None:
    largest = 2**scanner.bits - 1
    stored = largest - pixels if scanner.inverted else pixels
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    dataset.BitsAllocated = 8 if scanner.bits == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = scanner.bits, scanner.bits - 1, 0
    if scanner.modality == "DX":
        dataset.PresentationLUTShape = "INVERSE" if scanner.inverted else "IDENTITY"
        dataset.ImagerPixelSpacing = [round(DETECTOR_WIDTH / size, 4) for size in pixels.shape]
    if scanner.window:
        # PS3.3 C.11.2.1.2: this centre and width map exactly 0..largest to the full range of greys.
        dataset.WindowCenter, dataset.WindowWidth = (largest + 1) / 2, largest + 1
    dataset.PixelData = stored.astype("<u1" if scanner.bits == 8 else "<u2").tobytes()
