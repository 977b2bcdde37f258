"""The coordinator's commands: a thin skin, each does what a function of the library does."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from common.errors import UsageError
from common.kit import Kit, find_kit, is_address
from server.remote_cli import CaOption, ServerOption, Where, ask, print_sites

if TYPE_CHECKING:
    from server.registry import Registry
    from server.remote import Remote

coordinator = typer.Typer(no_args_is_help=True, add_completion=False)
run = typer.Typer(add_completion=False)
runs = typer.Typer(add_completion=False)
sites = typer.Typer(add_completion=False)

KIT_HELP = "The coordinator's kit folder (default: $WARDROUND_KIT, else the current folder)."
KitOption = Annotated[Path | None, typer.Option("--kit", help=KIT_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@coordinator.callback()
def _coordinator() -> None:
    """Start the coordinator of a federation."""


@coordinator.command()
def start(
    kit: Annotated[Path | None, typer.Argument(help=KIT_HELP)] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to listen (default: the port of the kit's address, everywhere)."),
    ] = None,
    dashboard: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve the dashboard: only this machine, as it stands.")
    ] = "127.0.0.1:9443",
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Serve no dashboard and no API.")] = False,
) -> None:
    """Run the coordinator: let admitted sites in over TLS, and execute the runs that are asked for, one at a time.

    Stop it with Ctrl-C or SIGTERM; a run under way can then be resumed.

    Example: wardround coordinator start kits/coordinator
    """
    import signal
    import threading

    from common.logs import log_to_stderr
    from server.coordinator import serve

    if listen is not None and not is_address(listen):
        raise UsageError(f'--listen: "{listen}" is not HOST:PORT with a port from 1 to 65535')
    if not is_address(dashboard):
        raise UsageError(f'--dashboard: "{dashboard}" is not HOST:PORT with a port from 1 to 65535')
    log_to_stderr()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    serve(find_kit(kit, "coordinator"), stop=stop, listen=listen, dashboard=None if no_dashboard else dashboard)


@run.command()
def _run(
    job: Annotated[Path | None, typer.Argument(help="The job's TOML file.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with this run (the start of its name) after its last committed round.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the run until it ends; exit code 7 unless completed.")
    ] = False,
    from_model: Annotated[
        Path | None, typer.Option(help="Start from this model (safetensors) and not from the job's seed.")
    ] = None,
    kit: KitOption = None,
    server: ServerOption = None,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for a run of a job. The coordinator executes it, whether or not anyone looks on.

    Example: wardround run job.toml --kit kits/coordinator --follow
             wardround run --resume chest-260101-a1b2c3 --follow
             wardround run job.toml --server https://wardround.example.org:9443 --ca ca.crt
    """
    from server.report import is_alive

    if (job is None) == (resume is None):
        raise UsageError("name a job file, or a run with --resume: one of the two")
    found: Registry | Remote
    if (far := Where(kit, server, ca).elsewhere()) is not None:
        found, name, remedy = far, ask(far, job, resume, from_model), f"start the one behind {far.server}"
    else:
        here = find_kit(kit, "coordinator")
        found, name = _ask_here(here, job, resume, from_model)
        remedy = f"wardround coordinator start {here.folder}"
    try:
        typer.echo(json.dumps({"run": name}) if as_json else name)
        if not is_alive(found.coordinator()):
            typer.echo(f"the coordinator is not running: {remedy}", err=True)
        if follow:
            _follow(found, name, Console(stderr=as_json))
    except KeyboardInterrupt:
        typer.echo(f"\nThe run goes on. To see it: wardround runs show {name}", err=True)
        typer.echo(f"To end it: wardround runs stop {name}", err=True)
        sys.exit(130)


def _ask_here(kit: Kit, job: Path | None, resume: str | None, from_model: Path | None) -> tuple[Registry, str]:
    """Start or resume a run by the registry of a kit on this machine; return the registry and the run's name."""
    from common.job import read_job
    from server.registry import open_registry
    from server.report import is_alive

    asked = read_job(job) if job is not None else None  # before the registry is opened, and so made
    registry = open_registry(kit)
    if asked is None:
        if from_model is not None:
            raise UsageError("--from-model is for a new run: a resumed one goes on from its own model")
        name = registry.find(resume or "")
        if not is_alive(registry.coordinator()):
            registry.interrupt_running()  # whatever "runs" without a coordinator was cut off
        registry.resume(name)
        return registry, name
    from certs.roster import read_roster
    from server.submission import submit_job

    admitted = read_roster(kit.folder / "roster")
    return registry, submit_job(registry, asked, from_model=from_model, admitted=admitted)


def _follow(found: Registry | Remote, name: str, console: Console) -> None:
    from server.execution import raise_unless_completed
    from server.follow import follow

    ended = follow(found, name, console)
    raise_unless_completed(name, ended.status, ended.reason)


@runs.callback(invoke_without_command=True)
def _runs(
    context: typer.Context,
    kit: KitOption = None,
    server: ServerOption = None,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the coordinator's runs, the newest first.

    Example: wardround runs --kit kits/coordinator
             wardround runs show chest --json
    """
    where = Where(kit, server, ca)
    if context.invoked_subcommand is not None:
        context.obj = where
        return
    from server.report import runs_table

    listed = where.records().list_runs()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(entry) for entry in listed], indent=2))
    elif listed:
        Console().print(runs_table(listed))
    else:
        typer.echo("No run yet: wardround run job.toml")


@runs.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or the start of it.")],
    kit: KitOption = None,
    server: ServerOption = None,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run: every round, who trained and who did not and why, losses, metrics, epsilon, models.

    Example: wardround runs show chest-260101-a1b2c3
    """
    from server.report import run_data, run_report

    found = _where(context, kit, server, ca).records()
    detail = found.run_detail(found.find(name))
    if as_json:
        typer.echo(json.dumps(run_data(detail), indent=2))
    else:
        Console().print(run_report(detail), crop=False)


@runs.command()
def stop(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or the start of it.")],
    kit: KitOption = None,
    server: ServerOption = None,
    ca: CaOption = None,
) -> None:
    """Stop a run. What it has committed stays, and it can be resumed.

    Example: wardround runs stop chest-260101-a1b2c3
    """
    found = _where(context, kit, server, ca).records()
    full = found.find(name)
    found.stop(full)
    typer.echo(f"{full} is asked to stop. To go on: wardround run --resume {full}")


def _where(context: typer.Context, kit: Path | None, server: str | None, ca: Path | None) -> Where:
    """What is said after the command's name, or else before it: `wardround runs --kit KIT show RUN` is right too."""
    here = Where(kit, server, ca)
    before: Where = context.obj
    return here if here.said else before


@sites.command()
def _sites(
    kit: KitOption = None,
    witness: Annotated[
        str | None,
        typer.Option(metavar="SITE", help="Print the newest head seen of a site's audit log."),
    ] = None,
    forget_witness: Annotated[
        str | None, typer.Option(metavar="SITE", help="Let a site that lost its audit log begin a new one.")
    ] = None,
    server: ServerOption = None,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the admitted sites: until when, online or not, last seen.

    Example: wardround sites --kit kits/coordinator --json
             wardround sites --witness north > north-head.json

    The second is what the site's data protection officer gives to wardround audit verify --witness.
    """
    if (far := Where(kit, server, ca).elsewhere()) is not None:
        if witness is not None or forget_witness is not None:
            raise UsageError("--witness and --forget-witness: on the coordinator's machine only, with --kit")
        print_sites(far, as_json)
        return
    from server.coordinator import known_sites
    from server.registry import open_registry
    from server.report import is_alive, sites_table

    found = find_kit(kit, "coordinator")
    registry = open_registry(found)
    if forget_witness is not None:
        registry.forget_witness(forget_witness)
        typer.echo(f"The head of {forget_witness}'s audit log is forgotten: the next one that it shows is kept.")
        return
    if witness is not None:
        if not (head := registry.witness(witness)):
            raise UsageError(f'no head of an audit log of "{witness}" was seen yet')
        typer.echo(head)
        return
    alive = is_alive(registry.coordinator())
    listed = known_sites(found, registry)
    if as_json:
        entries = []
        for site in listed:
            head = json.loads(registry.witness(site.name) or "null")
            entries.append(dataclasses.asdict(site) | {"online": site.online if alive else None, "audit_head": head})
        typer.echo(json.dumps({"coordinator_running": alive, "sites": entries}, indent=2))
        return
    Console().print(sites_table(listed, alive))
    if not alive:
        typer.echo(f"the coordinator is not running: wardround coordinator start {found.folder}", err=True)
