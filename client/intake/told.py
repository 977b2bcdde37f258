"""Labels that DICOM itself tells: an attribute of the images' headers, or the findings of Structured Reports.

Reports are those of TID 1500, "Measurement Report" (PS3.16): a group of measurements names what was found, or evaluates
it, in one or several images; one that names no image speaks of all the images that the report refers to.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from client.intake.dicom import is_draft
from client.intake.folder import FoundFile
from client.intake.identity import Pseudonyms
from client.intake.labels import Labels, Row, file_key, label_of
from common.errors import DataError, UsageError

REPORTS = frozenset({
    "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34",
})  # fmt: skip
"""Enhanced, Comprehensive and Comprehensive 3D SR."""
_EVIDENCE = "CurrentRequestedProcedureEvidenceSequence"


def labels_of_tag(folder: Path, files: Sequence[FoundFile], keyword: str) -> Labels:
    """Return each DICOM file's label as the value of an attribute, by its keyword (PS3.6), e.g. ViewPosition.

    Several values are joined by "|". Raises UsageError for no keyword of the dictionary, DataError where no file has
    it.
    """
    if tag_for_keyword(keyword) is None:
        raise UsageError(f'--label-tag "{keyword}": no keyword of DICOM\'s dictionary (PS3.6), e.g. ViewPosition')
    rows = {}
    for found in files:
        header = _header(folder / found.path, [keyword])
        value = header.get(keyword) if header is not None else None
        if value is not None and str(value).strip():
            parts = value if isinstance(value, pydicom.multival.MultiValue) else [value]
            rows[file_key(found.path)] = Row(0, label_of("|".join(str(part) for part in parts)), "")
    if not rows:
        raise DataError(f'{folder}: no DICOM file in it has a value of "{keyword}"')
    return Labels(folder, "file", rows)


def labels_of_reports(folder: Path, files: Sequence[FoundFile], pseudonyms: Pseudonyms) -> Labels:
    """Return the labels that the folder's Structured Reports give its images; a model's drafts are no such reports.

    Raises DataError where there are none.
    """
    told: dict[str, set[str]] = {}
    for found in files:
        header = _header(folder / found.path, ["SOPClassUID", "Manufacturer", "ManufacturerModelName"])
        if header is None or str(header.get("SOPClassUID", "")) not in REPORTS or is_draft(header):
            continue
        for uid, label in findings_of(folder / found.path):
            told.setdefault(pseudonyms.of("instance", uid), set()).add(label)
    if not told:
        raise DataError(f"{folder}: no Structured Report in it (TID 1500) says what was found in an image")
    return Labels(folder, "instance", {key: Row(0, label_of("|".join(names)), "") for key, names in told.items()})


def findings_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a report says of images as a whole: SOP Instance UID and label. Nothing of one that can't be read."""
    report = read_report(path)
    if report is None:
        return
    for group in report.content.get_image_measurement_groups():
        named = [group.finding_type] if group.finding_type is not None else []
        named += [evaluation.value for evaluation in group.get_qualitative_evaluations()]
        images = [item.referenced_sop_instance_uid for item in group.source_images or ()]
        for uid in images or instances_of(report):
            yield from ((str(uid), str(code.meaning)) for code in named)


def read_report(path: Path) -> Any | None:
    """Return a Structured Report of TID 1500; None for any other file, and for one that can't be understood."""
    from highdicom.sr import MeasurementReport, srread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            report = srread(path)
        except Exception:  # foreign bytes make highdicom raise nearly anything
            return None
    return report if isinstance(report.content, MeasurementReport) else None


def instances_of(report: Dataset) -> list[str]:
    """Return the SOP Instance UIDs of the images that a report refers to."""
    return [
        str(instance.ReferencedSOPInstanceUID)
        for study in report.get(_EVIDENCE) or ()
        for series in study.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedSOPSequence") or ()
    ]


def _header(path: Path, keywords: list[str]) -> Dataset | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=keywords)
        except Exception:  # foreign bytes make pydicom raise nearly anything: it is no DICOM file
            return None
