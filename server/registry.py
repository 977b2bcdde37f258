"""The registry: runs, rounds, per-site metrics and model files. What is committed here is what a restart goes on from.

Everything that comes out is a plain value of `server.records`; no database object leaves this file.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Row, delete, func, insert, select

from common.errors import RunError, UsageError
from common.job import Job, job_from_json
from common.kit import Kit
from common.update import Tensors
from server.central import CentralRound
from server.database import Database
from server.modelfiles import Provenance, code_version, read_model, write_model
from server.recorder import STATE, RunRecorder, find_run, keep_model, model_name, set_run
from server.records import (
    RESUMABLE,
    CoordinatorSeen,
    Kept,
    ModelFile,
    RoundRecord,
    RunDetail,
    RunStatus,
    RunSummary,
    SiteRound,
    SiteSeen,
)
from server.rounds import Start
from server.schema import coordinators, models, rounds, run_sites, runs, site_rounds, sites, witnesses

ENVIRONMENT_VARIABLE = "WARDROUND_REGISTRY"
"""Names a database by SQLAlchemy's URL (`postgresql+psycopg://...`) to be used in place of the kit's own SQLite."""


def open_registry(kit: Kit) -> Registry:
    """Open the registry of a coordinator's kit: in its folder, or the database at `WARDROUND_REGISTRY`.

    Model files are always in the kit's folder. Raises UsageError or DataError as `Registry` does.
    """
    here = URL.create("sqlite", database=str((kit.folder / "registry.sqlite").resolve()))
    url = os.environ.get(ENVIRONMENT_VARIABLE) or here.render_as_string(hide_password=False)
    return Registry(url, kit.folder.resolve() / "models")


class Registry:
    """The registry at a database's URL, with its model files in a folder. Several processes may have it open."""

    def __init__(self, url: str, folder: Path) -> None:
        """Open it, creating and migrating it as needed. Raises UsageError or DataError as `Database` does."""
        self._database = Database(url)
        self.folder = folder

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # Runs: asked for, claimed, ended.

    def submit(self, job: Job, initial: Tensors) -> str:
        """Queue a run of `job` that starts from `initial`; return its name, unique for all time.

        A site's ledger knows a run by its name, so that no name may come back, not even in a new registry.
        """
        name = f"{job.name}-{time.strftime('%y%m%d', time.gmtime())}-{secrets.token_hex(3)}"
        provenance = Provenance(name, job.digest, 0, code_version())
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
        raise UsageError(f'there is no run "{start}": see `wardround runs`')

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
                rounds=_rounds(connection, row.id),
                models=tuple(
                    ModelFile(
                        m.kind,
                        m.round,
                        str(self.folder / m.path),
                        m.sha256,
                        m.bytes,
                        m.digest,
                        m.code_version,
                        m.score,
                        m.created,
                    )
                    for m in kept
                ),
            )

    # Who is here.

    def see_sites(self, seen: Sequence[SiteSeen]) -> None:
        """Keep the sites as they are now; a site that is no longer admitted is forgotten."""
        with self._database.write() as connection:
            connection.execute(delete(sites))
            for site in seen:
                connection.execute(insert(sites).values(asdict(site)))

    def see_coordinator(self, seen: CoordinatorSeen | None) -> None:
        """Keep the coordinator's sign of life, or that it has gone in good order."""
        with self._database.write() as connection:
            connection.execute(delete(coordinators))
            if seen is not None:
                connection.execute(insert(coordinators).values(id=1, **asdict(seen)))

    def list_sites(self) -> list[SiteSeen]:
        """Return the sites as last seen, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(sites).order_by(sites.c.name))
            return [SiteSeen(row.name, row.certificate_ends, row.online, row.last_seen) for row in rows]

    # What the sites' audit logs were seen to hold.

    def witness(self, site: str) -> str:
        """Return the JSON of the newest head seen of the site's audit log, or "" while there is none."""
        with self._database.read() as connection:
            head = connection.execute(select(witnesses.c.head).where(witnesses.c.site == site)).scalar()
            return str(head or "")

    def keep_witness(self, site: str, head: str) -> None:
        """Keep `head` (JSON) as the newest of the site's audit log."""
        with self._database.write() as connection:
            connection.execute(delete(witnesses).where(witnesses.c.site == site))
            connection.execute(insert(witnesses).values(site=site, head=head, seen=time.time()))

    def forget_witness(self, site: str) -> None:
        """Let the site begin a new log. Raises UsageError when no head of it was kept."""
        with self._database.write() as connection:
            if connection.execute(delete(witnesses).where(witnesses.c.site == site)).rowcount == 0:
                raise UsageError(f'no head of an audit log of "{site}" is kept: see `wardround sites --json`')

    def coordinator(self) -> CoordinatorSeen | None:
        """Return the coordinator's last sign of life, or None when it has gone or was never here."""
        with self._database.read() as connection:
            row = connection.execute(select(coordinators)).first()
            return CoordinatorSeen(row.process, row.address, row.started, row.heartbeat) if row else None


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


def _rounds(connection: Connection, run_id: int) -> tuple[RoundRecord, ...]:
    by_round: dict[int, list[SiteRound]] = {}
    query = select(site_rounds).join(rounds).where(rounds.c.run_id == run_id).order_by(site_rounds.c.position)
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
                row.metrics,
            )
        )
    return tuple(
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
        )
        for row in connection.execute(select(rounds).where(rounds.c.run_id == run_id).order_by(rounds.c.id))
    )
