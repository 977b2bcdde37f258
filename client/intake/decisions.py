"""Which files are indexed, under whom and with which label; and why the others are not.

Everything here follows from the records, the labels and the options: no file is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from client.catalog import FileRecord
from client.intake.folder import shown
from client.intake.identity import Pseudonyms
from client.intake.labels import Labels, Row, file_key
from client.intake.options import ImportOptions

_A_TABLE = "a table: give labels of images by --labels, and import a table of features by its own name"


@dataclass(frozen=True)
class Rules:
    """What decides. `label_file` is the label file's path in the imported folder, or "" when it is elsewhere.

    `labelled` says whether the collection has labels from earlier imports.
    """

    options: ImportOptions
    pseudonyms: Pseudonyms
    labels: Labels | None
    label_file: str
    labelled: bool


def decide(
    records: Sequence[FileRecord], before: Mapping[str, FileRecord], elsewhere: Iterable[FileRecord], rules: Rules
) -> list[FileRecord]:
    """Return the records with `reason`, `patient` and `label` set. `before` are the folder's earlier ones, by path.

    Of files with the same content (or the same SOP Instance UID) one is indexed: the one that already is, else the
    first by path, so that adding a copy changes nothing. `elsewhere` are the records of the collection's other folders.
    """
    contents: dict[str, str] = {}
    for other in elsewhere:
        if not other.reason:
            _claim(contents, other, f"{other.root}/{other.path}")
    decided = {}
    for record in sorted(records, key=lambda record: (not _was_indexed(record, before), record.path)):
        judged = _judge(record, before.get(record.path), rules)
        if not judged.reason and (first := contents.get(record.sha256)):
            judged = replace(judged, reason=f"a duplicate: the same content as {shown(first)}")
        elif not judged.reason and record.instance and (first := contents.get(record.instance)):
            judged = replace(judged, reason=f"a duplicate: the same SOP Instance UID as {shown(first)}")
        if judged.reason:
            judged = replace(judged, label=None)
        else:
            _claim(contents, judged, judged.path)
        decided[record.path] = judged
    return [decided[record.path] for record in records]


def row_of(record: FileRecord, rules: Rules) -> Row | None:
    """Return the label file's row for a file, or None."""
    return rules.labels.find(record, _patient_of_path(record, rules)) if rules.labels is not None else None


def _claim(contents: dict[str, str], record: FileRecord, path: str) -> None:
    contents[record.sha256] = path
    if record.instance:
        contents[record.instance] = path


def _was_indexed(record: FileRecord, before: Mapping[str, FileRecord]) -> bool:
    earlier = before.get(record.path)
    return earlier is not None and not earlier.reason and earlier.sha256 == record.sha256


def _judge(record: FileRecord, before: FileRecord | None, rules: Rules) -> FileRecord:
    if record.path == rules.label_file:
        return replace(record, reason="the label file itself")
    if record.unreadable:
        table = record.path.casefold().endswith((".csv", ".tsv")) and record.unreadable != "an empty file"
        return replace(record, reason=_A_TABLE if table else record.unreadable)
    row, from_folder = row_of(record, rules), _patient_of_path(record, rules)
    same = before if before is not None and before.sha256 == record.sha256 and not before.reason else None
    label, missing = _label(record, row, same, rules)
    patient = _patient(record, row, from_folder, same if rules.labels is None else None, rules.pseudonyms)
    return replace(record, patient=patient, label=label, reason=_objection(record, rules.options) or missing)


def _objection(record: FileRecord, options: ImportOptions) -> str:
    """Why the options don't take this file, or nothing."""
    if options.modalities and record.modality not in options.modalities:
        return f"another modality: {record.modality}"
    if record.identifiers and not options.allow_identified:
        return f"identifies a person: {', '.join(record.identifiers)}"
    if record.burned_in and not options.allow_burned_in:
        return "burned-in annotation: the file declares text in its pixels"
    return ""


def _label(record: FileRecord, row: Row | None, same: FileRecord | None, rules: Rules) -> tuple[str | None, str]:
    """The file's label, and why it can't be indexed for want of one (or nothing)."""
    if rules.labels is None or rules.labels.bare:
        if same is not None:
            return same.label, ""
        return None, "no label: the collection is labelled, and no file of labels was given" if rules.labelled else ""
    if rules.labels.ambiguous(record):
        return None, "no sure label: several files have this name, so the label file must give the path"
    if row is None:
        return None, f"no label: the label file has no row for it by {rules.labels.kind}"
    if row.label is None:
        return None, f"no label: its cell in line {row.line} of the label file is empty"
    return row.label, ""


def _patient(
    record: FileRecord, row: Row | None, from_folder: str, same: FileRecord | None, pseudonyms: Pseudonyms
) -> str:
    """Whose the file is: its own Patient ID, what the label file says, what was known, its study, or its path."""
    if record.own_patient:
        return record.own_patient
    if row is not None and row.patient:
        return row.patient
    if same is not None:
        return same.patient
    if record.format == "dicom":  # without a Patient ID the study is the least that belongs together
        return pseudonyms.of("patient of", record.study or record.series or record.sha256)
    return from_folder


def _patient_of_path(record: FileRecord, rules: Rules) -> str:
    path = PurePosixPath(file_key(record.path))
    if rules.options.patient_from == "folder" and len(path.parts) > 1:
        return rules.pseudonyms.of("patient", path.parts[0])
    name = path.name.removesuffix(".gz")
    return rules.pseudonyms.of("patient", str(path.with_name(PurePosixPath(name).stem or name)))
