"""A scenario's runs in MLflow or TensorBoard, for who looks there. Both write to a folder only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import DataError, UsageError
from simulations.results import Result

INSTALL = "pip install 'wardround[tracking]'"
DIGEST = "wardround.digest"


def check_installed(*, mlflow: bool, tensorboard: bool) -> None:
    """Raise UsageError for what is asked for and is not installed, before anything runs."""
    if mlflow:
        _mlflow_client(None)
    if tensorboard:
        _writer_class()


def log_to_mlflow(folder: Path, experiment: str, results: Sequence[Result]) -> int:
    """Log each run that is not there yet as a run of `experiment`; return how many. Raises UsageError, DataError."""
    client = _mlflow_client(folder)
    with _one_line(folder):
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment)
        there = {run.data.tags.get(DIGEST) for run in client.search_runs([number], max_results=50_000)}
        new = [result for result in results if result.completed and result.digest not in there]
        for result in new:
            run = client.create_run(number, run_name=f"{result.cell.title}, seed {result.cell.seed}"[:250])
            name = run.info.run_id
            for key, value in {"arm": result.cell.arm, "seed": result.cell.seed, **result.cell.varied}.items():
                client.log_param(name, key, value if isinstance(value, str) else json.dumps(value))
            for metric, value, step in _scalars(result):
                client.log_metric(name, metric, value, step=step)
            client.set_tag(name, DIGEST, result.digest)  # last: a run without it is logged again
            client.set_terminated(name)
    return len(new)


def log_to_tensorboard(folder: Path, results: Sequence[Result]) -> int:
    """Log each run that is not there yet to a folder of its own; return how many. Raises UsageError, DataError."""
    writer_class = _writer_class()
    written = 0
    with _one_line(folder):
        for result in results:
            home = folder / "".join(c if c.isalnum() or c in "-._= " else "-" for c in result.cell.title)[:120].strip()
            home = home / f"seed {result.cell.seed} {result.digest[:12]}"
            if not result.completed or home.exists():
                continue
            with writer_class(str(home)) as writer:
                for metric, value, step in _scalars(result):
                    writer.add_scalar(metric, value, step)
            written += 1
    return written


def _scalars(result: Result) -> Iterator[tuple[str, float, int]]:
    """Metrics by round, and what each round took. Hospitals' own have the hospital's name."""
    for row in result.outcome.rows:
        if not row.final or row.round == result.outcome.rounds[-1].number:
            yield (
                f"{row.scope}/{row.site}/{row.metric}" if row.site else f"{row.scope}/{row.metric}",
                row.value,
                row.round,
            )
    for taken in result.outcome.rounds:
        yield "round/bytes", float(taken.sent + taken.received), taken.number
        if taken.loss is not None:
            yield "round/training_loss", taken.loss, taken.number


def _mlflow_client(folder: Path | None) -> Any:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is what was asked for
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # nothing phones home
    try:
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError as error:
        raise UsageError(f"MLflow is not installed here: {INSTALL}, or leave --mlflow out") from error
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with _one_line(folder):
        return MlflowClient(tracking_uri=folder.resolve().as_uri())


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UsageError(f"TensorBoard is not installed here: {INSTALL}, or leave --tensorboard out") from error
    return SummaryWriter


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Say what a foreign library has against the folder in one line."""
    try:
        yield
    except (OSError, UsageError):
        raise
    except Exception as error:
        raise DataError(f"{folder}: the runs can't be logged there: {' '.join(str(error).split())[:300]}") from error
