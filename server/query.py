"""The registry's questions that pages ask, each answered by a bounded number of statements."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, or_, select, text

from common.errors import NotFoundError
from common.job import Job, job_from_json
from server.database import Database
from server.recorder import STATE, find_run
from server.records import LogLine, RoundRecord
from server.registry import read_rounds
from server.schema import log_lines, model_stages, models, rounds, run_sites, runs, site_rounds
from server.views import Listing, ModelLine, RunLine, StageChange


class Query:
    """Reads the registry's tables for `server.readmodel`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watch = Changes(database)

    def change(self) -> int:
        """Return a number that is another whenever anyone has committed something."""
        return self._watch.number()

    def runs(self, wanted: str, status: str, offset: int, limit: int) -> Listing[RunLine]:
        """Return a page of runs whose name, job or strategy contains `wanted`, the newest first."""
        conditions: list[ColumnElement[bool]] = []
        if wanted:
            like = f"%{_escaped(wanted)}%"
            strategy = f'%"strategy":"%{_escaped(wanted)}%"%'
            names = (runs.c.name.ilike(like, escape="\\"), runs.c.job.ilike(strategy, escape="\\"))
            conditions.append(or_(*names))
        if status:
            conditions.append(runs.c.status == status)
        with self._database.read() as connection:
            total = connection.execute(select(func.count()).select_from(runs).where(*conditions)).scalar_one()
            page = _lines().where(*conditions).order_by(runs.c.id.desc()).offset(offset).limit(limit)
            return Listing(tuple(_line(row) for row in connection.execute(page)), total, offset, limit)

    def run(self, name: str) -> tuple[RunLine, Job]:
        """Return a run's line and its job. Raises NotFoundError."""
        with self._database.read() as connection:
            find_run(connection, name)
            row = connection.execute(_lines().where(runs.c.name == name)).one()
            return _line(row), job_from_json(row.job, source=f"run {name}")

    def rounds(self, name: str, *, after: int = 0) -> tuple[list[tuple[int, RoundRecord]], int]:
        """Return a run's rounds whose id is over `after`, with their ids, and how many rounds it has in all."""
        with self._database.read() as connection:
            run = find_run(connection, name)
            of_run = rounds.c.run_id == run.id
            total = connection.execute(select(func.count()).select_from(rounds).where(of_run)).scalar_one()
            return read_rounds(connection, (of_run, rounds.c.id > after)), total

    def newest_rounds(self, limit: int) -> list[tuple[str, RoundRecord]]:
        """Return the newest training rounds of all runs, the oldest of them first, each with its run's name."""
        with self._database.read() as connection:
            query = select(rounds.c.id, runs.c.name).join(runs).where(rounds.c.kind == "train")
            found = connection.execute(query.order_by(rounds.c.id.desc()).limit(limit)).all()
            names = {row.id: row.name for row in found}
            return [(names[number], record) for number, record in read_rounds(connection, (rounds.c.id.in_(names),))]

    def latest_turns(self, newest_runs: int) -> dict[str, tuple[str, RoundRecord, int]]:
        """Return each site's newest turn in the newest runs: the run, the round and the site's place in it."""
        with self._database.read() as connection:
            newest = select(runs.c.id).order_by(runs.c.id.desc()).limit(newest_runs)
            query = (
                select(site_rounds.c.site, func.max(site_rounds.c.round_id).label("round_id"))
                .join(rounds)
                .where(rounds.c.run_id.in_(newest.scalar_subquery()))
                .group_by(site_rounds.c.site)
            )
            of_site = {row.site: row.round_id for row in connection.execute(query)}
            wanted = set(of_site.values())
            named = select(rounds.c.id, runs.c.name).join(runs).where(rounds.c.id.in_(wanted))
            names = {row.id: row.name for row in connection.execute(named)}
            records = dict(read_rounds(connection, (rounds.c.id.in_(wanted),)))
        return {
            site: (names[number], records[number], [row.site for row in records[number].sites].index(site))
            for site, number in of_site.items()
        }

    def counts(self, newest_runs: int) -> dict[str, dict[str, int]]:
        """Return each site's newest count of training cases by collection, as the newest runs know it."""
        found: dict[str, dict[str, int]] = {}
        with self._database.read() as connection:
            newest = select(runs.c.id, runs.c.job).order_by(runs.c.id.desc()).limit(newest_runs).subquery()
            query = select(newest.c.job, run_sites.c.site, run_sites.c.examples).join(
                run_sites, run_sites.c.run_id == newest.c.id
            )
            for row in connection.execute(query.where(run_sites.c.examples.is_not(None)).order_by(newest.c.id.desc())):
                found.setdefault(row.site, {}).setdefault(json.loads(row.job)["data"]["collection"], row.examples)
        return found

    def progress(self) -> Mapping[str, Any] | None:
        """Return the exchange under way, if any."""
        with self._database.read() as connection:
            found: Mapping[str, Any] | None = connection.execute(
                select(runs.c.progress).where(runs.c.status == "running").order_by(runs.c.id.desc()).limit(1)
            ).scalar()
            return found

    def log(self, run: str, after: int, limit: int) -> tuple[LogLine, ...]:
        """Return the newest lines of the log of a run (or of none) after line `after`, the oldest first."""
        with self._database.read() as connection:
            of_run = log_lines.c.run_id.is_(None)
            if run:
                of_run = log_lines.c.run_id == find_run(connection, run).id
            query = select(log_lines).where(of_run, log_lines.c.id > after).order_by(log_lines.c.id.desc()).limit(limit)
            found = connection.execute(query).all()
            return tuple(LogLine(row.id, run, row.at, row.level, row.text) for row in reversed(found))

    def models(self) -> list[ModelLine]:
        """Return all models of runs that have ended, the newest first."""
        with self._database.read() as connection:
            changes = _changes(connection)
            ended = runs.c.status.not_in(("queued", "running"))
            query = _models().where(ended).order_by(models.c.created.desc(), models.c.id.desc())
            return [_model(row, changes) for row in connection.execute(query)]

    def model(self, number: int) -> tuple[ModelLine, str]:
        """Return a model and its file's path in the registry's folder. Raises NotFoundError."""
        with self._database.read() as connection:
            row = connection.execute(_models().where(models.c.id == number)).first()
            if row is None:
                raise NotFoundError(f"there is no model {number}: see the list of models")
            return _model(row, _changes(connection)), row.path


class Changes:
    """Tells cheaply whether anyone has committed something to a database."""

    def __init__(self, database: Database) -> None:
        self._database, self._lock = database, threading.Lock()
        self._sqlite = _reader(database.file) if database.file is not None else None

    def number(self) -> int:
        """Return a number that is another after each commit, of whichever process."""
        if self._sqlite is not None:
            with self._lock:
                return int(self._sqlite.execute("PRAGMA data_version").fetchone()[0])
        with self._database.read() as connection:  # PostgreSQL: the next transaction's id
            return int(connection.execute(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")).scalar_one())


def _reader(file: Path) -> sqlite3.Connection:
    # A connection of its own that never writes: SQLite's data_version tells of all other connections' commits.
    return sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30.0)


def _escaped(wanted: str) -> str:
    return wanted.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _lines() -> Select[Any]:
    done = select(func.max(rounds.c.number)).where(rounds.c.run_id == runs.c.id, rounds.c.status == "aggregated")
    count = select(func.count()).select_from(run_sites).where(run_sites.c.run_id == runs.c.id)
    return select(runs, done.scalar_subquery().label("done"), count.scalar_subquery().label("sites"))


def _line(row: Row[Any]) -> RunLine:
    job = json.loads(row.job)
    return RunLine(
        row.name,
        row.job_name,
        row.status,
        row.reason,
        row.rounds,
        row.done or 0,
        row.created,
        row.started,
        row.finished,
        row.sites,
        job["aggregation"]["strategy"],
        job["privacy"]["mechanism"],
        row.progress,
        row.digest,
        row.code_version,
    )


def _models() -> Select[Any]:
    about = (runs.c.name.label("run"), runs.c.status.label("run_status"), runs.c.job_name, runs.c.job)
    return select(models, *about).join(runs).where(models.c.kind != STATE)


def _model(row: Row[Any], changes: Mapping[tuple[int, str], list[StageChange]]) -> ModelLine:
    return ModelLine(
        row.id,
        row.run,
        row.run_status,
        row.job_name,
        row.kind,
        row.round,
        row.score,
        json.loads(row.job)["aggregation"]["criterion"],
        row.created,
        row.bytes,
        row.sha256,
        row.digest,
        row.code_version,
        tuple(changes.get((row.run_id, row.sha256), ())),
    )


def _changes(connection: Connection) -> dict[tuple[int, str], list[StageChange]]:
    found: dict[tuple[int, str], list[StageChange]] = {}
    for row in connection.execute(select(model_stages).order_by(model_stages.c.id.desc())):
        found.setdefault((row.run_id, row.sha256), []).append(StageChange(row.stage, row.by, row.at, row.note))
    return found
