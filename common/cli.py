"""The `wardround` command: finds each package's own commands and imports one only when it is used."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from common.errors import WardroundError

COMMANDS = {
    "demo": ("simulations.cli:demo", "Train a whole federation of hospitals on this machine, to see how it works."),
    "kits": ("certs.cli:app", "Create a federation's authority and startup kits; admit, renew and revoke sites."),
    "coordinator": ("server.cli:coordinator", "Start the coordinator of a federation."),
    "job": ("common.job_cli:app", "Check a job file, or list the keys that a job may have."),
    "run": ("server.cli:run", "Run a job across the sites it names, or resume a run."),
    "runs": ("server.cli:runs", "List runs, or show one."),
    "sites": ("server.cli:sites", "List the federation's sites and whether they are here."),
    "site": ("client.cli:app", "A hospital's side: enrol, import images, check, start."),
}
"""Every top-level command: where it lives, and its line in `wardround --help`."""


class LazyGroup(TyperGroup):
    """A group that imports a command's module when the command is used, so that help needs no torch."""

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Import the command `cmd_name`; for a help listing, only its line of help."""
        if cmd_name not in COMMANDS:
            return None
        place, line = COMMANDS[cmd_name]
        if _is_listing():
            import click

            return click.Command(cmd_name, short_help=line, help=line)
        module, attribute = place.split(":")
        command = get_command(cast(typer.Typer, getattr(importlib.import_module(module), attribute)))
        command.name = cmd_name
        return command


def _is_listing() -> bool:
    return all(argument.startswith("-") for argument in sys.argv[1:])


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated learning for hospitals: one model, trained on every hospital's images, and no image moves.",
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"wardround {metadata.version('wardround')}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. A WardroundError ends it with its one line on standard error and its exit code."""
    # Nothing phones home: both must be set before Flower is imported.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the terminal does not have is no reason to fail
    try:
        app(args=arguments, prog_name="wardround")
    except WardroundError as error:
        typer.echo(f"wardround: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # the machine's doing, and a person's to mend: a full disk, somebody else's file
        typer.echo(f"wardround: {_in_words(error)}", err=True)
        sys.exit(WardroundError.exit_code)


def _in_words(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}: mend that and run the command again"
    # What could not be written must not be tried again when Python ends: that would be a second complaint.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return f"{reason}: while writing the output, or a file"
