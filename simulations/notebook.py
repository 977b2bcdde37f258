"""Where a simulated run's results go: memory, and now and then a file from which a killed run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import DataError
from common.files import write_atomically
from common.update import Tensors
from server.records import Kept, RoundRecord, SiteRound
from server.rounds import Start
from server.strategies.strategy import Advance

SAVE_SECONDS = 60.0
Memories = Callable[[], Mapping[str, Tensors]]
"""Gives what strategies left at each hospital so far."""
Watch = Callable[[RoundRecord, Tensors | None, Memories], None]
"""Told of every round: its record, the new model if it made one, and how to see what the hospitals remember."""


@dataclass
class Checkpoint:
    """A file from which a run goes on, of the job with this digest. `inside` gives what the hospitals remember."""

    path: Path
    digest: str
    inside: Callable[[], tuple[Tensors, Any]]
    every: float = SAVE_SECONDS
    last: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether it is time to write it again."""
        return time.monotonic() - self.last >= self.every


@dataclass
class Notebook:
    """A recorder in memory, as the round loop wants it. It keeps the last model and the best."""

    model: Tensors
    state: Tensors = field(default_factory=dict)
    number: int = 0
    best: Kept | None = None
    best_model: Tensors | None = None
    records: list[RoundRecord] = field(default_factory=list)
    watch: Watch | None = None
    memories: Memories = dict
    checkpoint: Checkpoint | None = None

    def progress(self, record: RoundRecord, waiting: tuple[str, ...]) -> None:
        """Nobody follows an exchange of a simulation."""

    def commit(self, record: RoundRecord, advance: Advance | None, best: Kept | None) -> None:
        """Keep a round."""
        if best is not None and (self.best is None or best.round != self.best.round) and best.round == self.number:
            self.best_model = self.model  # the best is named before the model that comes after it
        self.best = best
        self.records.append(record)
        if advance is not None:
            self.model, self.state, self.number = advance.model, advance.state, record.number
        if self.watch is not None:
            self.watch(record, advance.model if advance is not None else None, self.memories)
        if advance is not None and self.checkpoint is not None and self.checkpoint.due:
            self.save(self.checkpoint)

    def load(self, number: int) -> Tensors:
        """Return the model after round `number`: the last, or the best."""
        return self.model if number == self.number or self.best_model is None else self.best_model

    def start(self) -> Start:
        """Return where the round loop goes on from."""
        examples = {row.site: row.examples for record in self.records for row in record.sites if row.examples}
        return Start(self.model, self.state, number=self.number, best=self.best, examples=examples)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write everything down, all or nothing."""
        tensors, inside = checkpoint.inside()
        parts = {"model": self.model, "state": self.state, "best": self.best_model or {}, "inside": tensors}
        flat = {f"{part}/{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
        story = {
            "job": checkpoint.digest,
            "number": self.number,
            "best": asdict(self.best) if self.best else None,
            "records": [asdict(record) for record in self.records],
            "inside": inside,
        }
        checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(checkpoint.path, save(flat, metadata={"story": json.dumps(story)}))
        checkpoint.last = time.monotonic()


def resume(notebook: Notebook, checkpoint: Checkpoint) -> tuple[Tensors, Any] | None:
    """Fill `notebook` from a checkpoint of the same job; return what hospitals remembered, or None if there is none.

    Raises
    ------
    DataError
        The file is damaged, or of another job.
    """
    if not checkpoint.path.exists():
        return None
    try:
        with safe_open(checkpoint.path, framework="numpy") as file:
            story = json.loads((file.metadata() or {})["story"])
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{checkpoint.path}: no checkpoint can be read there: {error}: remove it") from error
    if story["job"] != checkpoint.digest:
        raise DataError(f"{checkpoint.path}: the checkpoint is of another job: remove it, or name another folder")
    notebook.model, notebook.state = _part(flat, "model", notebook.model), _part(flat, "state")
    notebook.best_model = _part(flat, "best") or None
    notebook.number = story["number"]
    notebook.best = Kept(**story["best"]) if story["best"] else None
    notebook.records = [_record(found) for found in story["records"]]
    return _part(flat, "inside"), story["inside"]


def _part(flat: Mapping[str, np.ndarray], part: str, order: Mapping[str, object] | None = None) -> Tensors:
    found = {name.split("/", 1)[1]: tensor for name, tensor in flat.items() if name.startswith(f"{part}/")}
    return {name: found[name] for name in order} if order is not None else found


def _record(found: Mapping[str, Any]) -> RoundRecord:
    sites = tuple(SiteRound(**site) for site in found["sites"])
    plain = {name: value for name, value in found.items() if name not in ("sites", "warnings", "late", "central")}
    return RoundRecord(**plain, sites=sites, warnings=tuple(found["warnings"]))
