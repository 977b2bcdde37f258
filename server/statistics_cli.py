"""`wardround statistics`: ask the sites for counts of their patients, and show how they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from common.errors import UsageError
from common.kit import find_kit
from server.cli import JsonOption, KitOption
from server.remote_cli import CaOption, ServerOption, Where

if TYPE_CHECKING:
    from common.job import Job
    from server.registry import Registry
    from server.remote import Remote

app = typer.Typer(add_completion=False)


@app.command()
def statistics(
    what: Annotated[
        str,
        typer.Argument(
            metavar="JOB|RUN|COLLECTION", help="A job's TOML file, an earlier run, or (--label) a collection."
        ),
    ],
    epsilon: Annotated[float, typer.Option(help="What the statistics may spend of each site's budget.")] = 1.0,
    delta: Annotated[float | None, typer.Option(help="The delta of it (default: the job's, else 1e-5).")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Ask for exact counts, which only sites that declare counts public give.")
    ] = False,
    label: Annotated[
        list[str] | None, typer.Option(help="With a collection: a label to count (repeatable, two or more).")
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="With a collection: a site to ask (repeatable; default: all admitted).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a page with figures, Markdown and JSON to this folder.")
    ] = None,
    kit: KitOption = None,
    server: ServerOption = None,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count patients at the sites by label, scanner, age, intensity ..., and warn where sites differ. No image moves.

    A site answers within its policy, which must allow the task "statistics"; with noise, paid for from the budget that
    trainings on the collection have, too. Of a run that was made before, the result is shown again, and nothing spent.

    Example: wardround statistics job.toml --epsilon 1 --kit kits/coordinator
             wardround statistics chest-xray --label normal --label pneumonia --out statistics
    """
    from server.statistics_report import as_data, for_terminal, statistics_of_run, write_folder

    where = Where(kit, server, ca)
    records = where.records()
    job = _job(what, None if exact else epsilon, delta, label, site, where)
    name = records.find(what) if job is None else _ask(job, records, where)
    found = statistics_of_run(records.run_detail(name))
    if out is not None:
        typer.echo(f"written: {write_folder(found, out)}", err=True)
    if as_json:
        typer.echo(json.dumps(as_data(found), indent=2))
    else:
        Console().print(for_terminal(found), crop=False)


def _job(
    what: str,
    epsilon: float | None,
    delta: float | None,
    labels: list[str] | None,
    sites: list[str] | None,
    where: Where,
) -> Job | None:
    """The job for what is named; None for a run. Raises JobError for a job file at fault, or UsageError."""
    from pydantic import ValidationError

    from common.job import read_job
    from common.statistics import counts_only, statistics_job, statistics_of

    if what.endswith(".toml") or Path(what).is_file():
        job = read_job(Path(what))
        return job if counts_only(job) else statistics_of(job, epsilon=epsilon, delta=delta)
    if not labels:
        return None
    names = tuple(sites or _admitted(where))
    try:
        return statistics_job(
            f"{what[:50]}-statistics",
            names,
            what,
            tuple(labels),
            epsilon=epsilon,
            delta=1e-5 if delta is None else delta,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}") from error


def _admitted(where: Where) -> list[str]:
    """The names of the sites that may connect."""
    if (far := where.elsewhere()) is not None:
        return [seen.name for seen in far.list_sites()]
    from certs.roster import read_roster

    admitted = read_roster(find_kit(where.kit, "coordinator").folder / "roster")
    return [name for name, one in admitted.items() if not one.expired]


def _ask(job: Job, records: Registry | Remote, where: Where) -> str:
    """Ask for the run and wait for its end; return its name."""
    from common.job_file import job_toml
    from server.execution import raise_unless_completed
    from server.follow import follow
    from server.registry import Registry
    from server.submission import submit_job

    if isinstance(records, Registry):
        from certs.roster import read_roster

        folder = find_kit(where.kit, "coordinator").folder
        name = submit_job(records, job, admitted=read_roster(folder / "roster"))
    else:
        name = records.start(job_toml(job))
    typer.echo(f"{name}: asked; shown again by: wardround statistics {name}", err=True)
    ended = follow(records, name, Console(stderr=True))
    raise_unless_completed(name, ended.status, ended.reason)
    return name
