"""The registry: runs, rounds, per-site metrics and model files. What is committed here is what a restart goes on from.

Everything that comes out is a plain value of `server.records`; no database object leaves this file.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Row, delete, func, insert, select

from common.errors import NotFoundError, RunError, UsageError
from common.job import Job, job_from_json
from common.kit import Kit
from common.model_file import Provenance, code_version
from common.update import Tensors
from server.central import CentralRound
from server.database import Database
from server.modelfiles import read_model, write_model
from server.recorder import STATE, RunRecorder, find_run, keep_model, model_name, set_run
from server.records import (
    RESUMABLE,
    Kept,
    LogLine,
    ModelFile,
    RoundRecord,
    RunDetail,
    RunStatus,
    RunSummary,
    SiteRound,
    Stage,
)
from server.rounds import Start
from server.schema import log_lines, model_stages, models, rounds, run_sites, runs, site_rounds
from server.sightings import Sightings

ENVIRONMENT_VARIABLE = "WARDROUND_REGISTRY"
"""Names a database by SQLAlchemy's URL (`postgresql+psycopg://...`) to be used in place of the kit's own SQLite."""
LOG_KEPT, LOG_SWEPT = 5000, 100
"""Lines of the log that are kept of each run, and after how many new ones the older are swept out."""


def open_registry(kit: Kit) -> Registry:
    """Open the registry of a coordinator's kit: in its folder, or the database at `WARDROUND_REGISTRY`.

    Model files are always in the kit's folder. Raises UsageError or DataError as `Registry` does.
    """
    here = URL.create("sqlite", database=str((kit.folder / "registry.sqlite").resolve()))
    url = os.environ.get(ENVIRONMENT_VARIABLE) or here.render_as_string(hide_password=False)
    return Registry(url, kit.folder.resolve() / "models")


class Registry(Sightings):
    """The registry at a database's URL, with its model files in a folder. Several processes may have it open."""

    def __init__(self, url: str, folder: Path) -> None:
        """Open it, creating and migrating it as needed. Raises UsageError or DataError as `Database` does."""
        super().__init__(Database(url))
        self.folder = folder

    @property
    def database(self) -> Database:
        """The database, for what reads or keeps other tables of it: `server.query`, `server.people`."""
        return self._database

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # Runs: asked for, claimed, ended.

    def submit(self, job: Job, initial: Tensors) -> str:
        """Queue a run of `job` that starts from `initial`; return its name, unique for all time.

        A site's ledger knows a run by its name, so that no name may come back, not even in a new registry.
        """
        name = f"{job.name}-{time.strftime('%y%m%d', time.gmtime())}-{secrets.token_hex(3)}"
        provenance = Provenance(name, job.digest, 0, code_version(), job.canonical_json())
        path = f"{name}/{model_name(0)}"
        sha256, size = write_model(self.folder / path, initial, provenance)
        with self._database.write() as connection:
            row = insert(runs).values(
                name=name,
                status="queued",
                reason="",
                stop_wanted=False,
                job_name=job.name,
                digest=job.digest,
                job=job.canonical_json(),
                rounds=job.aggregation.rounds,
                code_version=provenance.code_version,
                created=time.time(),
            )
            run_id = connection.execute(row.returning(runs.c.id)).scalar_one()
            for position, site in enumerate(job.sites):
                connection.execute(insert(run_sites).values(run_id=run_id, site=site, position=position))
            keep_model(connection, run_id, "last", provenance, path, sha256, size, None)
        return name

    def find(self, start: str) -> str:
        """Return the one run whose name is `start` or begins with it. Raises UsageError when there is none, or many."""
        with self._database.read() as connection:
            names: list[str] = list(connection.execute(select(runs.c.name).order_by(runs.c.id)).scalars())
        found = [name for name in names if name == start] or [name for name in names if name.startswith(start)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f'"{start}" may be any of {", ".join(found[-5:])}: write more of the name')
        raise NotFoundError(f'there is no run "{start}": see `wardround runs`')

    def resume(self, name: str) -> None:
        """Queue a run that was interrupted, stopped or failed, to go on after its last committed round.

        Raises RunError when it is under way, or complete.
        """
        with self._database.write() as connection:
            status = connection.execute(select(runs.c.status).where(runs.c.name == name)).scalar_one()
            if status not in RESUMABLE:
                raise RunError(f"run {name} is {status}: only one that is {', '.join(RESUMABLE)} can be resumed")
            set_run(connection, name, status="queued", reason="", stop_wanted=False, finished=None, progress=None)

    def stop(self, name: str) -> None:
        """Ask for a run to stop; a queued one is stopped at once. Raises RunError when it has ended already."""
        with self._database.write() as connection:
            status = connection.execute(select(runs.c.status).where(runs.c.name == name)).scalar_one()
            if status == "queued":
                set_run(connection, name, status="stopped", reason="stopped before it began", finished=time.time())
            elif status == "running":
                set_run(connection, name, stop_wanted=True)
            else:
                raise RunError(f"run {name} is {status} already")

    def stop_wanted(self, name: str) -> bool:
        """Whether someone asked for the run to stop."""
        with self._database.read() as connection:
            return bool(connection.execute(select(runs.c.stop_wanted).where(runs.c.name == name)).scalar())

    def claim(self, name: str | None = None) -> str | None:
        """Take the oldest queued run (or the one named) and mark it as running; None when there is none."""
        with self._database.write() as connection:
            query = select(runs.c.name).where(runs.c.status == "queued").order_by(runs.c.id).limit(1)
            if name is not None:
                query = query.where(runs.c.name == name)
            found: str | None = connection.execute(query).scalar()
            if found is not None:
                started = func.coalesce(runs.c.started, time.time())
                set_run(connection, found, status="running", started=started, stop_wanted=False)
            return found

    def finish(self, name: str, status: RunStatus, reason: str = "") -> RunStatus:
        """End a run, and return how: "completed" becomes "incomplete" when a round lacks the largest site."""
        with self._database.write() as connection:
            if status == "completed":
                lacking = connection.execute(
                    select(func.count())
                    .select_from(rounds.join(runs))
                    .where(runs.c.name == name, rounds.c.status == "aggregated", rounds.c.whole.is_(False))
                ).scalar_one()
                if lacking:
                    status = "incomplete"
                    reason = f"{lacking} rounds lack the site with the most cases, or one that may have the most"
            set_run(connection, name, status=status, reason=reason, finished=time.time(), progress=None)
        return status

    def interrupt_running(self) -> list[str]:
        """Mark the runs that a coordinator left running when it was killed; return their names."""
        with self._database.write() as connection:
            running = select(runs.c.name).where(runs.c.status == "running")
            names: list[str] = list(connection.execute(running).scalars())
            for name in names:
                reason = f"the coordinator ended in the middle of it: wardround run --resume {name}"
                set_run(connection, name, status="interrupted", reason=reason, finished=time.time(), progress=None)
        return names

    def start_of(self, name: str) -> tuple[Job, Start]:
        """Return a run's job, and where it starts or goes on from.

        Raises UpdateError when its model file is not the one that was kept.
        """
        detail = self.run_detail(name)
        kept = {model.kind: model for model in detail.models}
        last, best = kept["last"], kept.get("best")
        state = self._state_of(name)
        attempts = [r for r in detail.rounds if r.kind == "train" and r.number == last.round + 1]
        return detail.job, Start(
            model=read_model(Path(last.path), last.sha256),
            state=read_model(self.folder / state.path, state.sha256) if state is not None else {},
            number=last.round,
            attempts=max((record.attempt for record in attempts), default=0),
            best=Kept(best.round, best.score) if best else None,
            examples={site: count for site, count in detail.examples.items() if count is not None},
            validated=any(record.kind == "validation" for record in detail.rounds),
            clip_norm=next((r.central.next_clip_norm for r in reversed(detail.rounds) if r.central), None),
        )

    def _state_of(self, name: str) -> Row[Any] | None:
        with self._database.read() as connection:
            run = find_run(connection, name)
            return connection.execute(select(models).where(models.c.run_id == run.id, models.c.kind == STATE)).first()

    def recorder(self, name: str) -> RunRecorder:
        """Return what writes a run's rounds down."""
        return RunRecorder(self._database, self.folder, self.run_detail(name))

    # What people read.

    def list_runs(self) -> list[RunSummary]:
        """Return all runs, the newest first."""
        with self._database.read() as connection:
            return [_summary(connection, row) for row in connection.execute(select(runs).order_by(runs.c.id.desc()))]

    def summary(self, name: str) -> RunSummary:
        """Return one run in a line. Raises UsageError when there is none of this name."""
        with self._database.read() as connection:
            return _summary(connection, find_run(connection, name))

    def run_detail(self, name: str) -> RunDetail:
        """Return everything that is kept of a run. Raises UsageError when there is none of this name."""
        with self._database.read() as connection:
            row = find_run(connection, name)
            examples = connection.execute(
                select(run_sites.c.site, run_sites.c.examples)
                .where(run_sites.c.run_id == row.id)
                .order_by(run_sites.c.position)
            )
            of_run = (models.c.run_id == row.id, models.c.kind != STATE)
            kept = connection.execute(select(models).where(*of_run).order_by(models.c.kind))
            return RunDetail(
                summary=_summary(connection, row),
                job=job_from_json(row.job, source=f"run {name}"),
                examples={row.site: row.examples for row in examples},
                rounds=tuple(record for _, record in read_rounds(connection, (rounds.c.run_id == row.id,))),
                models=tuple(self._file(row) for row in kept),
            )

    # What people decide on models, and what is told while runs go on.

    def model_file(self, model: int) -> tuple[str, ModelFile]:
        """Return the run of the model with this id, and its file. Raises NotFoundError when there is none."""
        with self._database.read() as connection:
            query = select(models, runs.c.name).join(runs).where(models.c.id == model, models.c.kind != STATE)
            if (row := connection.execute(query).first()) is None:
                raise NotFoundError(f"there is no model {model}: see the list of models")
            return row.name, self._file(row)

    def set_stage(self, model: int, stage: Stage, *, by: str, note: str = "") -> None:
        """Put the model with this id into a stage. Raises NotFoundError, or RunError while its run may replace it."""
        with self._database.write() as connection:
            query = select(models, runs.c.name, runs.c.status).join(runs).where(models.c.id == model)
            row = connection.execute(query.where(models.c.kind != STATE)).first()
            if row is None:
                raise NotFoundError(f"there is no model {model}: see the list of models")
            if row.status in ("queued", "running"):
                raise RunError(f"run {row.name} is {row.status}: its models have stages once it has ended")
            connection.execute(
                insert(model_stages).values(
                    run_id=row.run_id, sha256=row.sha256, stage=stage, by=by, at=time.time(), note=note
                )
            )

    def add_log(self, lines: Sequence[LogLine]) -> None:
        """Keep lines of the coordinator's log; of each run, and of what belongs to none, the newest `LOG_KEPT`."""
        with self._database.write() as connection:
            for line in lines:
                run_id = connection.execute(select(runs.c.id).where(runs.c.name == line.run)).scalar()
                row = insert(log_lines).values(run_id=run_id, at=line.at, level=line.level, text=line.text)
                newest = connection.execute(row.returning(log_lines.c.id)).scalar_one()
                if newest % LOG_SWEPT == 0:
                    of_run = log_lines.c.run_id == run_id if run_id is not None else log_lines.c.run_id.is_(None)
                    kept = select(log_lines.c.id).where(of_run).order_by(log_lines.c.id.desc()).limit(LOG_KEPT)
                    connection.execute(delete(log_lines).where(of_run, log_lines.c.id.not_in(kept)))

    def _file(self, row: Row[Any]) -> ModelFile:
        return ModelFile(
            row.kind,
            row.round,
            str(self.folder / row.path),
            row.sha256,
            row.bytes,
            row.digest,
            row.code_version,
            row.score,
            row.created,
        )


def _summary(connection: Connection, row: Row[Any]) -> RunSummary:
    done = connection.execute(
        select(func.max(rounds.c.number)).where(rounds.c.run_id == row.id, rounds.c.status == "aggregated")
    ).scalar()
    return RunSummary(
        row.name,
        row.status,
        row.reason,
        row.job_name,
        row.digest,
        row.rounds,
        done or 0,
        row.code_version,
        row.created,
        row.started,
        row.finished,
        row.progress,
    )


def read_rounds(connection: Connection, wanted: Sequence[ColumnElement[bool]]) -> list[tuple[int, RoundRecord]]:
    """Return the rounds that meet all of `wanted`, in the order in which they were committed, with their ids."""
    by_round: dict[int, list[SiteRound]] = {}
    query = select(site_rounds).join(rounds).where(*wanted).order_by(site_rounds.c.position)
    for row in connection.execute(query):
        by_round.setdefault(row.round_id, []).append(
            SiteRound(
                row.site,
                row.status,
                row.reason,
                row.seconds,
                row.sent,
                row.received,
                row.examples,
                {name: value for name, value in row.metrics.items() if not isinstance(value, list)},
                row.norm,
                {name: value for name, value in row.metrics.items() if isinstance(value, list)},
            )
        )
    return [
        (
            row.id,
            RoundRecord(
                row.kind,
                row.number,
                row.attempt,
                row.status,
                tuple(by_round.get(row.id, ())),
                row.reason,
                row.started,
                row.seconds,
                row.share,
                row.score,
                row.whole,
                tuple(row.warnings),
                central=CentralRound.from_dict(row.central) if row.central else None,
                aggregating=row.aggregating,
            ),
        )
        for row in connection.execute(select(rounds).where(*wanted).order_by(rounds.c.id))
    ]
