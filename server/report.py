"""Runs and sites as tables for people and as plain data for scripts. Bad news is shown as such."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from common.statistics import counts_only
from common.trust import who_is_trusted
from server.records import (
    CoordinatorSeen,
    ModelFile,
    RoundRecord,
    RunDetail,
    RunSummary,
    SiteRound,
    SiteSeen,
    SiteStatus,
)

COLOURS = {
    "completed": "green",
    "incomplete": "bold yellow",
    "failed": "bold red",
    "interrupted": "yellow",
    "stopped": "yellow",
    "running": "cyan",
    "queued": "blue",
}
TOOK_PART: tuple[SiteStatus, ...] = ("agreed", "aggregated", "trained", "evaluated")
HEARTBEAT_SECONDS = 15.0
"""Without a sign of life for this long, the coordinator is taken to be gone."""


def is_alive(coordinator: CoordinatorSeen | None) -> bool:
    """Whether the coordinator has shown itself of late."""
    return coordinator is not None and time.time() - coordinator.heartbeat < HEARTBEAT_SECONDS


def runs_table(runs: Sequence[RunSummary]) -> Group:
    """Return all runs, a line each that fits 80 columns, then why some did not end well."""
    table = Table("run", "status", "rounds", "started (UTC)", "min", box=None)
    for column in table.columns:
        column.no_wrap = True  # a name that is cut can't be copied into the next command
    for run in runs:
        table.add_row(run.name, _status(run), f"{run.done}/{run.rounds}", moment(run.started)[:16], _minutes(run))
    reasons = [Text(f"{run.name}: {run.reason}", COLOURS.get(run.status, "")) for run in runs if run.reason]
    return Group(table, *reasons)


def run_report(detail: RunDetail) -> Group:
    """Return a run in full: rounds, sites, warnings, models."""
    run = detail.summary
    head = Text.assemble(
        (run.name, "bold"),
        "  ",
        _status(run),
        f"  {run.done} of {run.rounds} rounds\n",
        f"started {moment(run.started)} UTC  {_minutes(run)} min  code {run.code_version}\n",
        f"job {run.digest}\n",
        who_is_trusted(detail.job),
    )
    parts: list[RenderableType] = [head]
    if run.reason:
        parts.append(Text(run.reason, style=COLOURS.get(run.status, "")))
    if run.status == "running":
        parts.append(Text(now(run.progress), COLOURS["running"]))
    parts += [_rounds_table(detail), _sites_table(detail), *(Text(f"! {text}", "yellow") for text in detail.warnings)]
    if not counts_only(detail.job):
        parts += [_model_line(model, detail.job.aggregation.criterion) for model in detail.models]
    return Group(*parts)


def now(progress: Mapping[str, Any] | None) -> str:
    """Return what a running run does at this moment, and for which sites it waits."""
    if progress is None:
        return "starting"
    what = {
        "train": f"round {progress['number']}",
        "consent": "asking whether the job may run",
        "statistics": "asking for statistics",
    }.get(progress["kind"], f"evaluating on {progress['kind']}")
    people = [f"{site} (a person, or its hours)" for site in undecided(progress)]
    waiting = ", ".join([*progress["waiting"], *people]) or "nobody"
    return f"{what}: waiting for {waiting} ({time.time() - progress['since']:.0f} s)"


def undecided(progress: Mapping[str, Any] | None) -> list[str]:
    """Return the sites that said "waiting" in the exchange under way."""
    return [site for site, status in (progress or {}).get("done", {}).items() if status == "waiting"]


def run_data(detail: RunDetail) -> dict[str, Any]:
    """Return a run in full as plain data, for JSON. Times are seconds since 1970 UTC."""
    return {
        **asdict(detail.summary),
        "job": detail.job.model_dump(mode="json"),
        "trust": who_is_trusted(detail.job),
        "examples": dict(detail.examples),
        "rounds": [asdict(record) | {"loss": record.loss} for record in detail.rounds],
        "models": [asdict(model) for model in detail.models],
        "warnings": list(detail.warnings),
    }


def round_cells(record: RoundRecord) -> tuple[str, ...]:
    """Return a round's numbers: title, sites that counted, loss, score, epsilon, seconds, megabytes received."""
    counted = record.named(*TOOK_PART)
    return (
        record.title,
        f"{len(counted)}/{len(record.sites)}",
        number(record.loss),
        number(record.score),
        number(epsilon_of_round(record)),
        f"{record.seconds:.1f}",
        f"{sum(site.received for site in record.sites) / 1e6:.1f}",
    )


def epsilon_of_round(record: RoundRecord) -> float | None:
    """Return the epsilon that this run has spent so far: the coordinator's own, or the largest that a site reports."""
    if record.central is not None:
        return record.central.epsilon
    spent = [site.metrics["privacy.epsilon"] for site in record.sites if "privacy.epsilon" in site.metrics]
    return max(spent, default=None)


def sites_table(sites: Sequence[SiteSeen], alive: bool) -> Table:
    """Return the federation's sites: here or not (as far as a coordinator that runs can tell), certificates' ends."""
    table = Table("site", "online", "last seen (UTC)", "certificate ends (UTC)", box=None)
    for site in sites:
        online = ("[green]yes[/]" if site.online else "[red]no[/]") if alive else "?"
        table.add_row(site.name, online, moment(site.last_seen), _ending(site.certificate_ends))
    return table


def moment(seconds: float | None) -> str:
    """Return a time for people, in UTC."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def number(value: float | None) -> str:
    """Return a number for people, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def _rounds_table(detail: RunDetail) -> Table:
    criterion = detail.job.aggregation.criterion
    heads = ("round", "sites", "loss", criterion, "epsilon", "s", "MB in", "took part", "did not, and why")
    table = Table(*heads, box=None)
    for record in detail.rounds:
        took_part = ", ".join(record.named(*TOOK_PART))
        style = "red" if record.status == "no quorum" else ("yellow" if record.warnings else "")
        table.add_row(*round_cells(record), took_part, absences(record), style=style)
    if any(record.kind == "train" for record in detail.rounds):
        table.caption = f"{criterion} of a round: of the model that came into it, on the sites' validation data"
    return table


def absences(record: RoundRecord) -> str:
    """Return why a round failed and which sites took no part and why, a line each."""
    lines = [] if record.status != "no quorum" else [record.reason]
    for site in record.sites:
        if site.status not in TOOK_PART:
            lines.append(f"{site.site} {site.status}: {site.reason}")
    return "\n".join(lines)


def _sites_table(detail: RunDetail) -> Table:
    table = Table("site", "cases", "rounds", "epsilon", "delta", f"test {detail.job.aggregation.criterion}", box=None)
    tested = {site.site: site for record in detail.rounds if record.kind == "test" for site in record.sites}
    for name, examples in detail.examples.items():
        rows = [s for r in detail.rounds if r.kind == "train" for s in r.sites if s.site == name]
        last = next((row.metrics for row in reversed(rows) if "privacy.epsilon" in row.metrics), {})
        table.add_row(
            name,
            "?" if examples is None else f"{examples:,}",
            f"{sum(row.status == 'aggregated' for row in rows)}/{detail.summary.done}",
            number(last.get("privacy.epsilon")),
            f"{last['privacy.delta']:g}" if "privacy.delta" in last else "-",
            _with_interval(tested.get(name), detail.job.aggregation.criterion),
        )
    return table


def _with_interval(site: SiteRound | None, metric: str) -> str:
    metrics = site.metrics if site is not None else {}
    low, high = metrics.get(f"eval.{metric}_low"), metrics.get(f"eval.{metric}_high")
    interval = f" ({number(low)} to {number(high)})" if low is not None and high is not None else ""
    return number(metrics.get(f"eval.{metric}")) + interval


def _model_line(model: ModelFile, criterion: str) -> Text:
    score = f", validation {criterion} {number(model.score)}" if model.score is not None else ""
    return Text.assemble(
        (f"{model.kind:>4}", "bold"),
        f" model: after round {model.round}{score}\n     {model.path}\n",
        f"     sha256 {model.sha256}",
        no_wrap=True,  # with overflow ignored, a long path stays whole and can be copied
        overflow="ignore",
    )


def _status(run: RunSummary) -> Text:
    bad = run.status in ("failed", "incomplete")
    return Text(run.status.upper() if bad else run.status, COLOURS.get(run.status, ""))


def _minutes(run: RunSummary) -> str:
    if run.started is None:
        return "-"
    return f"{((run.finished or time.time()) - run.started) / 60:.1f}"


def _ending(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    days = (seconds - time.time()) / 86400
    if days < 0:
        return f"[red]{moment(seconds)[:10]} (ended)[/]"
    return f"[yellow]{moment(seconds)[:10]} (in {days:.0f} days)[/]" if days < 31 else moment(seconds)[:10]
