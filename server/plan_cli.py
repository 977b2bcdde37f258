"""`wardround plan`: what a job's privacy would cost, before anything is sent."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import UsageError
from common.job import Job, read_job
from common.kit import find_kit

if TYPE_CHECKING:
    from common.plan import PrivacyPlan, SitePlan


app = typer.Typer(add_completion=False)


@app.command()
def plan(
    job: Annotated[Path, typer.Argument(help="The job's TOML file.")],
    patients: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE=N", help="Training patients (or images, as the job's unit is) at a site."),
    ] = None,
    left: Annotated[
        list[str] | None, typer.Option(metavar="SITE=EPSILON", help="Epsilon that a site still allows one run.")
    ] = None,
    kit: Annotated[
        Path | None, typer.Option("--kit", help="The coordinator's kit: counts come from earlier runs there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Tell what a job's privacy would cost: the noise at each site, epsilon over the rounds, the signal that is left.

    Example: wardround plan job.toml --patients north=1200 --patients south=400

    Nothing is sent and nothing is spent. Where a site's count is not given it is taken from earlier runs (--kit), else
    guessed, and the plan says so. Exit code 5 when the job can't fit what a site has left.
    """
    from server.planning import counts_of_earlier_runs, plan_job
    from server.registry import open_registry

    found = read_job(job)
    known = counts_of_earlier_runs(open_registry(find_kit(kit, "coordinator")), found) if kit is not None else {}
    known |= {site: int(value) for site, value in _pairs(patients, found, "--patients").items()}
    result = plan_job(found, known, _pairs(left, found, "--left"))
    if as_json:
        fields = dataclasses.asdict(result) | {"job": found.digest, "fits": result.fits}
        typer.echo(json.dumps(fields, indent=2))
    else:
        _print(result)
    if not result.fits:
        raise typer.Exit(5)


def _pairs(texts: list[str] | None, job: Job, option: str) -> dict[str, float]:
    found = {}
    for text in texts or ():
        site, _, number = text.partition("=")
        if site not in job.sites:
            raise UsageError(f'{option} {text}: the job has no site "{site}": it names {", ".join(job.sites)}')
        try:
            found[site] = float(number)
        except ValueError as error:
            raise UsageError(f"{option} {text}: write SITE=NUMBER") from error
        if not math.isfinite(found[site]):
            raise UsageError(f"{option} {text}: that is no number")
        if found[site] < (1 if option == "--patients" else 0):
            raise UsageError(f"{option} {text}: the number is too small")
    return found


def _print(result: PrivacyPlan) -> None:
    console, job = Console(), result.job
    console.print(
        f"[bold]{job.name}[/bold]: {result.parameters:,} parameters, {job.aggregation.rounds} rounds, unit: "
        f"{job.privacy.unit}",
        highlight=False,
    )
    if result.sites:
        table = Table("site", f"{job.privacy.unit}s", "rate", "steps", "noise", "epsilon", "noise share", box=None)
        for site in result.sites:
            table.add_row(*_row(site))
        console.print(table)
        curve = _curve(result.sites[0])
        console.print(f"delta {job.privacy.delta:g}; epsilon over the rounds, at {result.sites[0].site}: {curve}")
        console.print(f"All sites together: noise share {result.noise_share:.2f}, {result.verdict}", soft_wrap=True)
        if any(site.guessed for site in result.sites):
            console.print("* guessed: tell with --patients SITE=N, or --kit for what earlier runs know")
    elif result.noise_share:
        console.print(f"noise share {result.noise_share:.2f}, {result.verdict}", soft_wrap=True)
    for warning in result.warnings:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False, soft_wrap=True)
    for site in result.sites:
        if site.refusal:
            console.print(f"[red]{site.site} would refuse[/red]: {site.refusal}", highlight=False, soft_wrap=True)


def _row(site: SitePlan) -> tuple[str, ...]:
    return (
        site.site,
        f"{site.units:,}{'*' if site.guessed else ''}",
        f"{site.sample_rate:.3g}",
        f"{site.steps:,}",
        f"{site.noise_multiplier:.2f}",
        f"{site.epsilon:.2f}",
        f"{site.noise_share:.2f}",
    )


def _curve(site: SitePlan) -> str:
    chosen = site.curve[:: max(1, len(site.curve) // 5)]
    points = dict.fromkeys([*chosen, *site.curve[-1:]])
    return ", ".join(f"{epsilon:.2f} after {number}" for number, epsilon in points)
