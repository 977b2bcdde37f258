"""Following a run from another process: what the registry says, as it comes."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.records import CoordinatorSeen, RoundRecord, RunDetail, RunSummary
from server.report import absences, is_alive, now, round_cells, run_report, undecided

LOOK_SECONDS = 0.5
UNDER_WAY = ("queued", "running")
NOT_RUNNING = "the coordinator is not running: wardround coordinator start KIT"
CUT_OFF = "if this run was under way, then go on with it: wardround run --resume"


class Records(Protocol):
    """Where a run is read: the registry, or the API of a coordinator elsewhere."""

    def run_detail(self, name: str) -> RunDetail:
        """Return everything that is kept of a run."""
        ...

    def coordinator(self) -> CoordinatorSeen | None:
        """Return the coordinator's last sign of life."""
        ...


def follow(registry: Records, name: str, console: Console) -> RunSummary:
    """Show a run until it ends, then its report; return how it ended.

    On a terminal a bar and a table that grow; elsewhere a line for each round. KeyboardInterrupt passes through: the
    run does not depend on who looks on.
    """
    shown, was_alive, told = 0, is_alive(registry.coordinator()), set[str]()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            detail, alive = registry.run_detail(name), is_alive(registry.coordinator())
            if console.is_terminal:
                live.update(_picture(detail, alive), refresh=True)
            else:
                for record in detail.rounds[shown:]:
                    console.print(_line(detail, record), soft_wrap=True, highlight=False, markup=False)
                if was_alive and not alive:
                    console.print(f"{NOT_RUNNING}; {CUT_OFF} {name}", soft_wrap=True, highlight=False, markup=False)
                for site in undecided(detail.summary.progress):
                    if site not in told:
                        console.print(f"waiting for {site}: a person must decide there, or its hours", highlight=False)
                        told.add(site)
                shown, was_alive = len(detail.rounds), alive
            if detail.summary.status not in UNDER_WAY:
                break
            time.sleep(LOOK_SECONDS)
    console.print(run_report(detail), crop=False)
    return detail.summary


def _picture(detail: RunDetail, alive: bool) -> Group:
    run, criterion = detail.summary, detail.job.aggregation.criterion
    table = Table("round", "sites", "loss", criterion, "epsilon", "s", "MB in", box=None)
    for record in detail.rounds[-12:]:
        table.add_row(*round_cells(record), style="red" if record.status == "no quorum" else "")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(Text(run.name, "bold"), ProgressBar(run.rounds, run.done, width=40), f"{run.done}/{run.rounds} rounds")
    parts: list[RenderableType] = [bar, table, Text(now(run.progress) if run.status == "running" else run.status)]
    if not alive:
        parts.append(Text(NOT_RUNNING, "yellow"))
        if run.status == "running":
            parts.append(Text(f"{CUT_OFF} {run.name}", "yellow"))
    return Group(*parts)


def _line(detail: RunDetail, record: RoundRecord) -> str:
    title, sites, loss, score, epsilon, seconds, megabytes = round_cells(record)
    numbers = (("loss", loss), (detail.job.aggregation.criterion, score), ("epsilon", epsilon))
    known = "".join(f"{name} {value}, " for name, value in numbers if value != "-")
    why = "".join(f"; {line}" for line in absences(record).splitlines())
    return f"{title}: {sites} sites, {known}{seconds} s, {megabytes} MB{why}"
