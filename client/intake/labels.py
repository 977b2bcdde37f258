"""Labels from a CSV file: a heading row, one column that says which images, and one that says what they show.

The column of keys is recognised by its name: file (or path), SOPInstanceUID, series (SeriesInstanceUID), study
(StudyInstanceUID), patient (PatientID). When there are several, the most specific one counts, and `patient` then says
whose a file is that can't say it itself (PNG, JPEG, NIfTI). Several labels are joined with "|"; in a file that has
such a row, an empty cell means that none of the labels applies. Elsewhere an empty cell is no label.

A column "split" fixes the split of a row's patient (train, validation or test) where a published one is to be kept; an
empty cell leaves it to the site's key.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from client.catalog import FileRecord
from client.intake.identity import Pseudonyms
from common.errors import DataError

COLUMNS = {
    "file": ("file", "path", "filename", "file_name"),
    "instance": ("sopinstanceuid", "instance", "sop_instance_uid"),
    "series": ("series", "seriesinstanceuid", "series_instance_uid"),
    "study": ("study", "studyinstanceuid", "study_instance_uid"),
    "patient": ("patient", "patientid", "patient_id"),
}
"""Each kind of key, the most specific first, with the column names that mean it (in any case)."""
_MEANING = {
    "file": "paths relative to the imported folder, or file names",
    "instance": "SOPInstanceUIDs",
    "series": "SeriesInstanceUIDs",
    "study": "StudyInstanceUIDs",
    "patient": "PatientIDs",
}
_SEPARATOR = "|"
SPLIT_COLUMN, LABEL_COLUMN = "split", "label"
_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row: its line in the file, the label (None when the cell is empty), the patient's pseudonym or "", the split.

    The split is "" where the file does not fix it.
    """

    line: int
    label: str | None
    patient: str
    split: str = ""


@dataclass
class Labels:
    """The rows by key: a pseudonym, or for files the path as it is written. Counts which rows were used.

    `bare` rows say which split a file is in, or whose it is, and have no labels: for tasks that need none.
    """

    source: Path
    kind: str
    rows: dict[str, Row]
    bare: bool = False
    used: set[str] = field(default_factory=set)
    names: dict[str, int] = field(default_factory=dict)

    def find(self, record: FileRecord, folder_patient: str) -> Row | None:
        """Return the row for a file, or None. `folder_patient` is the patient of a file that does not name one."""
        for key in self._keys(record, folder_patient):
            if key in self.rows:
                self.used.add(key)
                return self.rows[key]
        return None

    def ambiguous(self, record: FileRecord) -> bool:
        """Whether the label file names this file only by its name, and the folder has several of that name."""
        path = file_key(record.path)
        name = PurePosixPath(path).name
        by_name_only = self.kind == "file" and path not in self.rows and name in self.rows
        return by_name_only and self.names.get(name, 0) > 1

    def no_match(self, images: int) -> DataError:
        """The error for a label file of which no row matches any image."""
        return DataError(
            f"{self.source}: none of its {len(self.rows)} rows matches any of the {images} readable images: "
            f"its column of keys ({self.kind}) must hold {_MEANING[self.kind]}"
        )

    def _keys(self, record: FileRecord, folder_patient: str) -> tuple[str, ...]:
        if self.kind == "file":
            path = file_key(record.path)
            return (path, PurePosixPath(path).name)
        keys = {"instance": record.instance, "series": record.series, "study": record.study}
        return (keys.get(self.kind, record.own_patient or folder_patient),)


def file_key(path: str) -> str:
    """Return a path in the one form in which the label file's and the folder's are compared."""
    text = unicodedata.normalize("NFC", path.strip().replace("\\", "/"))
    return text.removeprefix("./")


def read_labels(
    path: Path, pseudonyms: Pseudonyms, *, key_column: str | None = None, label_column: str = LABEL_COLUMN
) -> Labels:
    """Read the label file; keys become pseudonyms at once. One with a column of splits need have none of labels.

    Raises
    ------
    DataError
        It can't be read, is no CSV text, lacks a column or a key, or one row contradicts another.
    """
    lines = read_rows(path, "label file")
    _, heading = next(lines, (0, []))
    names = [name.strip().casefold() for name in heading]
    bare = SPLIT_COLUMN in names and label_column == LABEL_COLUMN and LABEL_COLUMN not in names
    label_at = None if bare else _position(path, names, label_column)
    kind, key_at = _key(path, names, key_column)
    patient_at = next((at for at, name in enumerate(names) if name in COLUMNS["patient"]), None)
    split_at = names.index(SPLIT_COLUMN) if SPLIT_COLUMN in names else None
    rows: dict[str, Row] = {}
    for line, cells in lines:
        if len(cells) != len(names):
            raise DataError(f"{path}:{line}: the row has {len(cells)} cells, the heading has {len(names)}")
        if not cells[key_at].strip():
            raise DataError(f'{path}:{line}: the cell of the column "{heading[key_at].strip()}" is empty')
        patient = cells[patient_at].strip() if patient_at is not None else ""
        split = split_of(path, line, cells[split_at]) if split_at is not None else ""
        label = label_of(cells[label_at]) if label_at is not None else None
        row = Row(line, label, pseudonyms.of("patient", patient) if patient else "", split)
        text = cells[key_at].strip()
        key = file_key(text) if kind == "file" else pseudonyms.of(kind, text)
        _check_agreement(path, rows.setdefault(key, row), row)
    if not rows:
        raise DataError(f"{path}: the label file has no rows")
    return Labels(path, kind, told_apart(rows), bare=bare)


def told_apart(rows: dict[str, Row]) -> dict[str, Row]:
    """Return the rows with "" for an empty cell where a row has several labels: there it means that none applies."""
    if not any(_SEPARATOR in (row.label or "") for row in rows.values()):
        return rows
    return {key: replace(row, label=row.label or "") for key, row in rows.items()}


def _check_agreement(path: Path, first: Row, row: Row) -> None:
    """The same key twice is fine while it says the same."""
    if first.label != row.label:
        raise DataError(f"{path}:{row.line}: the row contradicts line {first.line}: the same key, another label")
    if first.patient != row.patient:
        raise DataError(f"{path}:{row.line}: the row contradicts line {first.line}: the same key, another patient")
    if first.split != row.split:
        raise DataError(f"{path}:{row.line}: the row contradicts line {first.line}: the same key, another split")


def split_of(path: Path, line: int, cell: str) -> str:
    """Return the split that a cell names, or "" for an empty one. Raises DataError for another word."""
    word = cell.strip().casefold()
    if word and word not in _SPLITS:
        raise DataError(
            f'{path}:{line}: the column "{SPLIT_COLUMN}" says "{cell.strip()[:20]}", which is neither train, '
            "validation nor test: if it means something else, call it otherwise"
        )
    return _SPLITS[word] if word else ""


def label_of(cell: str) -> str | None:
    """Return a cell's labels, sorted and joined with "|", or None for an empty one."""
    parts = sorted({part.strip() for part in cell.split(_SEPARATOR)} - {""})
    return _SEPARATOR.join(parts) or None


def read_rows(path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, with their lines, the heading first. Messages call the file `what`.

    The separator is the one that the heading has most of. Raises DataError when the file can't be read or is no CSV.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: the {what} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the {what} is no UTF-8 text: save it as CSV (UTF-8)") from error
    separator = separator_of(text.split("\n", 1)[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def separator_of(heading: str) -> str:
    """Return what parts the cells of a heading: comma, semicolon or tab."""
    return max(",;\t", key=heading.count)


def _position(path: Path, names: list[str], wanted: str) -> int:
    matching = [at for at, name in enumerate(names) if name == wanted.strip().casefold()]
    if len(matching) != 1:
        problem = "no column" if not matching else "more than one column"
        raise DataError(f'{path}: {problem} "{wanted}" in the heading (there: {", ".join(names) or "none"})')
    return matching[0]


def _key(path: Path, names: list[str], named: str | None) -> tuple[str, int]:
    if named is not None:
        kind = next((kind for kind, others in COLUMNS.items() if named.strip().casefold() in others), None)
        if kind is None:
            raise DataError(f'"{named}" is no column of keys: {", ".join(COLUMNS)} are')
        return kind, _position(path, names, named)
    for kind, others in COLUMNS.items():
        for name in others:
            if name in names:
                return kind, _position(path, names, name)
    raise DataError(
        f"{path}: no column of keys in the heading (there: {', '.join(names) or 'none'}): "
        f"it needs one of {', '.join(COLUMNS)}"
    )
