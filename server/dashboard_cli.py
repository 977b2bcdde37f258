"""`wardround dashboard`: a thin skin over `server.dashboard.app`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from common.errors import UsageError
from common.kit import find_kit, is_address

HELP = "Serve the coordinator's dashboard and API over HTTPS."
LISTEN = "127.0.0.1:9443"
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
    if not is_address(listen):
        raise UsageError(f'--listen: "{listen}" is not HOST:PORT with a port from 1 to 65535')
    found = find_kit(kit, "coordinator")
    from certs.checks import require_usable
    from common.logs import log_to_stderr

    require_usable(found)
    log_to_stderr()
    from common.web.serving import serve
    from server.dashboard.app import make_app

    host, _, port = listen.rpartition(":")
    stop = threading.Event()
    if with_parent:
        threading.Thread(target=_until_closed, args=(stop,), daemon=True).start()
    serve(make_app(found), host.strip("[]"), int(port), certificate=found.certificate, key=found.key, stop=stop)


def _until_closed(stop: threading.Event) -> None:
    """Wait until whoever started this process closes its standard input, or ends."""
    while sys.stdin.buffer.read(1024):
        continue
    stop.set()
