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
    "simulate": (
        "simulations.simulate_cli:simulate",
        "Run a study of simulated hospitals: strategies, partitions, privacy and faults, compared over seeds.",
    ),
    "kits": ("certs.cli:app", "Create a federation's authority and startup kits; admit, renew and revoke sites."),
    "coordinator": ("server.cli:coordinator", "Start the coordinator of a federation."),
    "dashboard": ("server.dashboard_cli:app", "Serve the coordinator's dashboard and API over HTTPS."),
    "people": ("server.people_cli:app", "Say who may use the dashboard and the API, and as what."),
    "job": ("common.job_cli:app", "Check a job file, or list the keys that a job may have."),
    "plan": ("server.plan_cli:app", "Tell what a job's privacy would cost, before anything runs."),
    "run": ("server.cli:run", "Run a job across the sites it names, or resume a run."),
    "runs": ("server.cli:runs", "List runs, or show one."),
    "statistics": ("server.statistics_cli:app", "Count patients at the sites, and warn where the sites differ."),
    "models": ("server.models_cli:app", "Export a run's model: for a hospital, as ONNX, as a MONAI bundle."),
    "predict": ("client.predict_cli:app", "Write what a model says of images, as DICOM, NIfTI or PNG, and a table."),
    "sites": ("server.cli:sites", "List the federation's sites and whether they are here."),
    "site": ("client.cli:app", "A hospital's side: enrol, import images, check, start."),
    "audit": ("common.cli:audit", "Verify and report what a site did; attack a training to test its privacy."),
}
"""Every top-level command: where it lives, and its line in `wardround --help`."""

AUDIT_COMMANDS = {
    "verify": ("client.audit_cli:verify", "Check a site's audit log and ledger: is every entry as it was written?"),
    "export": ("client.audit_cli:export", "Write the report for a data protection officer, as HTML and Markdown."),
    "privacy": ("simulations.attack_cli:privacy", "Attack a job's training, beside the epsilon that it claims."),
}
"""The commands of `wardround audit`, from two packages that do not know each other."""


class LazyGroup(TyperGroup):
    """A group that imports a command's module when the command is used, so that help needs no torch."""

    table = COMMANDS

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names, in the table's order."""
        return list(self.table)

    def get_command(self, ctx: object, cmd_name: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Return the command `cmd_name` for a help listing: only its line of help."""
        if cmd_name not in self.table:
            return None
        import click

        line = self.table[cmd_name][1]
        return click.Command(cmd_name, short_help=line, help=line)

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Import the command that is used."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in self.table:
            module, attribute = self.table[name][0].split(":")
            command = get_command(cast(typer.Typer, getattr(importlib.import_module(module), attribute)))
            command.name = name
        return name, command, rest


class AuditGroup(LazyGroup):
    """The group `wardround audit`."""

    table = AUDIT_COMMANDS


audit = typer.Typer(cls=AuditGroup, no_args_is_help=True, add_completion=False, help=COMMANDS["audit"][1])


@audit.callback(help=COMMANDS["audit"][1])
def _audit() -> None:
    """Make this a group: Typer makes nothing of an app without a command or a callback."""


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
