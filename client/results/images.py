"""Reconstructed images as results, on the grid of the images that they are of: a DICOM MR series, NIfTI or PNG.

The source is taken as fully sampled: its k-space is made by Fourier transform and columns are left out, as in training.
So a result shows what the network makes of less; each says so, and whether the source was an image or raw k-space.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from client.intake.dicom import frame_header
from client.intake.image import FileRefusedError, Pixels
from client.intake.kspace import grid
from client.intake.nifti import write_unplaced, write_values
from client.placing import map_back
from client.results.about import NOTE, SERIES_NUMBERS, About, headers_of, making, place_names, save
from client.results.prediction import Answer
from client.results.source import Source
from client.results.writer import Written
from common.tasks.parameters import Reconstruction
from common.tasks.reconstruction import MEASURES
from common.tasks.task import Task

STEPS = 65535
_PLACED = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
"""What an MR image must say of where it lies (PS3.3 C.7.4.1, C.7.6.2)."""
_KEPT = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC",
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "BodyPartExamined", "Laterality", "PatientPosition", *_PLACED,
    "PositionReferenceIndicator", "SliceThickness", "SpacingBetweenSlices", "SliceLocation",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber", "ProtocolName", "SequenceName", "ScanningSequence",
    "SequenceVariant", "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength",
    "InversionTime", "TriggerTime", "FlipAngle", "MagneticFieldStrength", "ContrastBolusAgent",
    "BurnedInAnnotation", "RecognizableVisualFeatures", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip
"""What a derived image has from its source: whose it is, where it lies, and how it was acquired."""
_MAY_BE_EMPTY = (
    "Laterality", "PositionReferenceIndicator", "SliceThickness", "ScanOptions", "MRAcquisitionType", "RepetitionTime",
    "EchoTime", "EchoTrainLength",
)  # fmt: skip
"""Type 2 of an MR image and its series (PS3.3 C.8.3.1, C.7.3.1): a source without one gets it empty."""


def write_images(source: Source, answers: Iterable[Answer], task: Task, about: About, path: Path) -> Written:
    """Write what the network makes of each image or volume, and how far that is from the image itself.

    Raises FileRefusedError.
    """
    headers = _placed_headers(source) if source.dicom else []
    images, rows = _restored(source, answers, task)
    if source.format == "kspace":
        target = path.with_name(f"{path.name}.recon.nii.gz")
        write_unplaced(np.stack(images), grid(source.paths).spacing, target, f"raw, undersampled: {about.job.name}")
        return Written((target,), rows)
    if source.format == "nifti":
        target = path.with_name(f"{path.name}.recon.nii.gz")
        write_values(np.stack(images), source.paths[0], target, f"fully sampled image, undersampled: {about.job.name}")
        return Written((target,), rows)
    if not source.dicom:
        target = path.with_name(f"{path.name}.recon.png")
        _write_png(images[0], described(about), target)
        return Written((target,), rows)
    with making("MR series"):
        series = _series(headers, source, images, about)
    many = len(series) > 1
    targets = [path.with_name(f"{path.name}.recon{f'-{n:04}' * many}.dcm") for n in range(1, len(series) + 1)]
    for made, target in zip(series, targets, strict=True):
        save(made, target)
    return Written(tuple(targets), rows)


def described(about: About) -> str:
    """Return what a result is, and what it is not."""
    known = about.job.task.known_parameters
    settings = known if isinstance(known, Reconstruction) else Reconstruction()
    return (
        f"Image by the model {about.job.name} ({about.version}) from undersampled k-space. The source image was taken "
        f"as fully sampled: k-space was made of it by Fourier transform, and one column of {settings.acceleration:g} "
        f"kept ({settings.mask}, middle {settings.center_fraction:.0%}). It is made of no scanner's raw data. {NOTE}"
    )


def _restored(source: Source, answers: Iterable[Answer], task: Task) -> tuple[list[Pixels], tuple[dict[str, str], ...]]:
    """Each image of the source in the order of its files and frames, in [0, 1]; and rows of the table."""
    first = [0, *accumulate(source.frames)]
    found: dict[int, Pixels] = {}
    rows = []
    for answer in answers:
        own = map_back(answer.outputs[0].nan_to_num().clamp(0, 1).numpy(), answer.view.place)
        planes = own if own.ndim == 3 else own[np.newaxis]
        for (file, frame), plane in zip(answer.view.order, planes, strict=True):
            found[first[file] + frame] = plane
        rows.append(_row(source, answer, task))
    return [found[place] for place in sorted(found)], tuple(rows)


def _row(source: Source, answer: Answer, task: Task) -> dict[str, str]:
    """How near the result is to the image itself, both on the job's grid."""
    file, frame = place_names(source, answer.view.order)
    scores = task.scores(answer.outputs[None], torch.from_numpy(answer.view.image)[None])[0].tolist()
    measured = {name: f"{value:.6f}" * isfinite(value) for name, value in zip(MEASURES, scores, strict=True)}
    return {"file": file, "frame": frame} | measured


def _write_png(image: Pixels, description: str, path: Path) -> None:
    said = PngInfo()
    said.add_text("Description", description)
    shown = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    shown.save(path, format="PNG", pnginfo=said)


def _placed_headers(source: Source) -> list[Dataset]:
    """The headers of MR images that say where they lie. Raises FileRefusedError."""
    headers = headers_of(source)
    for header in headers:
        if (modality := str(header.get("Modality") or "of no modality")) != "MR":
            raise FileRefusedError(f"{modality}, not MR: reconstruction is of MR images")
        frame = frame_header(header, 0)
        if missing := [keyword for keyword in _PLACED if not frame.get(keyword)]:
            raise FileRefusedError(f"it has no {missing[0]}: no MR series can be made of it")
    return headers


def _series(headers: Sequence[Dataset], source: Source, images: Sequence[Pixels], about: About) -> list[Dataset]:
    """PS3.3 A.4, an object for each image, all in one new series."""
    now, series = datetime.now(), generate_uid()
    places = [(file, frame) for file, frames in enumerate(source.frames) for frame in range(frames)]
    made = []
    for number, ((file, frame), image) in enumerate(zip(places, images, strict=True), start=1):
        one = _derived(frame_header(headers[file], frame), image, about)
        one.SeriesInstanceUID, one.SeriesNumber = series, SERIES_NUMBERS["MR"]
        one.InstanceNumber = (headers[file].get("InstanceNumber") or number) if source.frames[file] == 1 else number
        one.ContentDate = one.SeriesDate = one.InstanceCreationDate = now.strftime("%Y%m%d")
        one.ContentTime = one.SeriesTime = one.InstanceCreationTime = now.strftime("%H%M%S")
        one.SourceImageSequence = [_origin(headers[file], frame if source.frames[file] > 1 else None)]
        made.append(one)
    return made


def _derived(header: Dataset, image: Pixels, about: About) -> Dataset:
    made = Dataset()
    for keyword in _KEPT:
        if keyword in header:
            made[keyword] = copy.deepcopy(header[keyword])
    for keyword in _MAY_BE_EMPTY:
        if keyword not in made:
            setattr(made, keyword, None)
    if not made.get("ScanningSequence"):
        made.ScanningSequence = "RM"
    if not made.get("SequenceVariant"):
        made.SequenceVariant = "NONE"
    made.SOPClassUID, made.SOPInstanceUID = MRImageStorage, generate_uid()
    made.Modality, made.ImageType = "MR", ["DERIVED", "SECONDARY", "OTHER"]
    made.SeriesDescription, made.DerivationDescription = about.description, described(about)[:1024]
    made.ImageComments = NOTE
    about.mark(made)
    _fill(made, np.rint(image * STEPS).astype("<u2"))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def _fill(made: Dataset, stored: npt.NDArray[Any]) -> None:
    """Pixels of 16 bits, and the window that shows all of them (PS3.3 C.11.2.1.2.1)."""
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = stored.shape
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    made.WindowCenter, made.WindowWidth = (STEPS + 1) // 2, STEPS + 1
    made.PixelData = stored.tobytes()


def _origin(header: Dataset, frame: int | None) -> Dataset:
    """The image that another was derived from (PS3.3 C.7.6.1.1.4)."""
    origin, purpose = Dataset(), Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code.value, "DCM", code.meaning
    origin.ReferencedSOPClassUID, origin.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frame is not None:
        origin.ReferencedFrameNumber = frame + 1
    origin.PurposeOfReferenceCodeSequence, origin.SpatialLocationsPreserved = [purpose], "YES"
    return origin
