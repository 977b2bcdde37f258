"""One DICOM file becomes its de-identified copy, or is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.intake.confidentiality import burned_in_annotation, identifying_keywords
from client.intake.deidentification import faces
from client.intake.deidentification.attributes import treat
from client.intake.deidentification.burned_in import is_at_risk, shows_a_label
from client.intake.deidentification.pixels import (
    Pictures,
    clean_text,
    clear_unused_bits,
    find_text,
    has_embedded_overlay,
    ultrasound_regions,
)
from client.intake.deidentification.profile import EDITION
from client.intake.deidentification.substitutes import Substitutes
from client.intake.deidentification.treatment import OPTIONS, Treatment
from client.intake.dicom import DICOMDIR
from client.intake.identity import Pseudonyms
from client.intake.image import FileRefusedError, reasoned

VERSION = 1
"""Raised whenever the same file would get another copy: copies are then made anew."""
FACES = ("keep", "refuse", "remove")
_ALWAYS = ("113100", "113104", "113105", "113107", "113108", "113109", "113111")


@dataclass(frozen=True)
class Method:
    """How an import de-identifies. `faces` is the policy's word on head CT and MRI; the others are the options'."""

    clean_pixels: bool = False
    allow_burned_in: bool = False
    faces: Literal["keep", "refuse", "remove"] = "keep"

    @property
    def name(self) -> str:
        """Tell this method from all others, and from those of other versions."""
        return json.dumps([VERSION, EDITION, *asdict(self).values()])


@dataclass(frozen=True, repr=False)
class Identity:
    """Whose a file is and what it belongs to, as it stands in the file."""

    patient: str
    study: str
    series: str
    instance: str


@dataclass(frozen=True, repr=False)
class Made:
    """A de-identified copy, as a file's bytes; what was done; and whose the file was, which never leaves memory."""

    content: bytes
    treatment: Treatment
    identity: Identity


@dataclass(frozen=True)
class Deidentifier:
    """De-identifies files. `planes` are the planes behind the faces, or why there is none, by Series Instance UID."""

    method: Method
    pseudonyms: Pseudonyms
    planes: Mapping[str, faces.Plane | str] = field(default_factory=dict)

    def made(self, path: Path) -> Made:
        """Return a file's copy.

        Raises
        ------
        FileRefusedError
            It is no data set of an image or an annotation, is damaged, shows text or a face that must not be shown, or
            would identify somebody after all.
        """
        with reasoned("it can't be de-identified", passing=(OSError,)):
            dataset = _read(path)
            identity = _identity(dataset)
            treatment = Treatment()
            head = faces.is_head(dataset)
            if "PixelData" in dataset:
                self._pixels(dataset, identity, treatment, head=head)
            treat(dataset, Substitutes(self.pseudonyms, self._patient(identity)), treatment)
            _declare(dataset, treatment, head=head)
            if left := identifying_keywords(dataset):
                raise FileRefusedError(f"it can't be de-identified: {', '.join(left)}")
            return Made(_written(dataset), treatment, identity)

    def _patient(self, identity: Identity) -> str:
        """The pseudonym that the catalog gives the patient, too."""
        if identity.patient:
            return self.pseudonyms.of("patient", identity.patient)
        study = self.pseudonyms.of("study", identity.study or identity.series or identity.instance)
        return self.pseudonyms.of("patient of", study)

    def _pixels(self, dataset: Dataset, identity: Identity, treatment: Treatment, *, head: bool) -> None:
        if head and self.method.faces == "refuse":
            raise FileRefusedError("a head scan: a face may be seen in it, and the policy refuses that")
        if shows_a_label(dataset):
            raise FileRefusedError("a slide's label, or an image that shows it")
        look, mask = not self.method.allow_burned_in and is_at_risk(dataset), head and self.method.faces == "remove"
        hidden = has_embedded_overlay(dataset)
        if not look and not mask and not hidden:
            return
        with reasoned("the pixels can't be decoded", passing=(OSError,)):
            pictures = Pictures.of(dataset)
        changed = hidden
        if hidden:
            clear_unused_bits(pictures)
        if look:
            treatment.regions = self._text(pictures)
            changed |= treatment.regions > 0
        if mask:
            treatment.face = self._face(pictures, identity)
            changed |= treatment.face
        if changed:
            pictures.write_back()

    def _text(self, pictures: Pictures) -> int:
        """Deal with text in the pixels; return how many regions were blanked."""
        dataset = pictures.dataset
        if self.method.clean_pixels:
            regions = ultrasound_regions(dataset) if dataset.get("Modality") == "US" else []
            count = clean_text(pictures, regions)
            if not count and burned_in_annotation(dataset):
                raise FileRefusedError("burned-in annotation: the file declares text, and none is found to blank")
            return count
        if found := len(find_text(pictures)):
            raise FileRefusedError(
                f"burned-in text: found in the pixels, in {found} places: --clean-pixels blanks it in the copy"
            )
        if burned_in_annotation(dataset):
            raise FileRefusedError("burned-in annotation: the file declares text in its pixels")
        return 0

    def _face(self, pictures: Pictures, identity: Identity) -> bool:
        plane = self.planes.get(identity.series, "its series was not surveyed")
        if isinstance(plane, str):
            raise FileRefusedError(f"a head scan whose face can't be removed: {plane}")
        frames, shape = len(pictures.stored), pictures.stored.shape[1:3]
        removed = False
        for index, mask in enumerate(faces.face_masks(pictures.dataset, plane, (shape[0], shape[1]), frames)):
            if mask.any():
                pictures.blank_where(index, mask)
                removed = True
        return removed


def survey(paths: list[Path]) -> dict[str, faces.Plane | str]:
    """Return, by Series Instance UID, the plane behind the face of each head CT or MRI among the files, or why none.

    Every file's header is read, and the pixels of those that show a head; one series is held in memory at a time, in
    points 2 mm apart.
    """
    series: dict[str, list[Path]] = {}
    for path in paths:
        try:
            with reasoned("not readable", passing=(OSError,)):
                header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                if faces.is_head(header) and "Rows" in header:
                    series.setdefault(_identity(header).series, []).append(path)
        except FileRefusedError:
            continue  # it is refused for that when its turn comes
    return {uid: _plane(members) for uid, members in series.items()}


def _plane(paths: list[Path]) -> faces.Plane | str:
    found = faces.Survey()
    for path in paths:
        try:
            with reasoned("the pixels can't be decoded", passing=(OSError,)):
                dataset = _read(path)
                found.add(dataset, Pictures.of(dataset).stored)
        except FileRefusedError as error:
            return str(error)
    return found.plane()


def _read(path: Path) -> Dataset:
    """Read a whole file, with a file meta that says at least how it is encoded."""
    dataset = pydicom.dcmread(path, force=True)
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    kind = str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    if kind == DICOMDIR or "DirectoryRecordSequence" in dataset:
        raise FileRefusedError("no image: a DICOMDIR, the index of other files")
    if "EncapsulatedDocument" in dataset:
        raise FileRefusedError("no image: a document in a DICOM file, which can't be de-identified")
    if not kind:
        raise FileRefusedError("not a readable DICOM file: it has no SOP class")
    if not dataset.get("SOPInstanceUID"):
        raise FileRefusedError("not a readable DICOM file: it has no SOP Instance UID")
    dataset.SOPClassUID = kind
    if "TransferSyntaxUID" not in meta:
        meta.TransferSyntaxUID = _encoding(dataset)
    dataset.file_meta = meta
    return dataset


def _encoding(dataset: Dataset) -> UID:
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _identity(dataset: Dataset) -> Identity:
    keywords = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return Identity(*(str(dataset.get(keyword) or "").strip("\0 ") for keyword in keywords))


def _declare(dataset: Dataset, treatment: Treatment, *, head: bool) -> None:
    """Say in the copy what was done (PS3.15 E.2 and E.3, PS3.3 C.7.1.1 and C.12.1.1)."""
    codes = [*_ALWAYS]
    if treatment.regions:
        codes.append("113101")
        dataset.BurnedInAnnotation = "NO"
    if treatment.face:
        codes.append("113102")
    if head:
        dataset.RecognizableVisualFeatures = "NO" if treatment.face else "YES"
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethod = ["Ward Round", f"DICOM PS3.15 {EDITION} Annex E, Basic Profile"]
    dataset.DeidentificationMethodCodeSequence = [_code(value) for value in sorted(codes)]


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", OPTIONS[value]
    return item


def _written(dataset: Dataset) -> bytes:
    """The data set as the bytes of a file, with a file meta and a preamble of its own."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    if not meta.TransferSyntaxUID.is_implicit_VR:
        _give_representations(dataset)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _give_representations(dataset: Dataset) -> None:
    """Look up value representations that a file does not give although its transfer syntax says that it does."""
    for tag in list(dataset.keys()):
        if dataset.get_item(tag).VR is None:
            dataset[tag].value  # noqa: B018 - decodes it
        if dataset.get_item(tag).VR == "SQ":
            for item in dataset[tag].value:
                _give_representations(item)
