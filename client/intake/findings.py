"""What the steward should know of an import besides what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from client.catalog import FileRecord, Summary
from client.intake.labels import Labels
from client.intake.table import NO_VALUE

OFTEN_ANNOTATED = frozenset({"US", "ES", "XC", "SC", "OT", "GM", "OP"})
"""Modalities whose pixels often carry text: ultrasound, endoscopy, photographs, secondary captures."""


def findings(
    records: Sequence[FileRecord], summary: Summary | None, labels: Labels | None, *, closed_folders: int = 0
) -> tuple[str, ...]:
    """Return one line for each finding; nothing when all is well."""
    taken = [record for record in records if not record.reason]
    lines = [*_of_files(taken), *_of_labels(labels, taken)]
    if summary is not None:
        lines += _of_collection(summary)
    if closed_folders:
        lines.append(f"can't be read: {_count(closed_folders, 'folder')}: what was known of the files there stays")
    return tuple(lines)


def of_columns(left_out: Sequence[tuple[str, str]], refused: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each reason why columns of a table were left out, and one for columns that lack values."""
    lines = []
    for why in dict.fromkeys(why for _, why in left_out):
        names = [name for name, reason in left_out if reason == why]
        lines.append(f"{'column' if len(names) == 1 else 'columns'} not imported ({why}): {', '.join(names)}")
    empty = Counter(
        name
        for _, reason in refused
        if reason.startswith(NO_VALUE)
        for name in reason.removeprefix(NO_VALUE).split(", ")
    )
    if empty:
        counts = ", ".join(f"{name} {count}" for name, count in empty.most_common())
        lines.append(
            f"rows without a value, by column: {counts}: leave a column out by naming the others with --column"
        )
    return lines


def _of_files(taken: Sequence[FileRecord]) -> list[str]:
    lines = []
    if identified := sum(bool(record.identifiers) for record in taken):
        lines.append(f"taken although a person is identified, as allowed: {_count(identified, 'file')}")
    if burned := sum(bool(record.burned_in) for record in taken):
        lines.append(f"taken although text in the pixels is declared, as allowed: {_count(burned, 'file')}")
    silent = sum(
        record.format == "dicom" and record.burned_in is None and record.modality in OFTEN_ANNOTATED and not record.copy
        for record in taken
    )
    if silent:
        lines.append(f"of a modality often annotated, and silent on text in the pixels: {_count(silent, 'file')}: look")
    if nameless := sum(record.format == "dicom" and not record.own_patient for record in taken):
        lines.append(f"without a Patient ID: {_count(nameless, 'file')}: each of their studies counts as a patient")
    if plain := sum(record.copy is not None and not record.copy.path for record in taken):
        lines.append(f"not DICOM, so read in place and not de-identified: {_count(plain, 'file')}")
    return lines


def _of_labels(labels: Labels | None, taken: Sequence[FileRecord]) -> list[str]:
    lines = []
    rows = [record for record in taken if record.format == "table"]
    if not rows and labels is not None and (unused := len(labels.rows) - len(labels.used)):
        lines.append(f"rows of the label file that match no readable image: {unused}")
    if rows and labels is not None and not any(row.patient for row in labels.rows.values()):
        lines.append('every row counts as a patient: if several are of one person, say so by a column "patient"')
    plain = [record for record in taken if record.format not in ("dicom", "table") and not record.own_patient]
    if plain and len({record.patient for record in plain}) == len(plain) > 1:
        lines.append(
            "every file that names no patient (PNG, JPEG, NIfTI) counts as one: if several are of one person, say so "
            "by a patient column in the label file, or by a folder for each patient"
        )
    return lines


def _of_collection(summary: Summary) -> list[str]:
    lines = []
    values = summary.labels
    labelled = sum(values.values())
    if not labelled:
        lines.append("no labels: a classification needs a label file")
    elif labelled < summary.images:
        lines.append(f"without a label: {_count(summary.images - labelled, 'image')}: import their folder with labels")
    if len(values) == 1:
        lines.append(f'one class only ("{next(iter(values)) or "none"}"): a training on it is refused')
    elif len(values) > 1 and len(summary.splits["train"].labels) == 1:
        lines.append("the training split has one class only: a training on it is refused")
    lines += [f"the {name} split is empty" for name, split in summary.splits.items() if split.images == 0]
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
