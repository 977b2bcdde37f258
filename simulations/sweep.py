"""Carries a scenario out: what is missing is run, kept as it is done, and never run again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import UsageError
from simulations.arms import Cell, expand
from simulations.comparison import Line
from simulations.results import RUNS, Result, Store
from simulations.scenario import ScenarioFile
from simulations.simulation_report import write_results
from simulations.sources import CATALOGS
from simulations.trial import Outcome, Preparation, Ready, Settings, run


@dataclass(frozen=True)
class Swept:
    """What there is after a sweep: results in the scenario's order, lines of the summary, and how many runs there are.

    `ran` counts those of this time; `interrupted`: somebody stopped it, and the rest is missing.
    """

    results: tuple[Result, ...]
    lines: tuple[Line, ...]
    runs: int
    ran: int
    interrupted: bool
    folder: Path

    @property
    def failed(self) -> int:
        """How many runs failed."""
        return sum(not result.completed for result in self.results)


def sweep(file: ScenarioFile, out: Path, settings: Settings, console: Console, only: Sequence[str] = ()) -> Swept:
    """Run what is missing of a scenario (of the arms `only`, if named), then write tables, figures and report.

    Everything is checked before anything is trained. Ctrl-C ends it; what is done stays, and is reported.

    Raises
    ------
    UsageError, DataError
        The scenario is wrong, or data are missing.
    """
    name = file.scenario.name
    if name in (RUNS, CATALOGS):
        raise UsageError(f'{file.where("name")}: a scenario can\'t be called "{name}": that folder is for other things')
    wanted = {cell.title for cell in expand(file, only)}
    store = Store(out)
    with store.alone():
        return _sweep(file, store, wanted, settings, console)


def _sweep(file: ScenarioFile, store: Store, wanted: set[str], settings: Settings, console: Console) -> Swept:
    preparation = Preparation(file, store.folder)
    with console.status("reading data and checking every run"):
        planned = [_planned(preparation, cell) for cell in expand(file)]
    done = {digest: found for _, digest, _ in planned if (found := store.find(digest)) is not None}
    missing = _once([one for one in planned if one[1] not in done and one[0].title in wanted])
    ran, interrupted = 0, False
    try:
        with _Bars(console, missing, settings) as bars:
            for cell, digest, _ in missing:
                ready = preparation.ready(cell)
                done[digest] = _run(ready, bars, store)
                ran += 1
    except KeyboardInterrupt:
        interrupted = True
    results = tuple(Result(cell, digest, done[digest]) for cell, digest, _ in planned if digest in done)
    folder = store.folder / file.scenario.name
    lines = write_results(folder, file, results) if results else []
    return Swept(results, tuple(lines), len(planned), ran, interrupted, folder)


Planned = tuple[Cell, str, int]
"""A run: what it is, its digest, its rounds."""


def _planned(preparation: Preparation, cell: Cell) -> Planned:
    ready = preparation.ready(cell)
    return cell, ready.digest, ready.rounds


def _once(planned: Sequence[Planned]) -> list[Planned]:
    """Two arms may come to the same run, as a grid's values do that one of them has no use for."""
    return list({digest: (cell, digest, rounds) for cell, digest, rounds in reversed(planned)}.values())[::-1]


def _run(ready: Ready, bars: _Bars, store: Store) -> Outcome:
    with bars.of(ready) as settings:
        outcome = run(ready, settings, store.place(ready.digest))
    store.keep(ready.cell, ready.digest, outcome)
    bars.done(ready, outcome)
    return replace(outcome, model={})  # it is on disk


class _Bars:
    """Bars of all rounds that are missing and of the run at work, or, off a terminal, a line for each run."""

    def __init__(self, console: Console, missing: Sequence[Planned], settings: Settings) -> None:
        self._settings, self._console, self._count, self._finished = settings, console, len(missing), 0
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._all = self._progress.add_task(self._title, total=sum(rounds for *_, rounds in missing))

    @property
    def _title(self) -> str:
        return f"run {min(self._finished + 1, self._count)} of {self._count}"

    def __enter__(self) -> _Bars:
        self._level = logging.getLogger("wardround").level
        logging.getLogger("wardround").setLevel(logging.ERROR)  # faults are what a scenario is for
        if self._count:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        logging.getLogger("wardround").setLevel(self._level)

    @contextmanager
    def of(self, ready: Ready) -> Iterator[Settings]:
        """Show a run; give the settings whose rounds move the bars."""
        mine = self._progress.add_task(f"{ready.cell.title}, seed {ready.cell.seed}", total=ready.rounds)

        def tell(record: object) -> None:
            if getattr(record, "kind", "") == "train" and getattr(record, "status", "") == "aggregated":
                self._progress.advance(mine)
                self._progress.advance(self._all)

        yield replace(self._settings, tell=tell)
        # A run that failed, or went on from a checkpoint, has told of fewer rounds than it had.
        told = self._progress.tasks[self._progress.task_ids.index(mine)].completed
        self._progress.advance(self._all, ready.rounds - told)
        self._progress.remove_task(mine)

    def done(self, ready: Ready, outcome: Outcome) -> None:
        """Say what a run came to."""
        self._finished += 1
        self._progress.update(self._all, description=self._title)
        judge = ready.cell.judge
        value = next((row.value for row in outcome.rows if row.final and (row.scope, row.metric) == (judge.scope, judge.metric)), None)  # fmt: skip  # noqa: E501
        said = f"failed: {outcome.reason}" if value is None else f"{judge.scope} {judge.metric} {value:.4f}"
        seed, seconds = ready.cell.seed, outcome.seconds
        line = f"{self._finished}/{self._count} {ready.cell.title}, seed {seed}: {said}, {seconds:.1f} s"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
