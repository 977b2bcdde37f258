"""Tables: a CSV file of features, a row a case. At import it is taken apart, and each row becomes a record in the kit.

Records are named by their content and never change, so that an import that is killed leaves the collection as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.intake.columns import choose
from client.intake.identity import Pseudonyms
from client.intake.labels import (
    COLUMNS,
    SPLIT_COLUMN,
    Labels,
    Row,
    label_of,
    read_rows,
    separator_of,
    split_of,
    told_apart,
)
from client.intake.report import TABLES
from client.intake.table import written
from common.errors import DataError, UsageError

FOLDER = "tables"
_DECIMAL_COMMA = re.compile(r"\A([+-]?\d+),(\d+)\Z")


@dataclass(frozen=True)
class TakenApart:
    """A table as records: labels, patients and splits by record; `left_out` are columns, and why."""

    labels: Labels
    left_out: tuple[tuple[str, str], ...]

    def place(self, record: str) -> str:
        """Return where a record comes from, as `table.csv:LINE`."""
        return f"{self.labels.source.name}:{self.labels.rows[record].line}"


@dataclass(frozen=True)
class _Sheet:
    """A table that was read: its heading, its rows with their lines, and the places of what is no feature."""

    path: Path
    names: list[str]
    rows: list[tuple[int, list[str]]]
    label: int
    patient: int | None
    split: int | None


def is_table(path: Path) -> bool:
    """Whether what is to be imported is a table, and not a folder."""
    return not path.is_dir() and path.suffix.lower() in TABLES


def folder_of(kit_folder: Path, collection: str, table: Path, pseudonyms: Pseudonyms) -> Path:
    """Return where a table's records are kept: a collection may have several tables."""
    return kit_folder / FOLDER / collection / pseudonyms.of("table", os.path.realpath(table))


def take_apart(
    table: Path, folder: Path, pseudonyms: Pseudonyms, *, label_column: str, columns: Sequence[str]
) -> TakenApart:
    """Write each row of `table` as a record in `folder`; return what is known of them.

    `columns` names the features to take; empty takes all that are numbers or a few words. A column called as in
    `labels.COLUMNS["patient"]` says whose a row is; without one each row is a patient. A column "split" says in which
    split it is. Records that are there already stay, for `forget_others`.

    Raises
    ------
    UsageError
        A column that is asked for is not there, names a person or holds text.
    DataError
        The table can't be read, has no row, or lacks a column; or the kit can't be written.
    """
    sheet = _read(table, label_column)
    known = (sheet.label, *(at for at in (sheet.patient, sheet.split) if at is not None))
    try:
        chosen = choose(sheet.names, [row for _, row in sheet.rows], known, columns)
    except UsageError as error:
        raise UsageError(f"{table}: {error}") from error
    if not chosen.taken:
        raise DataError(f"{table}: no column is a feature: all others name people, hold dates or hold text")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = _records(sheet, folder, pseudonyms, chosen.taken)
    except OSError as error:
        raise DataError(f"{folder}: the rows can't be written: {error.strerror}: nothing was imported") from error
    return TakenApart(Labels(table, "file", told_apart(found)), chosen.left_out)


def forget_others(folder: Path, keep: Collection[str]) -> None:
    """Remove all records but those to `keep`, by name."""
    for path in folder.glob("*.json*"):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def _read(table: Path, label_column: str) -> _Sheet:
    lines = read_rows(table, "table")
    _, heading = next(lines, (0, []))
    names, rows = [name.strip() for name in heading], list(lines)
    if not rows:
        raise DataError(f"{table}: the table needs a heading and at least one row below it")
    folded = [name.casefold() for name in names]
    if twice := next((name for name, count in Counter(folded).items() if count > 1), None):
        raise DataError(f'{table}: two columns are called "{twice}"')
    if wrong := next(((line, row) for line, row in rows if len(row) != len(names)), None):
        raise DataError(f"{table}:{wrong[0]}: the row has {len(wrong[1])} cells, the heading has {len(names)}")
    if label_column.strip().casefold() not in folded:
        raise DataError(
            f'{table}: there is no column "{label_column}" with labels: name it with --label-column (there: '
            f"{', '.join(names)})"
        )
    patient = next((folded.index(name) for name in COLUMNS["patient"] if name in folded), None)
    split = folded.index(SPLIT_COLUMN) if SPLIT_COLUMN in folded else None
    label = folded.index(label_column.strip().casefold())
    return _Sheet(table, names, _plain(table, rows), label, patient if patient != label else None, split)


def _plain(table: Path, rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """The cells without blanks around them; where a comma does not part cells, 1,5 is 1.5."""
    stripped = [(line, [cell.strip() for cell in row]) for line, row in rows]
    with table.open(encoding="utf-8-sig") as file:
        if separator_of(file.readline()) == ",":
            return stripped
    return [(line, [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in row]) for line, row in stripped]


def _records(sheet: _Sheet, folder: Path, pseudonyms: Pseudonyms, taken: Sequence[int]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    seen: Counter[bytes] = Counter()
    for line, row in sheet.rows:
        patient = row[sheet.patient] if sheet.patient is not None else None
        owner = pseudonyms.of("patient", patient) if patient else patient
        values = {sheet.names[at]: row[at] for at in taken}
        first = written(values, owner, 1)
        seen[first] += 1
        content = written(values, owner, seen[first])
        name = f"{hashlib.sha256(content).hexdigest()[:40]}.json"
        _write(folder / name, content)
        split = split_of(sheet.path, line, row[sheet.split]) if sheet.split is not None else ""
        found[name] = Row(line, label_of(row[sheet.label]), owner or "", split)
    return found


def _write(path: Path, content: bytes) -> None:
    """Write a record if it is not there yet, whole. It is not synced: a damaged one is written again at each import."""
    try:
        if path.read_bytes() == content:
            return
    except FileNotFoundError:
        pass
    temporary = path.with_suffix(".json.partial")
    temporary.touch(mode=0o600)
    temporary.write_bytes(content)
    temporary.replace(path)
