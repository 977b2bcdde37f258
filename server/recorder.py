"""Writing one run down: a round a transaction, the model's file before the rows that speak of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from common.errors import NotFoundError, RunError
from common.model_file import Provenance, code_version
from common.update import Tensors
from server.database import Database
from server.modelfiles import read_model, write_model
from server.records import Kept, LateAnswer, RoundRecord, RunDetail
from server.schema import models, rounds, run_sites, runs, site_rounds
from server.strategies.strategy import Advance

STATE = "state"
"""What a strategy keeps between rounds (a momentum, a control variate): kept as models are, but it is none."""


class RunRecorder:
    """Writes down one run, a round a transaction: the model's file first, then every row that goes with it."""

    def __init__(self, database: Database, folder: Path, run: RunDetail) -> None:
        self._database, self._folder, self._name, self._digest = database, folder, run.summary.name, run.summary.digest
        self._job = run.job.canonical_json()
        with database.read() as connection:
            self._run_id: int = find_run(connection, self._name).id

    def progress(self, record: RoundRecord, waiting: tuple[str, ...]) -> None:
        """Show the exchange under way to whoever follows the run."""
        with self._database.write() as connection:
            set_run(
                connection,
                self._name,
                progress={
                    "kind": record.kind,
                    "number": record.number,
                    "attempt": record.attempt,
                    "since": record.started,
                    "waiting": list(waiting),
                    "done": {site.site: site.status for site in record.sites},
                },
            )

    def commit(self, record: RoundRecord, advance: Advance | None, best: Kept | None) -> None:
        """Keep a round. Either all of it is kept, or nothing. Raises RunError or DataError when the disk is full."""
        provenance = Provenance(self._name, self._digest, record.number, code_version(), self._job)
        written = [] if advance is None else [("last", advance.model, model_name(record.number))]
        if advance is not None and advance.state:
            written.append((STATE, advance.state, state_name(record.number)))
        files = [
            (kind, f"{self._name}/{name}", write_model(self._folder / self._name / name, tensors, provenance))
            for kind, tensors, name in written
        ]
        with self._database.write() as connection:
            _insert_round(connection, self._run_id, record)
            # The best is named before the new last: it may be the model that was the last until now.
            if best is not None:
                _promote(connection, self._run_id, best)
            for kind, path, written_file in files:
                keep_model(connection, self._run_id, kind, provenance, path, *written_file, None)
            kept = connection.execute(select(models.c.path).where(models.c.run_id == self._run_id)).scalars().all()
        for file in (self._folder / self._name).glob("round-*.safetensors"):
            if f"{self._name}/{file.name}" not in kept:
                file.unlink(missing_ok=True)

    def load(self, number: int) -> Tensors:
        """Return the model after round `number`. Raises UpdateError when its file is not the one that was kept."""
        with self._database.read() as connection:
            row = connection.execute(
                select(models.c.path, models.c.sha256).where(
                    models.c.run_id == self._run_id, models.c.round == number, models.c.kind != STATE
                )
            ).first()
        if row is None:
            raise RunError(f"run {self._name}: the model after round {number} was not kept")
        return read_model(self._folder / row.path, row.sha256)


def state_name(number: int) -> str:
    """Return the name of the file of the strategy's memory after round `number`."""
    return f"round-{number:05d}-{STATE}.safetensors"


def model_name(number: int) -> str:
    """Return the name of the file of the model after round `number`."""
    return f"round-{number:05d}.safetensors"


def set_run(connection: Connection, name: str, **values: Any) -> None:
    """Change a run's row."""
    connection.execute(update(runs).where(runs.c.name == name).values(**values))


def find_run(connection: Connection, name: str) -> Row[Any]:
    """Return a run's row. Raises NotFoundError when there is none of this name."""
    row = connection.execute(select(runs).where(runs.c.name == name)).first()
    if row is None:
        raise NotFoundError(f'there is no run "{name}": see `wardround runs`')
    return row


def _insert_round(connection: Connection, run_id: int, record: RoundRecord) -> None:
    of_round = (rounds.c.kind == record.kind, rounds.c.number == record.number, rounds.c.attempt == record.attempt)
    # An evaluation that was committed just before a kill is made again on resuming: the new one takes its place.
    before = connection.execute(select(rounds.c.id).where(rounds.c.run_id == run_id, *of_round)).scalar()
    connection.execute(delete(site_rounds).where(site_rounds.c.round_id == before))
    connection.execute(delete(rounds).where(rounds.c.id == before))
    row = insert(rounds).values(
        run_id=run_id,
        kind=record.kind,
        number=record.number,
        attempt=record.attempt,
        status=record.status,
        reason=record.reason,
        started=record.started,
        seconds=record.seconds,
        share=record.share,
        score=record.score,
        whole=record.whole,
        warnings=list(record.warnings),
        central=record.central.to_dict() if record.central else None,
        aggregating=record.aggregating,
    )
    round_id = connection.execute(row.returning(rounds.c.id)).scalar_one()
    for position, site in enumerate(record.sites):
        connection.execute(
            insert(site_rounds).values(
                round_id=round_id,
                site=site.site,
                position=position,
                status=site.status,
                reason=site.reason,
                seconds=site.seconds,
                sent=site.sent,
                received=site.received,
                examples=site.examples,
                metrics={**site.metrics, **site.statistics},
                norm=site.norm,
            )
        )
        if site.status in ("aggregated", "trained"):
            of_site = (run_sites.c.run_id == run_id, run_sites.c.site == site.site)
            connection.execute(update(run_sites).where(*of_site).values(examples=site.examples))
    for late in record.late:
        _note_late(connection, run_id, late)


def _note_late(connection: Connection, run_id: int, late: LateAnswer) -> None:
    earlier = select(rounds.c.id).where(
        rounds.c.run_id == run_id,
        rounds.c.kind == late.kind,
        rounds.c.number == late.number,
        rounds.c.attempt == late.attempt,
    )
    connection.execute(
        update(site_rounds)
        .where(site_rounds.c.round_id == earlier.scalar_subquery(), site_rounds.c.site == late.site)
        .values(status="late", reason=f"answered {late.seconds:.0f} s after the round had closed")
    )


def _promote(connection: Connection, run_id: int, best: Kept) -> None:
    """Make the model after round `best.round`, which is kept as the last or the best already, the best."""
    of_round = (models.c.run_id == run_id, models.c.round == best.round, models.c.kind != STATE)
    row = connection.execute(select(models).where(*of_round)).first()
    if row is None:
        raise RunError(f"the model after round {best.round}, the best so far, was not kept")
    provenance = Provenance("", row.digest, row.round, row.code_version)
    keep_model(connection, run_id, "best", provenance, row.path, row.sha256, row.bytes, best.score)


def keep_model(
    connection: Connection,
    run_id: int,
    kind: str,
    provenance: Provenance,
    path: str,
    sha256: str,
    size: int,
    score: float | None,
) -> None:
    """Name a model file as the run's "last" or "best", in place of the one that was."""
    connection.execute(delete(models).where(models.c.run_id == run_id, models.c.kind == kind))
    connection.execute(
        insert(models).values(
            run_id=run_id,
            kind=kind,
            round=provenance.round,
            path=path,
            sha256=sha256,
            bytes=size,
            digest=provenance.job_digest,
            code_version=provenance.code_version,
            score=score,
            created=time.time(),
        )
    )
