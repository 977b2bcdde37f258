"""The ledger: a site's record of privacy spent, per collection, over its whole life.

Spending is written and synced before the first private gradient of a round, so a crash can only over-count. One writer
at a time checks the budgets and writes, so two runs can't overspend together.

The ledger and the audit log watch each other: each row of the ledger names the log's newest entry at that moment, and
the log tells of each row. When the ledger is opened, and before anything is spent, both are compared: one that was
deleted, cut short, edited or put back from an older copy does not fit the other. Both put back together fit each other:
that is noticed by the coordinator, which keeps the log's head.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from client.privacy.rows import Entry as Entry
from client.privacy.rows import Purpose as Purpose
from client.privacy.rows import Row, broken_at, insert, make_row, prepare, read_rows
from common.audit import AuditLog
from common.errors import DataError, RefusedError
from common.privacy import Spending, epsilon_of, noise_for

LEDGER_FILE = "ledger.sqlite"
"""The ledger's name in a site's kit."""
SPENDING, BEGUN = "spending", "ledger"
"""Kinds of entries in the audit log: a row of the ledger was written; the ledger was begun."""


class Ledger:
    """The ledger in the file `path`, which is made when it is missing, and the audit `log` that watches it, if any.

    Raises
    ------
    DataError
        It can't be used, or it and the log do not fit each other: the message names the one that is at fault.
    """

    def __init__(self, path: Path, log: AuditLog | None = None) -> None:
        self._path = path
        self._log = log
        with self._alone():
            if not path.exists() and log is not None:
                self._compare([])  # before a new one is made
            with self._connect(create=True) as connection:
                prepare(connection)
                self._compare(read_rows(connection))

    def spent_by_run(self, collection: str, run: str, split: str = "train") -> list[Spending]:
        """Return what `run` has spent on a split of `collection` so far, entry by entry."""
        return [entry.spending for entry in self.entries_by_run(collection, run, split)]

    def entries_by_run(self, collection: str, run: str, split: str = "train") -> list[Entry]:
        """Return the entries of `run` on a split of `collection`, oldest first."""
        return _of_run(self.entries(), collection, run, split)

    def spent_for_life(
        self, collections: Sequence[str] | str, split: str = "train", unit: str | None = None
    ) -> list[Spending]:
        """Return what all runs have spent on a split of a collection.

        `collections` is the collection, or it and others after it that share patients with it: of these, every split
        counts, because who is in this split here may be in any split there. With a `unit`, only what was spent to
        protect that unit; without, everything.
        """
        own, *sharing = [collections] if isinstance(collections, str) else collections
        entries = [entry for entry in self.entries() if unit in (None, entry.unit)]
        return _for_life(entries, own, split, sharing)

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first."""
        return [row.entry for row in self.rows()]

    def rows(self) -> list[Row]:
        """Return every entry with its number, time and place in the chains, oldest first."""
        with self._connect() as connection:
            return read_rows(connection)

    def spend(self, entry: Entry, *, run_limit: float, life_limit: float, sharing: Sequence[str] = ()) -> float:
        """Write `entry` and return the run's epsilon on this split including it; on return it is on the disk.

        `sharing` names other collections with patients in common: what was spent on any split of theirs counts for
        life here. The limits are for each split by itself: the splits of a collection have no patient in common.

        Guarantees: when this returns, the entry survives a crash of the process and of the machine; when it raises
        RefusedError, nothing was written. However it ends, what is not in the ledger must not be trained.

        Raises
        ------
        RefusedError
            With it, the run would spend more than `run_limit`, or all runs on this collection more than `life_limit`
            (both epsilon at the entry's delta).
        DataError
            The ledger or the audit log can't be read or written, or they do not fit each other.
        """
        with self._alone(), self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = read_rows(connection)
            self._compare(rows)
            of_run = _check_limits([row.entry for row in rows], entry, run_limit, life_limit, sharing)
            head = None if self._log is None else self._log.head() or self._log.append(BEGUN, {"name": self._path.name})
            row = make_row(
                rows[-1] if rows else None,
                entry,
                at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                log_sequence=head.sequence if head else 0,
                log_hash=head.hash if head else "",
            )
            insert(connection, row)
            connection.execute("COMMIT")
            self._tell(row)
            return of_run

    def _compare(self, rows: Sequence[Row]) -> None:
        """Check the rows' chain and the log's; tell the log of what it was not told because of a crash."""
        if problem := disagreement(self._path, rows, self._log):
            raise DataError(problem)
        for row in untold(rows, self._log):
            self._tell(row)

    def _tell(self, row: Row) -> None:
        if self._log is not None:
            self._log.append(SPENDING, {"sequence": row.number, "hash": row.hash, "at": row.at, **asdict(row.entry)})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the ledger's lock: what is compared, written and told to the log is one step for everyone else."""
        path = self._path.with_name(f"{self._path.name}.lock")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DataError(f"{path}: the privacy ledger can't be locked: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _connect(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        if not create and not self._path.exists():
            raise DataError(f"{self._path}: the privacy ledger was deleted: restore it from a backup")
        with open_database(self._path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            yield connection


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger's file. Raises DataError, naming it, for whatever is wrong with it."""
    remedy = "nothing is trained until it is restored"
    try:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()  # rolls back what was not committed
    except (sqlite3.Error, ValueError) as error:
        raise DataError(f"{path}: the privacy ledger can't be used ({error}): {remedy}") from error


def disagreement(path: Path, rows: Sequence[Row], log: AuditLog | None) -> str:
    """Say in one line what is wrong with the ledger's rows, or between them and the log; "" if nothing is."""
    if number := broken_at(rows):
        return f"{path}: entry {number} of the privacy ledger was changed, or entries before it removed: restore it"
    if log is None:
        return ""
    told = log.newest(SPENDING)
    sequence, digest = (told.body["sequence"], told.body["hash"]) if told else (0, "")
    restore = "it was deleted, cut short or put back from an older copy: restore the newest one"
    if sequence > len(rows):
        return (
            f"{path}: the privacy ledger has {len(rows)} entries, but the audit log {log.path.name} tells of "
            f"{sequence}: {restore}"
        )
    if sequence and rows[sequence - 1].hash != digest:
        return (
            f"{path}: entry {sequence} of the privacy ledger is not the one that the audit log {log.path.name} tells "
            "of: it was edited: restore it"
        )
    watched = [row for row in rows if row.log_sequence]
    if watched and not log.holds_entry(watched[-1].log_sequence, watched[-1].log_hash):
        return (
            f"{log.path}: the audit log does not hold its entry {watched[-1].log_sequence}, which the privacy ledger "
            f"{path.name} names: {restore}"
        )
    return ""


def untold(rows: Sequence[Row], log: AuditLog | None) -> Sequence[Row]:
    """Return the rows of which the log was not told: after a crash the last one, or those from before there was one."""
    if log is None:
        return ()
    told = log.newest(SPENDING)
    return rows[told.body["sequence"] if told else 0 :]


def counts_for_life(entry: Entry, collection: str, split: str, sharing: Sequence[str]) -> bool:
    """Whether an entry counts for life on a split of `collection`: its own, and any split of those in `sharing`."""
    own = (entry.collection, entry.split) == (collection, split)
    return own or (entry.collection in sharing and entry.collection != collection)


def _of_run(entries: Sequence[Entry], collection: str, run: str, split: str) -> list[Entry]:
    wanted = (collection, run, split)
    return [entry for entry in entries if (entry.collection, entry.run, entry.split) == wanted]


def _for_life(entries: Sequence[Entry], collection: str, split: str, sharing: Sequence[str]) -> list[Spending]:
    return [entry.spending for entry in entries if counts_for_life(entry, collection, split, sharing)]


def _check_limits(
    entries: Sequence[Entry], entry: Entry, run_limit: float, life_limit: float, sharing: Sequence[str]
) -> float:
    """Return the run's epsilon with `entry`. Raises RefusedError if a limit does not allow it."""
    spent = [one.spending for one in _of_run(entries, entry.collection, entry.run, entry.split)]
    of_run = epsilon_of([*spent, entry.spending], entry.delta)
    if of_run > run_limit:
        raise RefusedError(f"the run would have spent epsilon {of_run:.3f}, over its limit of {run_limit:g}")
    spent = _for_life(entries, entry.collection, entry.split, sharing)
    of_life = epsilon_of([*spent, entry.spending], entry.delta)
    if of_life > life_limit:
        with_others = " and those that share patients with it" if sharing else ""
        raise RefusedError(
            f'the collection "{entry.collection}"{with_others} would have spent epsilon {of_life:.3f} over all runs, '
            f"over the policy's {life_limit:g} for life"
        )
    return of_run


def calibrate(
    spent: Sequence[Spending],
    sample_rate: float,
    steps: int,
    *,
    epsilon: float,
    delta: float,
    current: float | None,
) -> float:
    """Return the noise multiplier for `steps` more steps such that the whole run stays within (`epsilon`, `delta`).

    The `current` noise is kept while it is enough; it is raised when a crash had a round counted twice, or when data
    added since changed the sampling rate.
    """
    if current is not None and epsilon_of([*spent, Spending(current, sample_rate, steps)], delta) <= epsilon:
        return current
    return noise_for(epsilon, delta, sample_rate, steps, spent=spent)
