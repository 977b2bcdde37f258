"""`wardround job ...`: check a job before anybody is asked to run it, and look its keys up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.job import key_table, read_job
from common.section import Section
from common.strategies import PARAMETERS, parameters_of
from common.tasks.parameters import PARAMETERS as TASK_PARAMETERS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Check a job file, or list the keys, tasks and strategies that a job may have.",
)


@app.command()
def check(
    job: Annotated[Path, typer.Argument(help="The job's TOML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole job as canonical JSON.")] = False,
) -> None:
    """Read a job and build its task and network, as the coordinator and the sites will; print its digest.

    Example: wardround job check job.toml
    """
    from common.networks import build_network  # torch: only here

    found = read_job(job)
    build_network(found)
    if as_json:
        typer.echo(json.dumps({"digest": found.digest, "job": json.loads(found.canonical_json())}))
        return
    typer.echo(f"{job}: ok. {found.name}: {found.aggregation.rounds} rounds at {', '.join(found.sites)}")
    typer.echo(f"digest {found.digest}")


@app.command()
def keys(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List every key of a job with its default and its meaning.

    Example: wardround job keys
    """
    if markdown:
        typer.echo("| key | default | meaning |\n|---|---|---|")
        for key, default, meaning in key_table():
            typer.echo(f"| `{key}` | {default and f'`{default}`'} | {meaning} |")
        return
    table = Table("key", "default", "meaning")
    for row in key_table():
        table.add_row(*row)
    Console().print(table, markup=False)


@app.command()
def strategies(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List the strategies that come with Ward Round, each with its source and its parameters.

    Example: wardround job strategies
    """
    _list(PARAMETERS, ("strategy", "source", "aggregation.parameters"), markdown)


@app.command()
def tasks(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List the tasks that come with Ward Round, each with what it does and its parameters.

    Example: wardround job tasks
    """
    _list(TASK_PARAMETERS, ("task", "what it does", "task.parameters"), markdown)


def _list(kinds: Mapping[str, type[Section]], headings: tuple[str, str, str], markdown: bool) -> None:
    """Print a table of the kinds by name, and outside Markdown each parameter's meaning."""
    rows = [
        (
            name,
            kind.__doc__ or "",
            ", ".join(f"{key} = {default}" if default else key for key, default, _ in parameters_of(kind)),
        )
        for name, kind in kinds.items()
    ]
    if markdown:
        typer.echo(f"| {headings[0]} | {headings[1]} | parameters |\n|---|---|---|")
        for name, about, parameters in rows:
            typer.echo(f"| `{name}` | {about} | {parameters} |")
        return
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)
    for name, kind in kinds.items():
        for key, _, meaning in parameters_of(kind):
            Console().print(f"{name}.{key}: {meaning}", markup=False, highlight=False)
