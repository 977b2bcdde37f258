"""The ledger: a site's record of privacy spent, per collection, over its whole life.

Spending is written and synced before the first private gradient of a round, so a crash can only over-count. The check
against the budgets and the entry are one transaction with the write lock held, so two runs can't overspend together.
"""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError, RefusedError
from common.privacy import Spending, epsilon_of, noise_for

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spending (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    collection TEXT NOT NULL,
    run TEXT NOT NULL,
    job_digest TEXT NOT NULL,
    round INTEGER NOT NULL,
    unit TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    delta REAL NOT NULL
) STRICT
"""


@dataclass(frozen=True)
class Entry:
    """One round's spending on a collection, by a run. `unit` is what was protected: "patient" or "image"."""

    collection: str
    run: str
    job_digest: str
    round: int
    unit: str
    delta: float
    spending: Spending


class Ledger:
    """The ledger in the file `path`, which is made when it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._connect() as connection:
            connection.execute(_SCHEMA)

    def spent_by_run(self, collection: str, run: str) -> list[Spending]:
        """Return what `run` has spent on `collection` so far, round by round."""
        with self._connect() as connection:
            return self._spent(connection, collection, run)

    def spent_for_life(self, collection: str) -> list[Spending]:
        """Return what all runs have spent on `collection`."""
        with self._connect() as connection:
            return self._spent(connection, collection, None)

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first."""
        columns = "collection, run, job_digest, round, unit, delta, noise_multiplier, sample_rate, steps"
        with self._connect() as connection:
            rows = connection.execute(f"SELECT {columns} FROM spending ORDER BY id").fetchall()  # noqa: S608
        return [Entry(row[0], row[1], row[2], row[3], row[4], row[5], Spending(*row[6:])) for row in rows]

    def spend(self, entry: Entry, *, run_limit: float, life_limit: float) -> float:
        """Write `entry` and return the run's epsilon including it; on return it is on the disk.

        Guarantees: when this returns, the entry survives a crash of the process and of the machine; when it raises,
        nothing was written and nothing may be trained.

        Raises
        ------
        RefusedError
            With it, the run would spend more than `run_limit`, or all runs on this collection more than `life_limit`
            (both epsilon at the entry's delta).
        DataError
            The ledger can't be read or written.
        """
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            of_run = epsilon_of([*self._spent(connection, entry.collection, entry.run), entry.spending], entry.delta)
            if of_run > run_limit:
                raise RefusedError(f"the run would have spent epsilon {of_run:.3f}, over its limit of {run_limit:g}")
            of_life = epsilon_of([*self._spent(connection, entry.collection, None), entry.spending], entry.delta)
            if of_life > life_limit:
                raise RefusedError(
                    f'the collection "{entry.collection}" would have spent epsilon {of_life:.3f} over all runs, '
                    f"over the policy's {life_limit:g} for life"
                )
            connection.execute(
                "INSERT INTO spending (at, collection, run, job_digest, round, unit, noise_multiplier, sample_rate,"
                " steps, delta) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    entry.collection,
                    entry.run,
                    entry.job_digest,
                    entry.round,
                    entry.unit,
                    entry.spending.noise_multiplier,
                    entry.spending.sample_rate,
                    entry.spending.steps,
                    entry.delta,
                ),
            )
            connection.execute("COMMIT")
            return of_run

    @staticmethod
    def _spent(connection: sqlite3.Connection, collection: str, run: str | None) -> list[Spending]:
        rows = connection.execute(
            "SELECT noise_multiplier, sample_rate, steps FROM spending"
            " WHERE collection = ? AND (? IS NULL OR run = ?) ORDER BY id",
            (collection, run, run),
        )
        return [Spending(*row) for row in rows]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                yield connection
            finally:
                connection.close()  # rolls back what was not committed
        except sqlite3.Error as error:
            raise DataError(
                f"{self._path}: the privacy ledger can't be used ({error}): nothing is trained until it is restored"
            ) from error


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
