"""A whole federation in one process (or on Ray): the deployment's round loop, strategies and sites, without a wire.

    history = simulate(job, population)

Network, task and decoded cases stay in memory; hospitals run one after another; nothing is turned into bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from flwr.serverapp import Grid

from client.training import pick_device
from common.errors import UsageError
from common.job import Job
from common.networks import initial_model
from common.update import Tensors
from server.records import Kept, RoundRecord
from server.rounds import RoundLoop
from simulations.crew import Members
from simulations.faults import Fault
from simulations.grid import InProcessGrid
from simulations.members import Population
from simulations.notebook import Checkpoint, Notebook, Watch, resume

GridName = Literal["process", "ray"]


@dataclass(frozen=True)
class History:
    """What a run came to.

    `records` are all exchanges; `model` is the last model, `kept` the one that the job's criterion chose, after round
    `kept_round`; `memories` is what strategies left at the hospitals (layers, personal models); `clock` is virtual
    time: a hospital's round takes 1, a straggler's longer.
    """

    records: tuple[RoundRecord, ...]
    model: Tensors
    kept: Tensors
    kept_round: int
    memories: Mapping[str, Tensors]
    clock: float
    seconds: float


def simulate(
    job: Job,
    population: Population,
    *,
    grid: GridName = "process",
    workers: int | None = None,
    faults: Sequence[Fault] = (),
    joins: Mapping[str, int] | None = None,
    watch: Watch | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    evaluate: bool = True,
    threads: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> History:
    """Train `job` on `population`, as a deployment would, and return what came of it.

    `grid` "process": all in this process; "ray": `workers` processes that Ray starts, on many machines if it has them;
    the same bits either way. `joins` has the round in which a hospital comes in, from 1. `watch` is told of every
    round, and may see what strategies left at the hospitals. `checkpoint` is a file from which a run that was killed
    goes on. Without `evaluate` hospitals only train. `threads` is torch's: how a sum is split over them changes its
    last bits, so it is the same on every machine.

    Raises
    ------
    UsageError
        The job names a hospital that the population lacks.
    JobError, RunError
        As in a deployment. Stopped: `stopped()` became true.
    """
    started = time.monotonic()
    if missing := [site for site in job.sites if site not in population]:
        raise UsageError(f'the job names "{missing[0]}", which is no hospital of this population')
    notebook = Notebook(initial_model(job), watch=watch)
    members = Members(job, population, pick_device(device), tuple(faults), dict(joins or {}))
    with _threads(threads), _crew(grid, workers, threads, members) as crew:
        notebook.memories = lambda: _left_at(crew)
        if checkpoint is not None:
            notebook.checkpoint = Checkpoint(checkpoint, job.digest, crew.remembered)
            if (found := resume(notebook, notebook.checkpoint)) is not None:
                crew.remember(*found)
        loop = RoundLoop(
            job,
            "simulation",
            crew.grid,
            lambda: crew.node_ids,
            notebook,
            notebook.start(),
            stopped=stopped,
            trains_only=not evaluate,
        )
        kept: Kept = loop.run()
        return History(
            tuple(notebook.records),
            notebook.model,
            notebook.load(kept.round),
            kept.round,
            _left_at(crew),
            crew.clock,
            time.monotonic() - started,
        )


def _left_at(crew: Crew) -> dict[str, Tensors]:
    return {name: found for name, found in crew.memories().items() if found}


class InProcess:
    """All hospitals in this process, one after another."""

    def __init__(self, members: Members) -> None:
        """Take the members; none is made yet."""
        self._members = members
        self.node_ids = members.node_ids
        names = {number: name for name, number in self.node_ids.items()}
        self._grid = InProcessGrid.by_reference(
            lambda number, request: members.member(names[number]).answer(request), list(names), members.pace
        )

    @property
    def grid(self) -> Grid:
        """What the round loop talks to."""
        return self._grid

    @property
    def clock(self) -> float:
        """Virtual time so far."""
        return self._grid.clock

    def memories(self) -> dict[str, Tensors]:
        """Return what strategies left at each hospital."""
        return {name: self._members.memory(name) for name in self.node_ids}

    def remembered(self) -> tuple[Tensors, Any]:
        """Return what all hospitals remember."""
        return self._members.remembered()

    def remember(self, tensors: Tensors, spent: Any) -> None:
        """Take it back."""
        self._members.remember(tensors, spent)

    def close(self) -> None:
        """Nothing is left running."""


class Crew(Protocol):
    """Hospitals at work somewhere, behind a grid."""

    node_ids: dict[str, int]

    @property
    def grid(self) -> Grid:
        """What the round loop talks to."""

    @property
    def clock(self) -> float:
        """Virtual time so far."""

    def memories(self) -> dict[str, Tensors]:
        """Return what strategies left at each hospital."""

    def remembered(self) -> tuple[Tensors, Any]:
        """Return what all hospitals remember."""

    def remember(self, tensors: Tensors, spent: Any) -> None:
        """Take it back."""

    def close(self) -> None:
        """Leave nothing running."""


@contextmanager
def _crew(grid: GridName, workers: int | None, threads: int, members: Members) -> Iterator[Crew]:
    crew: Crew = _on_ray(members, workers, threads) if grid == "ray" else InProcess(members)
    try:
        yield crew
    finally:
        crew.close()


def _on_ray(members: Members, workers: int | None, threads: int) -> Crew:
    try:
        from simulations.ray_grid import OnRay  # an extra: only who asks for it needs it
    except ModuleNotFoundError as error:
        raise UsageError("Ray is not installed here: pip install 'wardround[ray]', or use --grid process") from error
    return OnRay(members, workers, threads)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
