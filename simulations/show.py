"""What the demo shows: rounds as the registry has them, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from server.criterion import evaluated_cases
from server.records import RoundRecord, RunSummary, weighted_mean
from server.registry import Registry

if TYPE_CHECKING:
    from simulations.demo import DemoResult, SiteResult

LOOK_SECONDS = 0.25
UNDER_WAY = ("queued", "running")
BAR_CELLS = 12


def show_rounds(registry: Registry, run: str, console: Console, check: Callable[[], None]) -> RunSummary:
    """Show each round of `run` as it is committed; return how the run ended. `check` raises when a process has died."""
    shown = 0
    with _progress(console) as progress:
        task = progress.add_task("training", total=None)
        while True:
            check()
            detail = registry.run_detail(run)
            waiting = ", ".join((detail.summary.progress or {}).get("waiting", ()))
            progress.update(
                task, total=detail.summary.rounds, completed=detail.summary.done,
                description=f"training at {waiting}" if waiting else "training",
            )  # fmt: skip
            # A model is evaluated at the start of the next exchange: its line needs both records.
            rounds = [record for record in detail.rounds if record.kind != "consent"]
            pairs = list(zip((None, *rounds), rounds, strict=False))
            for before, record in pairs[shown:]:
                if line := _line(before, record, detail.summary.rounds):
                    progress.console.print(line, highlight=False)
            shown = len(pairs)
            if detail.summary.status not in UNDER_WAY:
                return detail.summary
            time.sleep(LOOK_SECONDS)


def _progress(console: Console) -> Progress:
    text = TextColumn("{task.description}")
    return Progress(
        SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True
    )


def _line(before: RoundRecord | None, record: RoundRecord, rounds: int) -> str:
    """One model: how it came to be (the round `before`), and how good the next exchange found it."""
    if record.kind == "test":
        return ""
    loss, score = _mean(record, "eval.loss"), record.score
    quality = f"loss {_number(loss)}  AUC {_number(score)} {_bar(score)}"
    if before is None:
        return f"  {'at first':<11}  {quality}"
    if before.status == "no quorum":
        return f"  [red]round {before.number}: {before.reason}[/]"
    epsilon = max((site.metrics.get("privacy.epsilon", 0.0) for site in before.sites), default=0.0)
    megabytes = sum(site.sent + site.received for site in before.sites) / 1e6
    spent = f"epsilon {epsilon:4.2f}  " if epsilon else ""
    title = f"round {before.number}/{rounds}"
    return f"  {title:<11}  {quality}  {spent}{before.seconds:4.1f} s  {megabytes:.1f} MB"


def _mean(record: RoundRecord, metric: str) -> float | None:
    return weighted_mean((site.metrics.get(metric), evaluated_cases(site.metrics)) for site in record.sites)


def _bar(score: float | None) -> str:
    """AUC from 0.5 (a guess) to 1 as a bar."""
    cells = round(BAR_CELLS * min(1.0, max(0.0, (score or 0.0) * 2 - 1)))
    return f"[green]{'█' * cells}[/][dim]{'░' * (BAR_CELLS - cells)}[/]"


def show_table(result: DemoResult, console: Console, *, kept: bool) -> None:
    """Show what came out, and how to look further."""
    console.print(_table(result))
    noise = ", without noise" if result.private else ""
    console.print("[dim]AUC on each hospital's own test patients (95 % interval). Own model: trained\n"
                  f"there on its own images alone, as many passes{noise}; it stays there.[/]",
                  highlight=False)  # fmt: skip
    for warning in result.warnings:
        console.print(f"[yellow]! {warning}[/]", highlight=False)
    console.print(f"Run [bold]{result.run}[/] {result.status} in {result.seconds:.0f} s; the model: {result.model}",
                  highlight=False, soft_wrap=True)  # fmt: skip
    console.print("Look further:", highlight=False)
    for line in further(result, kept=kept):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def further(result: DemoResult, *, kept: bool) -> list[str]:
    """Return the commands that show more of what the demo made."""
    kits = result.folder / "kits"
    first = next(iter(result.sites))
    lines = [
        f"wardround runs show {result.run} --kit {kits / 'coordinator'}",
        f"wardround site releases --kit {kits / 'sites' / first}",
    ]
    if not kept:
        return [*lines, f"rm -r {result.folder}    # when done; --keep FOLDER keeps the images too, to train again"]
    return [
        *lines,
        f"wardround coordinator start {kits / 'coordinator'}",
        *(f"wardround site start {kits / 'sites' / site}" for site in result.sites),
        f"wardround run {result.folder / 'job.toml'} --kit {kits / 'coordinator'} --follow",
    ]


def _table(result: DemoResult) -> Table:
    table = Table("hospital", "patients", "own model", "common model", box=SIMPLE)
    if result.private:
        table.add_column("epsilon")
    for name, site in result.sites.items():
        spent = [f"{site.epsilon:.2f}" if site.epsilon is not None else "-"] if result.private else []
        table.add_row(name, f"{site.patients:,}", _interval(site.own), _interval(site.common), *spent)
    sites = list(result.sites.values())
    table.add_section()
    table.add_row("mean", "", _number(_mean_auc(sites, "own")), _number(_mean_auc(sites, "common")), style="bold")
    return table


def _mean_auc(sites: list[SiteResult], which: str) -> float | None:
    values = [metrics["auc"] for site in sites if "auc" in (metrics := site.own if which == "own" else site.common)]
    return fmean(values) if values else None


def _interval(metrics: dict[str, float]) -> str:
    if "auc_low" not in metrics:
        return _number(metrics.get("auc"))
    return f"{metrics['auc']:.3f} ({metrics['auc_low']:.3f}-{metrics['auc_high']:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
