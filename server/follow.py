"""Following a run from another process: what the registry says, as it comes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.records import RunDetail, RunSummary
from server.registry import Registry
from server.report import is_alive, round_cells, run_report

LOOK_SECONDS = 0.5
UNDER_WAY = ("queued", "running")


def follow(registry: Registry, name: str, console: Console) -> RunSummary:
    """Show a run until it ends, then its report; return how it ended.

    On a terminal a bar and a table that grow; elsewhere a line for each round. KeyboardInterrupt passes through: the
    run does not depend on who looks on.
    """
    shown = 0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            detail = registry.run_detail(name)
            if console.is_terminal:
                live.update(_picture(detail, is_alive(registry.coordinator())), refresh=True)
            else:
                for record in detail.rounds[shown:]:
                    console.print(_line(detail, round_cells(record)), soft_wrap=True, highlight=False)
                shown = len(detail.rounds)
            if detail.summary.status not in UNDER_WAY:
                break
            time.sleep(LOOK_SECONDS)
    console.print(run_report(detail))
    return detail.summary


def _picture(detail: RunDetail, alive: bool) -> Group:
    run, criterion = detail.summary, detail.job.aggregation.criterion
    table = Table("round", "sites", "loss", criterion, "epsilon", "s", "MB in", box=None)
    for record in detail.rounds[-12:]:
        table.add_row(*round_cells(record), style="red" if record.status == "no quorum" else "")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(Text(run.name, "bold"), ProgressBar(run.rounds, run.done, width=40), f"{run.done}/{run.rounds} rounds")
    parts: list[RenderableType] = [bar, table, Text(_now(run.progress) if run.status == "running" else run.status)]
    if not alive:
        parts.append(Text("the coordinator is not running: wardround coordinator start KIT", "yellow"))
    return Group(*parts)


def _now(progress: Mapping[str, Any] | None) -> str:
    if progress is None:
        return "starting"
    what = f"round {progress['number']}" if progress["kind"] == "train" else f"evaluating on {progress['kind']}"
    waiting = ", ".join(progress["waiting"]) or "nobody"
    return f"{what}: waiting for {waiting} ({time.time() - progress['since']:.0f} s)"


def _line(detail: RunDetail, cells: tuple[str, ...]) -> str:
    title, sites, loss, score, epsilon, seconds, megabytes = cells
    criterion = detail.job.aggregation.criterion
    return f"{title}: {sites} sites, loss {loss}, {criterion} {score}, epsilon {epsilon}, {seconds} s, {megabytes} MB"
