"""What `wardround run`, `runs` and `sites` do with a coordinator on another machine: the options, and its answers."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from common.errors import UsageError
from common.kit import find_kit

if TYPE_CHECKING:
    from server.registry import Registry
    from server.remote import Remote

SERVER = "WARDROUND_SERVER"
ServerOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help=f"A coordinator elsewhere: its dashboard's https://HOST:9443 (${SERVER})."),
]
CaOption = Annotated[
    Path | None, typer.Option(help="The authority of that coordinator: ca.crt of any kit of it ($WARDROUND_CA).")
]


@dataclass(frozen=True)
class Where:
    """Which coordinator a command line means: by its kit on this machine, or by its server and authority elsewhere."""

    kit: Path | None = None
    server: str | None = None
    ca: Path | None = None

    @property
    def said(self) -> bool:
        """Whether anything is said."""
        return self != Where()

    def elsewhere(self) -> Remote | None:
        """Return the coordinator on another machine, if one is meant: a kit that is named beats the environment.

        Raises UsageError when both are named, and as `find_remote` does.
        """
        if self.kit is not None and (self.server or self.ca):
            raise UsageError(
                "--kit is a coordinator on this machine, --server and --ca one elsewhere: name one of them"
            )
        if self.ca is not None and not (self.server or os.environ.get(SERVER)):
            raise UsageError(f"--ca is the authority of a coordinator elsewhere: name it with --server or ${SERVER}")
        if self.kit is not None or not (self.server or os.environ.get(SERVER)):
            return None
        from server.remote import find_remote

        return find_remote(self.server, self.ca)

    def records(self) -> Registry | Remote:
        """Return where its runs are read and stopped: the kit's own registry, or the coordinator elsewhere."""
        if (far := self.elsewhere()) is not None:
            return far
        from server.registry import open_registry

        return open_registry(find_kit(self.kit, "coordinator"))


def ask(far: Remote, job: Path | None, resume: str | None, from_model: Path | None) -> str:
    """Start a run of a job file, or resume a run, at `far`; return its name."""
    from common.files import read_text
    from common.job import read_job

    if from_model is not None:
        raise UsageError("--from-model: models are read on the coordinator's machine only")
    if job is not None:
        read_job(job)  # its faults with their lines, before anything is sent
        return far.start(read_text(job))
    name = far.find(resume or "")
    far.resume(name)
    return name


def print_sites(far: Remote, as_json: bool) -> None:
    """Print the sites of `far` as `wardround sites` does. What was seen of their audit logs is kept there."""
    from server.report import is_alive, sites_table

    alive, listed = is_alive(far.coordinator()), far.list_sites()
    if as_json:
        entries = [dataclasses.asdict(site) | {"online": site.online if alive else None} for site in listed]
        typer.echo(json.dumps({"coordinator_running": alive, "sites": entries}, indent=2))
        return
    Console().print(sites_table(listed, alive))
    if not alive:
        typer.echo(f"no coordinator is running behind {far.server}", err=True)
