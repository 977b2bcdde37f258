"""`wardround audit privacy`: attacks a job's training. A thin skin over `simulations.attacks`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.errors import UsageError

if TYPE_CHECKING:
    from client.dataset import CaseSet
    from common.job import Job
    from simulations.attacks.suite import Options

HELP = "Attack a job's training, and hold what the attacks learn against the epsilon that it claims."
privacy = typer.Typer(add_completion=False, help=HELP)


class Attack(StrEnum):
    """What to try."""

    ONE_RUN = "one-run"
    MEMBERSHIP = "membership"
    INVERSION = "inversion"
    ALL = "all"


@privacy.command()
def _privacy(
    job: Annotated[Path, typer.Argument(help="The job's TOML file.")],
    kit: Annotated[Path | None, typer.Option(help="A site's kit: attack on its own collection, at the site.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder of images with labels.csv (default: phantoms).")] = None,
    attack: Annotated[Attack, typer.Option(help="What to try.")] = Attack.ONE_RUN,
    canaries: Annotated[int, typer.Option(min=20, max=100_000, help="Canaries of the one-run audit.")] = 500,
    models: Annotated[int, typer.Option(min=4, max=256, help="Shadow models of membership inference.")] = 8,
    rounds: Annotated[int | None, typer.Option(min=1, help="Train so many of the job's rounds (default: all).")] = None,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999999, help="With which all bounds of an attack hold together.")
    ] = 0.95,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    planted: Annotated[
        bool, typer.Option("--planted", help="Plant faults in the training, one by one: does the audit catch them?")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON (progress goes to standard error).")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --planted: print a Markdown table.")] = False,
) -> None:
    """Attack the training that a site would do for a job: the real code, with the job's own settings.

    Prints a lower bound on epsilon from what the attack guessed right, beside the upper bound that the job claims. A
    low bound proves nothing. A bound above the claim, or a meter's alarm, proves a fault: the exit code is then 1.
    Nothing leaves this machine and no privacy budget is spent: no model is released. What is printed of a site's own
    images is for the site.

    Example: wardround audit privacy job.toml
             wardround audit privacy job.toml --kit kits/sites/north --attack all
             wardround audit privacy job.toml --planted
    """
    from client.training import pick_device  # torch: only here
    from common.job import read_job
    from simulations.attacks.suite import Options, on_subjects

    if kit is not None and data is not None:
        raise UsageError("--kit and --data name two collections: give one of them")
    found, console = read_job(job), Console(stderr=as_json or markdown)
    options = Options(canaries, models, rounds, confidence, pick_device(device))
    results: dict[str, Any] = {"job": found.name, "digest": found.digest}
    faulty = False

    def use(cases: CaseSet) -> None:
        nonlocal faulty
        if planted:
            faulty = not _planted(cases, found, options, console, results, markdown=markdown)
        else:
            faulty = _attacks(cases, found, options, console, results, attack)

    on_subjects(found, kit, data, use)
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    if faulty:
        raise typer.Exit(1)


def _attacks(
    cases: CaseSet, job: Job, options: Options, console: Console, results: dict[str, Any], attack: Attack
) -> bool:
    """Run one attack or all; return whether a fault was proven."""
    wanted = {attack} if attack is not Attack.ALL else set(Attack) - {Attack.ALL}
    if attack is Attack.ALL and not job.private:
        wanted -= {Attack.ONE_RUN}
        console.print("The job claims no privacy: there is nothing for a one-run audit to refute.\n")
    faulty = False
    if Attack.ONE_RUN in wanted:
        faulty |= _one_run(cases, job, options, console, results)
    if Attack.MEMBERSHIP in wanted:
        faulty |= _membership(cases, job, options, console, results)
    if Attack.INVERSION in wanted:
        _inversion(cases, job, console, results)
    return faulty


def _one_run(cases: CaseSet, job: Job, options: Options, console: Console, results: dict[str, Any]) -> bool:
    from simulations.attacks import report
    from simulations.attacks.suite import one_run

    with console.status("training with canaries") as status:
        audit = one_run(cases, job, options, lambda line: status.update(f"training with canaries: {line}"))
    results["one_run"] = report.audit_data(audit)
    _print(console, "Lower bounds on epsilon, by method", report.BOUND_HEADING, report.bound_rows(audit))
    _print(console, "Meters", report.METER_HEADING, report.meter_rows(audit))
    console.print("\n".join(report.audit_lines(audit)) + "\n", markup=False, highlight=False)
    return audit.faulty


def _membership(cases: CaseSet, job: Job, options: Options, console: Console, results: dict[str, Any]) -> bool:
    from simulations.attacks import report
    from simulations.attacks.suite import membership

    with console.status("training shadow models") as status:
        found = membership(cases, job, options, lambda line: status.update(line))
    results["membership"] = [report.membership_data(each) for each in found]
    _print(console, "Membership inference", report.MEMBERSHIP_HEADING, [report.membership_row(each) for each in found])
    console.print("\n".join(report.membership_lines(found)) + "\n", markup=False, highlight=False)
    return any(each.refuted for each in found)


def _inversion(cases: CaseSet, job: Job, console: Console, results: dict[str, Any]) -> None:
    from simulations.attacks import report
    from simulations.attacks.suite import inversion

    with console.status("inverting updates"):
        found = inversion(cases, job)
    results["inversion"] = report.inversion_data(found)
    _print(console, "Gradient inversion", report.INVERSION_HEADING, report.inversion_rows(found))
    console.print("\n".join(report.inversion_lines(found)) + "\n", markup=False, highlight=False)


def _planted(
    cases: CaseSet, job: Job, options: Options, console: Console, results: dict[str, Any], *, markdown: bool
) -> bool:
    """Plant every fault; return whether all were caught and honest training was not flagged."""
    from simulations.attacks import report
    from simulations.attacks.suite import planted

    with console.status("planting faults") as status:
        found = planted(cases, job, options, lambda line: status.update(line))
    results["planted"] = [report.planted_data(each) for each in found]
    rows = [report.planted_row(each) for each in found]
    _print(console, "Planted faults", report.PLANTED_HEADING, rows)
    if markdown:
        typer.echo(report.markdown(report.PLANTED_HEADING, rows), nl=False)
    return all(each.audit.faulty == (each.fault is not None) for each in found)


def _print(console: Console, title: str, heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*heading, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
