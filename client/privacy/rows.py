"""How the ledger is kept: one SQLite table of rows, each with the hash of the one before, and what is checked of it.

A row's hash is the SHA-256 of the canonical JSON of all its columns but itself, the previous row's hash among them. The
rows are not signed: the audit log, which is, tells of each row with its hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.privacy import Spending

VERSION = 2
Purpose = Literal["training", "metrics", "count", "statistics"]
_COLUMNS = {
    "id": "INTEGER PRIMARY KEY",
    "at": "TEXT NOT NULL",
    "collection": "TEXT NOT NULL",
    "run": "TEXT NOT NULL",
    "job_digest": "TEXT NOT NULL",
    "round": "INTEGER NOT NULL",
    "split": "TEXT NOT NULL",
    "purpose": "TEXT NOT NULL",
    "unit": "TEXT NOT NULL",
    "noise_multiplier": "REAL NOT NULL",
    "sample_rate": "REAL NOT NULL",
    "steps": "INTEGER NOT NULL",
    "delta": "REAL NOT NULL",
    "log_sequence": "INTEGER NOT NULL",
    "log_hash": "TEXT NOT NULL",
    "previous": "TEXT NOT NULL",
    "hash": "TEXT NOT NULL",
}
_SCHEMA = f"CREATE TABLE spending ({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())}) STRICT"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM spending ORDER BY id"  # noqa: S608 - the names above
_INSERT = f"INSERT INTO spending VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_ADDED = ("split", "purpose", "log_sequence", "log_hash", "previous", "hash")
_FIRST_VERSION = tuple(name for name in _COLUMNS if name not in _ADDED)


@dataclass(frozen=True)
class Entry:
    """What was spent at once on a split of a collection, by a run.

    `unit` is what was protected, "patient" or "image". `purpose`: a round's training, noised metrics, a noised
    count, or statistics.
    """

    collection: str
    run: str
    job_digest: str
    round: int
    unit: str
    delta: float
    spending: Spending
    split: str = "train"
    purpose: Purpose = "training"


@dataclass(frozen=True)
class Row:
    """An entry as it stands in the ledger: its number, from 1, when it was written, and the two chains that it is in.

    `log_sequence` and `log_hash` are the audit log's newest entry at that moment; 0 and "" where there was no log.
    """

    number: int
    at: str
    entry: Entry
    log_sequence: int
    log_hash: str
    previous: str
    hash: str


def make_row(before: Row | None, entry: Entry, *, at: str, log_sequence: int = 0, log_hash: str = "") -> Row:
    """Return the row that follows `before`."""
    number, previous = (before.number + 1, before.hash) if before else (1, "")
    row = Row(number, at, entry, log_sequence, log_hash, previous, "")
    return dataclasses.replace(row, hash=row_hash(row))


def row_hash(row: Row) -> str:
    """Return the hash that a row must have."""
    hashed = {name: value for name, value in _values(row).items() if name != "hash"}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def insert(connection: sqlite3.Connection, row: Row) -> None:
    """Write a row, in the transaction that is open."""
    connection.execute(_INSERT, tuple(_values(row).values()))


def read_rows(connection: sqlite3.Connection) -> list[Row]:
    """Return every row, oldest first. What they hold is not checked."""
    return [_row(dict(zip(_COLUMNS, values, strict=True))) for values in connection.execute(_SELECT)]


def broken_at(rows: Sequence[Row]) -> int | None:
    """Return the number of the first row that is not as it was written, or that follows a gap; None if all is well."""
    previous = ""
    for number, row in enumerate(rows, start=1):
        if (row.number, row.previous, row.hash) != (number, previous, row_hash(row)):
            return number
        previous = row.hash
    return None


def prepare(connection: sqlite3.Connection) -> None:
    """Make the table in a new ledger; bring a ledger of the first version, which had no chain, up to date.

    Raises ValueError for a ledger of a version that is not known here, or of a form that none had.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    columns = tuple(row[1] for row in connection.execute("PRAGMA table_info(spending)"))
    if version == VERSION and columns == tuple(_COLUMNS):
        return
    if version != 0 or columns not in ((), _FIRST_VERSION):
        raise ValueError("it was written by another version of Ward Round, or it is none")
    connection.execute("BEGIN IMMEDIATE")
    old = list(connection.execute(f"SELECT {', '.join(columns)} FROM spending ORDER BY id")) if columns else []  # noqa: S608
    connection.execute("DROP TABLE IF EXISTS spending")
    connection.execute(_SCHEMA)
    before = None
    for values in old:
        fields = dict(zip(columns, values, strict=True))
        before = make_row(before, _entry(fields), at=fields["at"])
        insert(connection, before)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _values(row: Row) -> dict[str, Any]:
    """A row's columns in their order, as SQLite gives them back: its hash must not depend on where it was read."""
    entry, spending = row.entry, row.entry.spending
    return {
        "id": row.number,
        "at": row.at,
        "collection": entry.collection,
        "run": entry.run,
        "job_digest": entry.job_digest,
        "round": entry.round,
        "split": entry.split,
        "purpose": entry.purpose,
        "unit": entry.unit,
        "noise_multiplier": float(spending.noise_multiplier),
        "sample_rate": float(spending.sample_rate),
        "steps": int(spending.steps),
        "delta": float(entry.delta),
        "log_sequence": row.log_sequence,
        "log_hash": row.log_hash,
        "previous": row.previous,
        "hash": row.hash,
    }


def _row(fields: Mapping[str, Any]) -> Row:
    return Row(
        number=fields["id"],
        at=fields["at"],
        entry=_entry(fields),
        log_sequence=fields["log_sequence"],
        log_hash=fields["log_hash"],
        previous=fields["previous"],
        hash=fields["hash"],
    )


def _entry(fields: Mapping[str, Any]) -> Entry:
    return Entry(
        collection=fields["collection"],
        run=fields["run"],
        job_digest=fields["job_digest"],
        round=fields["round"],
        unit=fields["unit"],
        delta=fields["delta"],
        spending=Spending(fields["noise_multiplier"], fields["sample_rate"], fields["steps"]),
        split=fields.get("split", "train"),
        purpose=fields.get("purpose", "training"),
    )
