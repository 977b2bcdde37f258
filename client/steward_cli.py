"""`wardround site budget|policy|jobs|approve|deny`: what a data steward decides, and sees of it."""

from __future__ import annotations

import dataclasses
import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.options import JsonOption, KitOption
from common.errors import UsageError
from common.kit import find_kit

if TYPE_CHECKING:
    from client.approvals import AskedJob
    from client.budget import Budget

BAR = 30
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The start of the job's digest, or its name.")]
ByOption = Annotated[str | None, typer.Option(help="Who decides (default: the name that you are logged in with).")]


def budget(
    kit: KitOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the budgets over time: an .svg, .png or .pdf file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show, by collection, what every run has spent of its privacy budget, what all have, and what still fits.

    Example: wardround site budget --kit kits/sites/north --plot budget.svg
    """
    from client.budget import budgets
    from client.catalog import CATALOG_FILE, Catalog
    from client.policy import read_policy
    from client.privacy.ledger import LEDGER_FILE, Ledger
    from client.record import site_log

    folder = find_kit(kit, "site").folder
    ledger = Ledger(folder / LEDGER_FILE, site_log(folder))
    found = budgets(ledger, read_policy(folder).max_epsilon_for_life, Catalog(folder / CATALOG_FILE).sharing)
    if plot is not None:
        from client.budget_plot import draw

        draw(found, plot)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return
    if not found:
        typer.echo("Nothing has been spent yet.")
    for one in found:
        _print_budget(one)


def policy(
    kit: KitOption = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value (repeatable).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this hospital allows a job to do, with each line's meaning; with --set, change it.

    Example: wardround site policy --set 'collections=["chest-xray"]' --set max_epsilon_per_run=4

    A change is checked as a whole before it is written, takes effect with the next message, and is in the audit log.
    """
    from client.policy import FILE_NAME, Policy, change_policy, read_policy
    from client.record import note_policy, site_log
    from common.files import read_text, write_atomically

    folder = find_kit(kit, "site").folder
    current, path = read_policy(folder), folder / FILE_NAME
    log = site_log(folder)
    note_policy(log, folder)  # what was in force before the change, if nobody has seen it yet
    if change:
        write_atomically(path, change_policy(read_text(path), _pairs(change), str(path)).encode())
        note_policy(log, folder)
        current = read_policy(folder)
    if as_json:
        typer.echo(current.model_dump_json(indent=2))
        return
    since = log.newest("policy")
    table = Table("key", "value", "meaning", box=None, pad_edge=False)
    for name, field in Policy.model_fields.items():
        value = getattr(current, name)
        table.add_row(name, json.dumps(value, default=list), field.description or "")
    Console().print(table)
    if since is not None:
        when = since.at[:19].replace("T", " ")
        typer.echo(f"In force as it is since {when} UTC (entry {since.sequence} of the audit log).")


def jobs(kit: KitOption = None, as_json: JsonOption = False) -> None:
    """List the jobs that this site was asked to take part in: what each would do and cost, and what was decided.

    Example: wardround site jobs
    """
    from client.approvals import asked_jobs
    from client.record import site_log

    found = asked_jobs(site_log(find_kit(kit, "site").folder))
    if as_json:
        entries = [
            {"digest": one.job.digest, "state": one.state, "asked": one.asked, "job": one.job.model_dump(mode="json")}
            | ({"decision": dataclasses.asdict(one.decision)} if one.decision else {})
            for one in found
        ]
        typer.echo(json.dumps(entries, indent=2))
        return
    if not found:
        typer.echo('No job waits for a person here (a policy with approval = "each-job" makes them wait).')
    for one in found:
        _print_job(one)


def approve(
    job: JobArgument,
    by: ByOption = None,
    note: Annotated[str, typer.Option(help="A remark for the audit log.")] = "",
    kit: KitOption = None,
) -> None:
    """Let a job run at this site. It may be taken back at any time: wardround site deny.

    Example: wardround site approve 3f2a91c0 --by "Dr. Ada Byron"
    """
    _decide(kit, job, approved=True, by=by, note=note)


def deny(
    job: JobArgument,
    why: Annotated[str, typer.Option(help="The reason; the coordinator is told it.")] = "",
    by: ByOption = None,
    kit: KitOption = None,
) -> None:
    """Refuse a job, or take an approval back: from the next message on.

    Example: wardround site deny 3f2a91c0 --why "the ethics vote is missing"
    """
    _decide(kit, job, approved=False, by=by, note=why)


def _decide(kit: Path | None, prefix: str, *, approved: bool, by: str | None, note: str) -> None:
    from client.approvals import decide, find_asked
    from client.record import site_log

    log = site_log(find_kit(kit, "site").folder)
    found = find_asked(log, prefix)
    who = by or getpass.getuser()
    decide(log, found.job, "approved" if approved else "denied", by=who, note=note)
    typer.echo(
        f"{found.job.name} ({found.job.digest[:12]}) is {'approved' if approved else 'denied'} by {who}; "
        "it takes effect with the coordinator's next message."
    )


def _pairs(texts: list[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise UsageError(f"--set {text}: write KEY=VALUE, as in --set min_patients=50")
    return {name.strip(): value.strip() for name, value in (text.split("=", 1) for text in texts)}


def _print_budget(one: Budget) -> None:
    console = Console()
    filled = min(BAR, round(BAR * one.spent / one.limit))
    console.print(f"[bold]{one.collection}[/bold], {one.split} split (delta {one.delta:g})", highlight=False)
    console.print(
        f"  {'█' * filled}{'░' * (BAR - filled)}  epsilon {one.spent:.2f} of {one.limit:g} for life; "
        + (f"one more run of up to {one.fits:.2f} fits" if one.fits > 0 else "no further run fits"),
        highlight=False,
        soft_wrap=True,
    )
    if one.sharing:
        console.print(f"  with {', '.join(one.sharing)}, which have patients of it", highlight=False, soft_wrap=True)
    table = Table("run", "since (UTC)", "unit", "rounds", "epsilon", box=None, padding=(0, 2))
    for run in one.runs:
        table.add_row(run.run, run.since[:16].replace("T", " "), run.unit, str(run.rounds or ""), f"{run.epsilon:.2f}")
    console.print(table)


def _print_job(one: AskedJob) -> None:
    from client.summary import in_plain_words

    console = Console()
    colour = {"waiting": "yellow", "approved": "green", "denied": "red"}[one.state]
    console.print(
        f"[bold]{one.job.name}[/bold] {one.job.digest[:12]}  [{colour}]{one.state}[/{colour}]", highlight=False
    )
    for line in in_plain_words(one.job):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if one.decision:
        note = f": {one.decision.note}" if one.decision.note else ""
        when = one.decision.at[:16].replace("T", " ")
        console.print(f"  {one.decision.verdict} by {one.decision.by}, {when} UTC{note}", highlight=False)
    else:
        console.print(f"  -> wardround site approve {one.job.digest[:12]}   or   deny", highlight=False)
