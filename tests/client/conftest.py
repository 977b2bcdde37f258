"""What the intake's tests share: a kit's folder, and writers of real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


@pytest.fixture
def kit_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    folder.mkdir()
    return folder


@pytest.fixture
def write_kit():
    """Write the kit.toml that makes a folder the kit of the site "north"."""

    def write(folder: Path) -> Path:
        fields = {"role": "site", "name": "north", "federation": "f", "federation_id": "0" * 64}
        fields["address"] = "127.0.0.1:1"
        (folder / "kit.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in fields.items()))
        return folder

    return write


@pytest.fixture
def write_dicom():
    """Write a DICOM file that names nobody; keywords set attributes, `pixels` the stored values."""

    def write(path: Path, *, pixels=None, seed: int = 0, syntax=ExplicitVRLittleEndian, **attributes: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(abs(hash((seed, str(path)))) % 2**32)
        stored = generator.integers(0, 4096, (24, 20), dtype=np.uint16) if pixels is None else pixels
        dataset = Dataset()
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = attributes.pop("SOPInstanceUID", generate_uid())
        dataset.StudyInstanceUID = attributes.pop("StudyInstanceUID", generate_uid())
        dataset.SeriesInstanceUID = attributes.pop("SeriesInstanceUID", generate_uid())
        dataset.PatientID = "STUDY-001"
        dataset.PatientName = ""
        dataset.PatientIdentityRemoved = "YES"
        dataset.BurnedInAnnotation = "NO"
        dataset.Modality = "DX"
        dataset.SamplesPerPixel = 3 if stored.ndim > 2 and stored.shape[-1] == 3 else 1
        dataset.PhotometricInterpretation = "RGB" if dataset.SamplesPerPixel == 3 else "MONOCHROME2"
        if dataset.SamplesPerPixel == 3:
            dataset.PlanarConfiguration = 0
        plane = stored.shape[:-1] if dataset.SamplesPerPixel == 3 else stored.shape
        if len(plane) == 3:
            dataset.NumberOfFrames = plane[0]
        dataset.Rows, dataset.Columns = plane[-2:]
        bits = stored.dtype.itemsize * 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
            if value is None:
                delattr(dataset, keyword)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def hospital(tmp_path: Path, write_dicom):
    """A folder of 12 patients with two images each, and its label file by patient."""
    folder = tmp_path / "images"
    rows = ["patient,label"]
    for patient in range(12):
        for image in range(2):
            write_dicom(folder / f"p{patient}" / f"{image}.dcm", PatientID=f"STUDY-{patient:03}", seed=image)
        rows.append(f"STUDY-{patient:03},{'sick' if patient % 3 == 0 else 'well'}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows) + "\n")
    return folder, labels
