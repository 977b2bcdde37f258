"""What a scenario's runs came to: a folder for each run by its digest, and tidy tables over all of them.

OUT/runs/DIGEST/     result.json (written last, all or nothing), model.safetensors
OUT/results.csv, .parquet    a row for each run, site, round and metric
OUT/runs.csv, .parquet       a row for each run: what varied, its final metrics, epsilon, bytes, seconds
OUT/rounds.csv, .parquet     a row for each run and round: bytes, seconds, sites, training loss
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from common.errors import DataError, UsageError
from common.files import write_atomically
from simulations.arms import Cell
from simulations.judge import Row
from simulations.trial import Outcome, Round

RUNS, RESULT, MODEL, LOCK = "runs", "result.json", "model.safetensors", ".lock"
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """A run that is done: where it stands in the scenario, its digest, what it came to (without its model)."""

    cell: Cell
    digest: str
    outcome: Outcome

    def final(self, scope: str, metric: str) -> float | None:
        """Return a metric of the model that is kept, or None where there is none."""
        return next((row.value for row in self.outcome.rows if (row.final, row.scope, row.metric) == (True, scope, metric)), None)  # fmt: skip  # noqa: E501

    @property
    def completed(self) -> bool:
        """Whether it came to an end that can be judged."""
        return self.outcome.status == "completed"

    @property
    def bytes(self) -> int:
        """What went over the wire, both ways."""
        return sum(row.sent + row.received for row in self.outcome.rounds)


class Store:
    """Runs' results in a folder, by digest."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of all results; it need not be there."""
        self.folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others out: two at the same run would tidy away each other's files. Ends with the process at the latest.

        Raises UsageError when another is at work there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"{self.folder}: another `wardround simulate` is at work there: wait for it, or name another --out"
                ) from error
            yield

    def place(self, digest: str) -> Path:
        """Return the folder of a run, made if need be."""
        place = self.folder / RUNS / digest
        place.mkdir(parents=True, exist_ok=True)
        return place

    def find(self, digest: str) -> Outcome | None:
        """Return what a run came to, without its model; None when it is not done, or failed and is to be tried again.

        Raises
        ------
        DataError
            The result is there, but damaged.
        """
        path = self.folder / RUNS / digest / RESULT
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            outcome = _outcome(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: the result can't be read ({error}): remove its folder, and it runs again"
            ) from error
        return outcome if outcome.status == "completed" else None

    def keep(self, cell: Cell, digest: str, outcome: Outcome) -> None:
        """Keep a run's result; the last file written is the one that says that it is done."""
        place = self.place(digest)
        if outcome.model:
            write_atomically(place / MODEL, save(dict(outcome.model)))
        told = {
            "arm": cell.arm,
            "varied": dict(cell.varied),
            "seed": cell.seed,
            "status": outcome.status,
            "reason": outcome.reason,
            "epsilon": outcome.epsilon,
            "clock": outcome.clock,
            "seconds": outcome.seconds,
            "kept_round": outcome.kept_round,
            "rows": [list(asdict(row).values()) for row in outcome.rows],
            "rounds": [list(asdict(row).values()) for row in outcome.rounds],
        }
        write_atomically(place / RESULT, json.dumps(told).encode())
        for path in place.iterdir():  # what only an interrupted run needs
            if path.name not in (RESULT, MODEL):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def metric_table(results: Sequence[Result]) -> Table:
    """Return a row for each run, round, scope, site and metric."""
    return [{**_named(result, results), **asdict(row)} for result in results for row in result.outcome.rows]


def run_table(results: Sequence[Result]) -> Table:
    """Return a row for each run, with a column for each thing varied and for each final metric."""
    finals = dict.fromkeys(
        (row.scope, row.metric)
        for result in results
        for row in result.outcome.rows
        if row.final and row.scope != "site" and not row.metric.endswith(("_low", "_high"))
    )
    return [
        {
            **_named(result, results),
            "status": result.outcome.status,
            "reason": result.outcome.reason,
            **{f"{scope}.{metric}": result.final(scope, metric) for scope, metric in finals},
            "epsilon": result.outcome.epsilon,
            "kept_round": result.outcome.kept_round,
            "sent_bytes": sum(row.sent for row in result.outcome.rounds),
            "received_bytes": sum(row.received for row in result.outcome.rounds),
            "virtual_time": result.outcome.clock,
            "seconds": result.outcome.seconds,
            "digest": result.digest,
        }
        for result in results
    ]


def round_table(results: Sequence[Result]) -> Table:
    """Return a row for each run and round."""
    return [{**_named(result, results), **asdict(row)} for result in results for row in result.outcome.rounds]


def varied_keys(results: Sequence[Result]) -> tuple[str, ...]:
    """Return the grid's keys, in order."""
    return tuple(dict.fromkeys(key for result in results for key in result.cell.varied))


def write_tables(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write the three tables, each as Parquet and as CSV; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in (
        ("results", metric_table(results)),
        ("runs", run_table(results)),
        ("rounds", round_table(results)),
    ):
        columns = _columns(table)
        memory = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), memory)
        write_atomically(folder / f"{name}.parquet", memory.getvalue().to_pybytes())
        write_atomically(folder / f"{name}.csv", _csv(columns).encode())
        paths += [folder / f"{name}.parquet", folder / f"{name}.csv"]
    return paths


def _named(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    varied = {key: result.cell.varied.get(key) for key in varied_keys(results)}
    return {"arm": result.cell.arm, "kind": result.cell.kind, "seed": result.cell.seed, **varied}


def _columns(table: Table) -> dict[str, list[Any]]:
    """Columns of one type each: numbers as floats where any is, and what is neither number nor text as JSON."""
    names = dict.fromkeys(name for row in table for name in row)
    return {name: _one_type([row.get(name) for row in table]) for name in names}


def _one_type(values: list[Any]) -> list[Any]:
    types = {type(value) for value in values if value is not None}
    if types <= {str} or types <= {bool} or types <= {int}:
        return values
    if types <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _csv(columns: Mapping[str, Sequence[Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(["" if value is None else value for value in row] for row in zip(*columns.values(), strict=True))
    return text.getvalue()


def _outcome(found: Mapping[str, Any]) -> Outcome:
    return Outcome(
        found["status"],
        found["reason"],
        tuple(Row(*row) for row in found["rows"]),
        tuple(Round(*row) for row in found["rounds"]),
        found["epsilon"],
        found["clock"],
        found["seconds"],
        found["kept_round"],
    )
