"""What every result says of itself: which model made it, that nobody has verified it, and that it is no medical device.

In DICOM's own places: Algorithm Identification (PS3.16 TID 4019, PS3.3 10.16) and Contributing Equipment (PS3.3
C.12.1.1.5), Software Versions, and the flags by which a report says that it is a draft (PS3.3 C.17.2).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from client.intake.dicom import MAKER, MODEL_NAME
from client.intake.image import FileRefusedError, one_line
from client.results.source import Source
from common.job import Job
from common.model_file import Provenance, SavedModel, code_version

NOTE = "Research model's draft, read by nobody. Not a medical device."
"""Under 64 characters: it stands where the standard allows no more (PS3.5, VR LO)."""
SERIAL = "0"
OWN_SCHEME = "99WARDROUND"
"""The coding scheme of the job's own labels: private schemes begin with 99 (PS3.16, 8.2)."""
SERIES_NUMBERS = {"SR": 8101, "SEG": 8102, "SC": 8103, "PM": 8104, "MR": 8105}
_MUST_BE_THERE = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of patient and study that may be empty and not absent (type 2): a source without one gets it empty."""


@dataclass(frozen=True)
class About:
    """The model that results come from."""

    job: Job
    provenance: Provenance
    sha256: str

    @classmethod
    def of(cls, model: SavedModel) -> About:
        """Return what is to be said of a model."""
        return cls(model.job, model.provenance, model.sha256)

    @property
    def description(self) -> str:
        """The result's series in a viewer's list."""
        return f"{self.job.name}: draft of a research model"[:64]

    @property
    def version(self) -> str:
        """The model's version: its run, and the round after which it stood."""
        return f"{self.provenance.run}, round {self.provenance.round}"[:64]

    @property
    def facts(self) -> dict[str, str]:
        """Where the model comes from, for people and programs."""
        return {
            "run": self.provenance.run,
            "round": str(self.provenance.round),
            "job": self.job.name,
            "job_digest": self.provenance.job_digest,
            "model_sha256": self.sha256,
            "note": NOTE,
        }

    def device(self) -> dict[str, Any]:
        """Return what highdicom's constructors want to know of what made an object."""
        return {
            "manufacturer": MAKER,
            "manufacturer_model_name": MODEL_NAME,
            "software_versions": code_version(),
            "device_serial_number": SERIAL,
            "contributing_equipment": [self._equipment()],
        }

    def mark(self, made: Dataset) -> None:
        """Say in an object that was made without highdicom what made it: as `device` does for its constructors."""
        made.Manufacturer, made.ManufacturerModelName, made.DeviceSerialNumber = MAKER, MODEL_NAME, SERIAL
        made.SoftwareVersions = code_version()
        made.ContributingEquipmentSequence = [self._equipment()]

    def _equipment(self) -> Any:
        import highdicom
        from pydicom.sr.codedict import codes

        return highdicom.ContributingEquipment(
            MAKER,
            codes.DCM.ProcessingEquipment,
            manufacturer_model_name=MODEL_NAME,
            software_versions=code_version(),
            device_serial_number=SERIAL,
            contribution_description=f"{NOTE} {self._origin()}"[:1024],
        )

    def algorithm(self) -> Any:
        """Return TID 4019 for a report."""
        import highdicom

        return highdicom.sr.AlgorithmIdentification(
            name=self.job.name, version=self.version, manufacturer=MAKER, parameters=[NOTE, self._origin()]
        )

    def algorithm_sequence(self) -> Any:
        """Return the Algorithm Identification Sequence of an image or segment."""
        import highdicom
        from pydicom.sr.codedict import codes

        return highdicom.AlgorithmIdentificationSequence(
            name=self.job.name[:64], family=codes.DCM.ArtificialIntelligence, version=self.version, source=MAKER,
            parameters=self.facts,
        )  # fmt: skip

    def _origin(self) -> str:
        return (
            f"run {self.provenance.run}, round {self.provenance.round}; job {self.provenance.job_digest}; "
            f"model SHA-256 {self.sha256}"
        )

    def label(self, name: str) -> Any:
        """Return the code of one of the job's labels."""
        import highdicom

        return highdicom.sr.CodedConcept(name[:64], OWN_SCHEME, name[:64])


def headers_of(source: Source) -> list[Dataset]:
    """Return the headers of a DICOM source's files, with empty what may be empty but not absent.

    Raises FileRefusedError when one says no study, series or instance: then nothing can refer to it.
    """
    found: list[Dataset] = []
    for path in source.paths:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            if not header.get(keyword):
                raise FileRefusedError(f"it has no {keyword}: no DICOM result can refer to it")
        for keyword in _MUST_BE_THERE:
            if keyword not in header:
                setattr(header, keyword, "")
        found.append(header)
    return found


@contextmanager
def making(what: str) -> Iterator[None]:
    """Turn whatever highdicom says of a source that it can make nothing for into one reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a source leaves out and highdicom would copy
        try:
            yield
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise FileRefusedError(f"no {what} can be made for it: {one_line(error)}") from error


def identity(kind: str) -> dict[str, Any]:
    """Return the identifiers of a new object, alone in its series."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": SERIES_NUMBERS[kind],
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
    }


def save(dataset: Dataset, path: Path) -> None:
    """Write a DICOM object as a file (PS3.10)."""
    dataset.save_as(path, enforce_file_format=True)


def place_names(source: Source, order: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Return the file and the frame (counted from 1) of a view for a table; of a volume its first file and no frame."""
    file, frame = order[0]
    whole = len(order) > 1
    return str(source.paths[file]), "" if whole or source.frames[file] == 1 else str(frame + 1)
