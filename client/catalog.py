"""A site's catalog: which files there are in each collection, whose, with which label, in which split.

SQLite in WAL mode, so that a training site reads while an import writes. No identity is in it: patients, studies,
series and instances are keyed pseudonyms. Refused files are kept too, so that a second import need not read them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from client.intake.image import Acquired, Copy, Seen
from common.errors import DataError

CATALOG_FILE = "catalog.sqlite"
"""The catalog's name in a site's kit."""
SPLITS = ("train", "validation", "test")
_VERSION = 3
_SCHEMA = """
CREATE TABLE collections (
    name TEXT PRIMARY KEY, seed INTEGER NOT NULL, train REAL NOT NULL, validation REAL NOT NULL, test REAL NOT NULL,
    secret TEXT NOT NULL
) STRICT;
CREATE TABLE patients (
    collection TEXT NOT NULL REFERENCES collections(name), patient TEXT NOT NULL, split TEXT NOT NULL,
    PRIMARY KEY (collection, patient)
) STRICT;
CREATE TABLE files (
    collection TEXT NOT NULL REFERENCES collections(name), root BLOB NOT NULL, path BLOB NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, probe INTEGER NOT NULL,
    format TEXT NOT NULL, modality TEXT NOT NULL, frames INTEGER NOT NULL,
    rows INTEGER NOT NULL, columns INTEGER NOT NULL, channels INTEGER NOT NULL,
    own_patient TEXT NOT NULL, study TEXT NOT NULL, series TEXT NOT NULL, instance TEXT NOT NULL,
    identifiers TEXT NOT NULL, burned_in INTEGER, unreadable TEXT NOT NULL,
    reason TEXT NOT NULL, patient TEXT NOT NULL, label TEXT, annotation TEXT NOT NULL,
    acquired TEXT NOT NULL, seen TEXT NOT NULL, copy TEXT NOT NULL,
    PRIMARY KEY (collection, root, path)
) STRICT;
PRAGMA user_version = 3;
"""
_MIGRATIONS = {
    1: """
ALTER TABLE files ADD COLUMN annotation TEXT NOT NULL DEFAULT '';
ALTER TABLE files ADD COLUMN acquired TEXT NOT NULL DEFAULT '{}';
ALTER TABLE files ADD COLUMN seen TEXT NOT NULL DEFAULT '{}';
PRAGMA user_version = 2;
""",
    2: """
ALTER TABLE files ADD COLUMN copy TEXT NOT NULL DEFAULT '';
PRAGMA user_version = 3;
""",
}
"""From each earlier version to the next. What a file's reading adds is there after the folder's next import."""


@dataclass(frozen=True)
class FileRecord:
    """What is known of one file. `reason` is empty for an indexed file; `label` is None where there are no labels.

    `probe` is the version of the code that read it. `own_patient` is the pseudonym that the file itself gives, or "";
    `patient` the one it counts under. `unreadable` is a reason that holds whatever labels and options are.
    `annotation` names what was drawn on the image, or is "". `copy` is the de-identified copy, where one is read.
    """

    root: str
    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    probe: int = 0
    format: str = ""
    modality: str = ""
    frames: int = 0
    rows: int = 0
    columns: int = 0
    channels: int = 0
    own_patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    identifiers: tuple[str, ...] = ()
    burned_in: bool | None = None
    unreadable: str = ""
    reason: str = ""
    patient: str = ""
    label: str | None = None
    annotation: str = ""
    acquired: Acquired = field(default_factory=Acquired)
    seen: Seen = field(default_factory=Seen)
    copy: Copy | None = None

    @property
    def image(self) -> Path:
        """The file that is read: the de-identified copy, or the file itself."""
        return Path(self.copy.path) if self.copy is not None and self.copy.path else Path(self.root) / self.path


@dataclass(frozen=True)
class Settings:
    """How a collection's patients are split: seed, fractions (train, validation, test); and which secret keyed them."""

    seed: int
    fractions: tuple[float, float, float]
    secret: str


@dataclass(frozen=True)
class Case:
    """One 2D image of a collection: a file, or one frame of it (None when the file is one image)."""

    image: Path
    frame: int | None
    patient: str
    study: str
    series: str
    label: str | None
    split: str
    sha256: str
    modality: str
    format: str
    size: int
    mtime_ns: int
    annotation: str = ""


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split: images (frames counted), patients, and images of each label value."""

    images: int
    patients: int
    labels: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """Counts of a collection, by split and modality. `refused` counts files that were looked at and left out."""

    collection: str
    files: int
    refused: int
    images: int
    patients: int
    splits: dict[str, SplitSummary]
    modalities: dict[str, int]

    @property
    def labels(self) -> dict[str, int]:
        """Images of each label value, over all splits."""
        total: Counter[str] = Counter()
        for split in self.splits.values():
            total.update(split.labels)
        return dict(sorted(total.items()))


class Catalog:
    """The catalog in the file `path`, which is made by the first import. Every method raises DataError.

    Safe to use from several threads and processes: each call opens its own connection.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted; none when there is no catalog yet."""
        with self._reading() as connection:
            return [name for (name,) in connection.execute("SELECT name FROM collections ORDER BY name")]

    def settings(self, collection: str) -> Settings | None:
        """Return a collection's settings, or None when there is no such collection."""
        query = "SELECT seed, train, validation, test, secret FROM collections WHERE name = ?"
        with self._reading() as connection:
            row = connection.execute(query, (collection,)).fetchone()
        return Settings(row[0], (row[1], row[2], row[3]), row[4]) if row else None

    def secret(self) -> str | None:
        """Return the fingerprint of the secret that keyed the pseudonyms, or None in an empty catalog."""
        names = self.collections()
        settings = self.settings(names[0]) if names else None
        return settings.secret if settings else None

    def records(self, collection: str) -> list[FileRecord]:
        """Return all that is known of the collection's files, refused ones too; nothing for an unknown collection."""
        query = f"SELECT {_COLUMNS} FROM files WHERE collection = ? ORDER BY root, path"  # noqa: S608
        with self._reading() as connection:
            return [_record(row) for row in connection.execute(query, (collection,))]

    def splits(self, collection: str) -> dict[str, str]:
        """Return the split of each patient that the collection has ever had."""
        query = "SELECT patient, split FROM patients WHERE collection = ?"
        with self._reading() as connection:
            return dict(connection.execute(query, (collection,)).fetchall())

    def cases(self, collection: str, split: str) -> list[Case]:
        """Return a split's cases. Their order depends on the files' contents only, not on names or on time.

        A patient's cases are all in one split. An unknown collection raises DataError.
        """
        query = (
            "SELECT root, path, frames, patient, study, series, label, split, sha256, modality, format, size, mtime_ns,"
            " annotation, copy"
            " FROM files JOIN patients USING (collection, patient)"
            " WHERE collection = ? AND reason = '' AND split = ? ORDER BY sha256"
        )
        self._require(collection)
        with self._reading() as connection:
            rows = connection.execute(query, (collection, split)).fetchall()
        return [
            _read_at(Case(Path(os.fsdecode(root)) / os.fsdecode(path), frame, *rest), _copy(copy))
            for root, path, count, *rest, copy in rows
            for frame in (range(count) if count > 1 else (None,))
        ]

    def digest(self, collection: str) -> str:
        """Return the SHA-256 over what is indexed, its labels, annotations and splits: the same while they are."""
        query = (
            "SELECT iif(copy = '', sha256, copy ->> '$.sha256'), probe, frames, patient, series, label, split,"
            " annotation FROM files"
            " JOIN patients USING (collection, patient) WHERE collection = ? AND reason = '' ORDER BY sha256"
        )
        self._require(collection)
        digest = hashlib.sha256()
        with self._reading() as connection:
            for row in connection.execute(query, (collection,)):
                digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def annotations(self) -> set[str]:
        """Return the names of all annotations that any collection's files have."""
        with self._reading() as connection:
            return {name for (name,) in connection.execute("SELECT DISTINCT annotation FROM files") if name}

    def sharing(self, collection: str) -> tuple[str, ...]:
        """Return the other collections that have, or ever had, a patient of this one, sorted."""
        query = (
            "SELECT DISTINCT other.collection FROM patients JOIN patients AS other USING (patient)"
            " WHERE patients.collection = ? AND other.collection != patients.collection ORDER BY 1"
        )
        with self._reading() as connection:
            return tuple(name for (name,) in connection.execute(query, (collection,)))

    def summary(self, collection: str) -> Summary:
        """Return a collection's counts."""
        self._require(collection)
        with self._reading() as connection:
            return _summary(connection, collection)

    def refused(self, collection: str, *, offset: int = 0, limit: int = 100) -> list[tuple[str, str]]:
        """Return files of a collection that were left out, by path, each with the reason."""
        query = (
            "SELECT path, reason FROM files WHERE collection = ? AND reason != '' ORDER BY root, path LIMIT ? OFFSET ?"
        )
        with self._reading() as connection:
            found = connection.execute(query, (collection, limit, offset)).fetchall()
            return [(os.fsdecode(path), reason) for path, reason in found]

    def reasons(self, collection: str) -> dict[str, int]:
        """Return for which reasons files of a collection were left out, and how many for each, most first."""
        query = (
            "SELECT reason, COUNT(*) FROM files WHERE collection = ? AND reason != ''"
            " GROUP BY reason ORDER BY COUNT(*) DESC, reason"
        )
        with self._reading() as connection:
            return dict(connection.execute(query, (collection,)).fetchall())

    def check(self) -> None:
        """Check the whole file's integrity; nothing to check when there is none."""
        with self._reading() as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)

    @contextmanager
    def replacing(
        self, collection: str, root: str, settings: Settings, records: Iterable[FileRecord], splits: dict[str, str]
    ) -> Iterator[Summary]:
        """Replace what is known of `root`'s files in the collection by `records`: all when the block ends, or nothing.

        Yields the collection's counts as they will be. `splits` are the patients' splits; one that is already known
        stays. If the block raises, nothing is written.
        """
        with self._connect(create=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT OR REPLACE INTO collections VALUES (?, ?, ?, ?, ?, ?)",
                (collection, settings.seed, *settings.fractions, settings.secret),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO patients VALUES (?, ?, ?)", ((collection, *pair) for pair in splits.items())
            )
            connection.execute("DELETE FROM files WHERE collection = ? AND root = ?", (collection, os.fsencode(root)))
            marks = ", ".join("?" * (1 + len(fields(FileRecord))))
            connection.executemany(
                f"INSERT INTO files (collection, {_COLUMNS}) VALUES ({marks})",  # noqa: S608
                ((collection, *_row(record)) for record in records),
            )
            yield _summary(connection, collection)
            connection.execute("COMMIT")

    def _require(self, collection: str) -> None:
        if self.settings(collection) is None:
            there = ", ".join(self.collections()) or "none yet"
            raise DataError(
                f'no collection "{collection}" in the catalog (there: {there}): '
                f"wardround site import --collection {collection} FOLDER makes it"
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._connect(create=False) as connection:
            connection.execute("BEGIN")  # one state of the catalog for all queries of the block
            yield connection

    @contextmanager
    def _connect(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._open(create)
            try:
                yield connection
            finally:
                connection.close()  # rolls back what was not committed
        except sqlite3.Error as error:
            raise _explained(self.path, error) from error

    def _open(self, create: bool) -> sqlite3.Connection:
        """Open the file; an empty stand-in where there is none, or a first import was stopped at its start."""
        if not create and not self.path.exists():
            return _empty()
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if tables and version in _MIGRATIONS:
                _migrate(connection)
            elif version != _VERSION and tables:
                raise DataError(f"{self.path}: no catalog of this version of wardround (its version is {version})")
            if not tables and not create:
                connection.close()
                return _empty()
            if not tables:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            connection.execute("PRAGMA synchronous = FULL")
            return connection
        except BaseException:
            connection.close()
            raise


def _empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(_SCHEMA)
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring an earlier version's catalog to this one, in one transaction; another process may be first."""
    connection.execute("BEGIN IMMEDIATE")
    while (version := connection.execute("PRAGMA user_version").fetchone()[0]) in _MIGRATIONS:
        for statement in _MIGRATIONS[version].split(";"):
            connection.execute(statement)  # one by one: a script would commit
    connection.execute("COMMIT")


_COLUMNS = ", ".join(item.name for item in fields(FileRecord))


def _summary(connection: sqlite3.Connection, collection: str) -> Summary:
    groups = connection.execute(
        "SELECT split, label, modality, SUM(frames), COUNT(*) FROM files JOIN patients USING (collection, patient)"
        " WHERE collection = ? AND reason = '' GROUP BY split, label, modality", (collection,)
    ).fetchall()  # fmt: skip
    patients = dict(connection.execute(
        "SELECT split, COUNT(DISTINCT patient) FROM files JOIN patients USING (collection, patient)"
        " WHERE collection = ? AND reason = '' GROUP BY split", (collection,)
    ).fetchall())  # fmt: skip
    (refused,) = connection.execute(
        "SELECT COUNT(*) FROM files WHERE collection = ? AND reason != ''", (collection,)
    ).fetchone()
    images, modalities = Counter[str](), Counter[str]()
    labels: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for split, label, modality, frames, _ in groups:
        modalities[modality] += frames
        images[split] += frames
        if label is not None:
            labels[split][label] += frames
    splits = {s: SplitSummary(images[s], patients.get(s, 0), dict(sorted(labels[s].items()))) for s in SPLITS}
    return Summary(
        collection=collection, files=sum(group[4] for group in groups), refused=refused, images=images.total(),
        patients=sum(patients.values()), splits=splits, modalities=dict(sorted(modalities.items())),
    )  # fmt: skip


def _read_at(case: Case, copy: Copy | None) -> Case:
    """The case as it is read: from its de-identified copy, if there is one."""
    if copy is None or not copy.path:
        return case
    return replace(case, image=Path(copy.path), sha256=copy.sha256, size=copy.size, mtime_ns=copy.mtime_ns)


def _copy(text: str) -> Copy | None:
    return Copy(**json.loads(text)) if text else None


def _row(record: FileRecord) -> tuple[object, ...]:
    values = {item.name: getattr(record, item.name) for item in fields(FileRecord)}
    values["root"], values["path"] = os.fsencode(record.root), os.fsencode(record.path)
    values["identifiers"] = json.dumps(record.identifiers)
    values["acquired"], values["seen"] = _said(record.acquired), _said(record.seen)
    values["copy"] = json.dumps(asdict(record.copy)) if record.copy is not None else ""
    return tuple(values.values())


def _record(row: tuple[bytes | str | int | None, ...]) -> FileRecord:
    values: dict[str, Any] = dict(zip((item.name for item in fields(FileRecord)), row, strict=True))
    values["root"], values["path"] = os.fsdecode(values["root"]), os.fsdecode(values["path"])
    values["identifiers"] = tuple(json.loads(values["identifiers"]))
    values["burned_in"] = None if values["burned_in"] is None else bool(values["burned_in"])
    values["acquired"], values["seen"] = Acquired(**_plain(values["acquired"])), Seen(**_plain(values["seen"]))
    values["copy"] = _copy(values["copy"])
    return FileRecord(**values)


def _said(part: Acquired | Seen) -> str:
    """What is known, as JSON."""
    unknown = asdict(type(part)())
    return json.dumps({name: value for name, value in asdict(part).items() if value != unknown[name]})


def _plain(text: str) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}


def _explained(path: Path, error: sqlite3.Error) -> DataError:
    """One line for a person: what is wrong with the catalog, and what to do."""
    text = str(error)
    if "full" in text:
        return DataError(f"{path}: the disk is full: the catalog is as it was; make room and do it again")
    if "locked" in text or "busy" in text:
        return DataError(f"{path}: the catalog is in use by another command: wait for it and do it again")
    if "disk I/O" in text:
        return DataError(f"{path}: the catalog can't be read or written ({text}): check the disk and its free space")
    if "readonly" in text or "unable to open" in text:
        return DataError(f"{path}: the catalog can't be opened ({text}): check the folder and its permissions")
    return DataError(
        f"{path}: the catalog is damaged ({text}): move it away and import the folders again; "
        "pseudonyms and splits come out the same while pseudonym.key is kept"
    )
