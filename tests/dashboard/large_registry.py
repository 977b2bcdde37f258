"""A large federation's coordinator: 100 sites, 1,000 runs, the newest of 500 rounds with all sites. Made up in seconds.

By hand: python tests/dashboard/large_registry.py FOLDER
Then, with the password that it prints: wardround dashboard FOLDER/kits/coordinator
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, update

from certs.admission import admit
from certs.enrol import accept, enrol
from certs.kits import create_kits
from common.federation import parse_federation
from common.job import Job, parse_job
from common.kit import Kit, read_kit
from server.people import People
from server.registry import Registry, open_registry
from server.schema import (
    coordinators,
    log_lines,
    metadata,
    model_stages,
    models,
    rounds,
    run_sites,
    runs,
    site_facts,
    site_rounds,
    sites,
)  # fmt: skip

PASSWORD = "correct horse battery staple"
DAY, MODEL_BYTES = 86400.0, 4_200_000
OTHER_SITES = 8
STATUSES = ("completed",) * 6 + ("incomplete", "failed", "stopped", "interrupted")
CHUNK = 20_000


@dataclass(frozen=True)
class Large:
    """Its coordinator's kit and open registry, and the name of its longest run."""

    kit: Kit
    registry: Registry
    longest: str


def make_large(folder: Path, *, hospitals: int = 100, run_count: int = 1000, longest_rounds: int = 500) -> Large:
    """Make the kits and fill the registry; the person "viewer" may look at it, with `PASSWORD`."""
    names = [f"hospital-{number:03d}" for number in range(1, hospitals + 1)]
    kit = make_kits(folder, names)
    registry = open_registry(kit)
    People(registry.database).add("viewer", "viewer", by="test", password=PASSWORD)
    draw, now = random.Random(0), time.time()
    with registry.database.write() as connection:
        _see_sites(connection, names, now)
        writer = Writer(connection)
        for number in range(1, run_count):
            some = (
                names[: min(OTHER_SITES, hospitals)] if number % 3 else draw.sample(names, min(OTHER_SITES, hospitals))
            )
            began = now - (run_count - number) * DAY / 4
            writer.run(number, make_job(f"study-{number % 40:02d}", some, draw.randint(5, 20)), began, draw)
        began = now - longest_rounds * 60.0
        longest = writer.run(run_count, make_job("long-study", names, longest_rounds), began, draw)
        writer.flush()
    return Large(kit, registry, longest)


def make_kits(folder: Path, names: list[str]) -> Kit:
    """Make and admit a real kit for every hospital: a page reads the roster's certificates."""
    text = 'name = "large"\n[coordinator]\naddress = "localhost:9092"\ndns = ["localhost"]\naddresses = ["127.0.0.1"]\n'
    text += "".join(f'[[sites]]\nname = "{name}"\n' for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    kits = create_kits(parse_federation(text), folder / "kits")
    for name in names:
        site = read_kit(kits / "sites" / name, "site")
        accept(site, admit(kits, enrol(site)))
    return read_kit(kits / "coordinator", "coordinator")


def make_job(name: str, names: list[str], count: int) -> Job:
    """Return a private job of so many rounds."""
    return parse_job(
        f'name = "{name}"\nsites = {names!r}\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "chest"\n'
        f'[aggregation]\nrounds = {count}\n[privacy]\nmechanism = "dp-sgd"\nepsilon = 8.0\n'
    )


class Writer:
    """Gathers rows of all tables and writes them many at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._rounds = connection, 0
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._gathered = 0

    def run(self, number: int, job: Job, began: float, draw: random.Random) -> str:
        """Add a run with its rounds, models and log, and return its name."""
        name, count = f"{job.name}-250101-{number:06x}", job.aggregation.rounds
        status = STATUSES[number % len(STATUSES)] if count <= 20 else "completed"
        self.add(
            runs.name, id=number, name=name, status=status, reason="" if status == "completed" else "a made-up reason",
            stop_wanted=False, job_name=job.name, digest=job.digest, job=job.canonical_json(), rounds=count,
            code_version="0.1.0", created=began - 5, started=began, finished=began + count * 60.0, progress=None,
        )  # fmt: skip
        for place, site in enumerate(job.sites):
            self.add(run_sites.name, run_id=number, site=site, position=place, examples=400 + 10 * place)
        for one in range(1, count + 1):
            self.round(number, job, one, began, draw)
        for line in range(30):
            at = began + line
            self.add(log_lines.name, run_id=number, at=at, level="info", text=f"round {line}: a line of the log")
        self._models(number, name, job, began)
        return name

    def round(self, run: int, job: Job, number: int, began: float, draw: random.Random) -> None:
        """Add a training round with a turn for every site: some late, some refused, as it goes."""
        self._rounds += 1
        self.add(
            rounds.name, id=self._rounds, run_id=run, kind="train", number=number, attempt=1, status="aggregated",
            reason="", started=began + 60.0 * number, seconds=30 + 20 * draw.random(), share=0.97, whole=True,
            score=_learnt(number, job), warnings=[], central=None, aggregating=0.4,
        )  # fmt: skip
        for place, site in enumerate(job.sites):
            self.add(site_rounds.name, round_id=self._rounds, **turn(job, number, site, place, draw))

    def add(self, table: str, **row: Any) -> None:
        self._rows.setdefault(table, []).append(row)
        self._gathered += 1
        if self._gathered > CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; what others refer to first."""
        for table in metadata.sorted_tables:
            if found := self._rows.pop(table.name, []):
                self._connection.execute(insert(table), found)
        self._gathered = 0

    def _models(self, run: int, name: str, job: Job, began: float) -> None:
        for kind, number in (("best", job.aggregation.rounds - 1), ("last", job.aggregation.rounds)):
            sha256 = f"{run:032x}{number:032x}"
            self.add(
                models.name, run_id=run, kind=kind, round=number, path=f"{name}/round-{number:05d}.safetensors",
                sha256=sha256, bytes=MODEL_BYTES, digest=job.digest, code_version="0.1.0",
                score=_learnt(number, job), created=began + 60.0 * number,
            )  # fmt: skip
            if run % 5 == 0:
                stage = {"run_id": run, "sha256": sha256, "stage": "approved", "by": "ada", "at": began, "note": "good"}
                self.add(model_stages.name, **stage)


def turn(job: Job, number: int, site: str, place: int, draw: random.Random) -> dict[str, Any]:
    """Return a row of one site in one round."""
    lot, score = draw.random(), _learnt(number, job) + 0.02 * math.sin(place)
    row = {"site": site, "position": place, "sent": MODEL_BYTES, "seconds": 0.0, "received": 0, "examples": 0,
           "metrics": {}, "norm": None, "reason": ""}  # fmt: skip
    if lot < 0.03:
        return row | {"status": "late" if lot < 0.02 else "unreached", "reason": "no answer before the round closed"}
    numbers = {
        "train.loss": 2.0 / (1 + 0.05 * number) + 0.1 * lot, "train.held": 20 + 9 * lot, "train.seconds": 18 + 8 * lot,
        "eval.auc": score, "eval.auc_low": score - 0.03, "eval.auc_high": score + 0.03, "eval.patients": 80.0 + place,
        "eval.images": 90.0 + place, "privacy.epsilon": 8.0 * math.sqrt(number / job.aggregation.rounds),
    }  # fmt: skip
    return row | {"status": "aggregated", "seconds": 22 + 9 * lot, "received": MODEL_BYTES, "examples": 400 + place,
                  "norm": 1.5 / (1 + 0.01 * number) * (1 + 0.2 * lot), "metrics": numbers}  # fmt: skip


def more_rounds(large: Large, *, start: int) -> Iterator[int]:
    """Commit a further round of the longest run, which is shown as running, each time the next is asked for."""
    view, draw, now = large.registry.run_detail(large.longest), random.Random(start), time.time()
    for number in range(start, start + 100_000):
        with large.registry.database.write() as connection:
            found = connection.execute(runs.select().where(runs.c.name == large.longest)).one()
            writer = Writer(connection)
            writer._rounds = connection.execute(rounds.select().order_by(rounds.c.id.desc()).limit(1)).one().id
            writer.round(found.id, view.job, number, now - number * 60.0, draw)
            writer.flush()
            connection.execute(update(runs).where(runs.c.id == found.id).values(status="running"))
        yield number


def _learnt(number: int, job: Job) -> float:
    return 0.55 + 0.35 * (1 - math.exp(-4 * number / job.aggregation.rounds))


def _see_sites(connection: Connection, names: list[str], now: float) -> None:
    ends = now + 300 * DAY
    connection.execute(
        insert(sites),
        [{"name": one, "certificate_ends": ends, "online": place % 10 > 0, "last_seen": now - place}
         for place, one in enumerate(names)],
    )  # fmt: skip
    connection.execute(
        insert(site_facts), [{"site": one, "version": "0.1.0", "device": "NVIDIA A40", "seen": now} for one in names]
    )
    connection.execute(
        insert(coordinators), [{"process": 1, "address": "localhost:9092", "started": now - DAY, "heartbeat": now}]
    )


if __name__ == "__main__":
    began_at = time.monotonic()
    made = make_large(Path(sys.argv[1]))
    print(f"{made.longest} in {time.monotonic() - began_at:.1f} s; name: viewer, password: {PASSWORD}")
