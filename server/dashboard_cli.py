"""`wardround dashboard`: a thin skin over `server.dashboard.app`."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from common.kit import find_kit

HELP = "Serve the coordinator's dashboard and API over HTTPS."
LISTEN = "127.0.0.1:9443"
NICER = 10
"""How much lower the priority is beside a coordinator: where processors are few, rounds come first."""
app = typer.Typer(add_completion=False, help=HELP)


@app.command()
def dashboard(
    kit: Annotated[
        Path | None, typer.Argument(help="The coordinator's kit folder (default: $WARDROUND_KIT, else here).")
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen: this machine only, unless you say otherwise.")
    ] = LISTEN,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Serve the dashboard and the API of a coordinator, over HTTPS with the coordinator's own certificate.

    `wardround coordinator start` does this too. The first admin is made with: wardround people add NAME --role admin

    Example: wardround dashboard kits/coordinator --listen 0.0.0.0:9443
    """
    found = find_kit(kit, "coordinator")
    from common.logs import log_to_stderr
    from server.dashboard.app import serve

    log_to_stderr()
    stop = threading.Event()
    if with_parent:
        os.nice(NICER)
        threading.Thread(target=_until_closed, args=(stop,), daemon=True).start()
    serve(found, listen=listen, stop=stop)


def _until_closed(stop: threading.Event) -> None:
    """Wait until whoever started this process closes its standard input, or ends."""
    while sys.stdin.buffer.read(1024):
        continue
    stop.set()
