"""Tables: a CSV file of features, a row a case. At import it is taken apart, and each row becomes a record in the kit.

A record holds numbers and short words, and no column that names a person or holds free text; whose row it is, and its
label, stand in the catalog, under a pseudonym, as for images. Records are named by their content and never change, so
that an import that is killed leaves the collection as it was.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.intake.identity import Pseudonyms
from client.intake.image import Facts, FileRefusedError, Pixels
from client.intake.labels import COLUMNS, Labels, Row
from common.errors import DataError, UsageError
from common.files import write_atomically

FOLDER = "tables"
KEY = "wardround-row"
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
PEOPLE = frozenset(
    [
        "name",
        "firstname",
        "first_name",
        "lastname",
        "last_name",
        "surname",
        "birthday",
        "birthdate",
        "birth_date",
        "dateofbirth",
        "date_of_birth",
        "dob",
        "address",
        "street",
        "zip",
        "zipcode",
        "postcode",
        "phone",
        "telephone",
        "mobile",
        "email",
        "mail",
        "ssn",
        "insurance",
        "insurance_number",
        "mrn",
    ]
)
"""Columns that name a person, in any case: they are never read."""
MOST_WORDS = 20
"""A column of more different words than this is free text, and is never read."""


@dataclass(frozen=True)
class TakenApart:
    """A table as records: their folder, the labels and patients by record, and the columns that were left out."""

    folder: Path
    labels: Labels
    left_out: tuple[str, ...]


def is_table(path: Path) -> bool:
    """Whether what is to be imported is a table, and not a folder."""
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def take_apart(
    table: Path, kit_folder: Path, collection: str, pseudonyms: Pseudonyms, *, label_column: str, columns: Sequence[str]
) -> TakenApart:
    """Write each row of `table` as a record under the kit; return where they are and what is known of them.

    `columns` names the features to take; empty takes all that are numbers or a few words. A column called as in
    `labels.COLUMNS["patient"]` says whose a row is; without one each row is a patient. Records of rows that are gone
    are left for `forget_others`.

    Raises
    ------
    UsageError
        A column that is asked for names a person.
    DataError
        The table can't be read, has no row, or lacks a column; or the kit can't be written.
    """
    rows = list(_rows(table))
    heading, cells = rows[0][1], rows[1:]
    names = [name.strip() for name in heading]
    label_at = _position(table, names, label_column)
    patient_at = next((at for at, name in enumerate(names) if name.casefold() in COLUMNS["patient"]), None)
    known = {label_at, patient_at}
    taken, left_out = _features(table, names, [row for _, row in cells], known, columns)
    folder = kit_folder / FOLDER / collection
    found: dict[str, Row] = {}
    seen: Counter[str] = Counter()
    for line, row in cells:
        if len(row) != len(names):
            raise DataError(f"{table}:{line}: the row has {len(row)} cells, the heading has {len(names)}")
        patient = row[patient_at].strip() if patient_at is not None else ""
        owner = pseudonyms.of("patient", patient) if patient else ""
        values = {names[at]: row[at].strip() for at in taken}
        text = json.dumps([values, owner], sort_keys=True)
        seen[text] += 1
        name = _write(folder, {KEY: 1, "values": values, "of": owner, "copy": seen[text]})
        found[name] = Row(line, row[label_at].strip() or None, owner)
    return TakenApart(folder, Labels(table, "file", found), left_out)


def forget_others(parts: TakenApart) -> None:
    """Remove the records of rows that are no longer in the table. To be called once the catalog no longer has them."""
    for path in parts.folder.glob("*.json"):
        if path.name not in parts.labels.rows:
            path.unlink(missing_ok=True)


def matches(head: bytes) -> bool:
    """Whether the first bytes are those of a record."""
    return head.startswith(f'{{"{KEY}"'.encode())


def inspect(path: Path) -> Facts:
    """Return what a record says of itself. Raises FileRefusedError for a value that is missing."""
    values = read_values(path)
    if empty := next((name for name, value in values.items() if value.casefold() in MISSING), None):
        raise FileRefusedError(f'the row has no value in the column "{empty}"')
    return Facts(modality="TABLE", frames=1, rows=1, columns=len(values), channels=1)


def frames(path: Path) -> Iterator[Pixels]:
    """Refuse: a row is no image."""
    raise FileRefusedError("a row of a table is no image: give the job data.features")


def read_values(path: Path) -> dict[str, str]:
    """Return a record's values by column. Raises FileRefusedError when it is damaged."""
    try:
        values = json.loads(path.read_bytes())["values"]
        return {str(name): str(value) for name, value in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileRefusedError("the record of a row is damaged: import the table again") from error


def vector(values: Mapping[str, str], features: Sequence[str]) -> np.ndarray:
    """Return the features of one row, (F,) float32: numbers as they are, "column=word" as 1 where it is so, else 0.

    Raises
    ------
    FileRefusedError
        A column that is not there, or a value that is no finite number.
    """
    return np.array([_value(values, feature) for feature in features], dtype=np.float32)


def _value(values: Mapping[str, str], feature: str) -> float:
    column, equals, wanted = feature.partition("=")
    if column not in values:
        raise FileRefusedError(f'the table has no column "{column}": it has {", ".join(values)}')
    text = values[column]
    if equals:
        return float(_same(text, wanted))
    number = _number(text)
    if number is None:
        raise FileRefusedError(f'the column "{column}" holds "{text[:20]}", no number: ask for "{column}={text[:20]}"')
    return number


def _same(text: str, wanted: str) -> bool:
    """Whether two values are the same: 3 and 3.0 are."""
    one, other = _number(text), _number(wanted)
    return text == wanted if one is None or other is None else one == other


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _features(
    table: Path, names: Sequence[str], rows: Sequence[Sequence[str]], known: set[int | None], columns: Sequence[str]
) -> tuple[list[int], tuple[str, ...]]:
    """The positions of the columns to take, and the names of those left out."""
    for name in columns:
        if name.casefold() in PEOPLE:
            raise UsageError(f'{table}: the column "{name}" names a person: it is never imported')
        _position(table, names, name)
    taken, left_out = [], []
    for at, name in enumerate(names):
        if at in known:
            continue
        if (columns and name in columns) or (not columns and _is_feature(name, at, rows)):
            taken.append(at)
        else:
            left_out.append(name)
    if not taken:
        raise DataError(f"{table}: no column is a feature: numbers, or at most {MOST_WORDS} different words")
    return taken, tuple(left_out)


def _is_feature(name: str, at: int, rows: Sequence[Sequence[str]]) -> bool:
    if name.casefold() in PEOPLE:
        return False
    values = {row[at].strip() for row in rows if at < len(row)}
    words = {value for value in values if value.casefold() not in MISSING and _number(value) is None}
    return len(words) <= MOST_WORDS


def _position(table: Path, names: Sequence[str], wanted: str) -> int:
    if wanted not in names:
        raise DataError(f'{table}: there is no column "{wanted}": there are {", ".join(names)}')
    return names.index(wanted)


def _rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells), the heading first; empty lines are left out."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
            found = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: the table can't be read: {error}") from error
    if len(found) < 2:
        raise DataError(f"{table}: the table needs a heading and at least one row")
    yield from found


def _write(folder: Path, record: Mapping[str, object]) -> str:
    content = json.dumps(record).encode()
    name = f"{hashlib.sha256(content).hexdigest()[:40]}.json"
    path = folder / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, content, mode=0o600)
    except OSError as error:
        raise DataError(f"{path}: the row can't be written: {error.strerror}") from error
    return name
