"""`wardround site dashboard`: a thin skin over `client.dashboard.app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.options import KitOption
from common.errors import UsageError
from common.kit import find_kit, is_address


def dashboard(
    kit: KitOption = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = "127.0.0.1:8465",
    certificate: Annotated[Path | None, typer.Option(help="For HTTPS, which other machines need: a PEM file.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key, PEM.")] = None,
    link_file: Annotated[Path | None, typer.Option(help="Write the link to this file, and do not print it.")] = None,
) -> None:
    """Serve this hospital's page: data, jobs to approve, budget, releases, audit, health. On this machine only.

    The link that it prints holds a secret that is made anew at each start.

    Example: wardround site dashboard --kit kits/sites/north
    """
    if not is_address(listen):
        raise UsageError(f'--listen: "{listen}" is not HOST:PORT with a port from 1 to 65535')
    if (certificate is None) != (key is None):
        raise UsageError("--certificate and --key go together")
    found = find_kit(kit, "site")
    from client.dashboard.app import serve_site
    from common.logs import log_to_stderr

    log_to_stderr()
    host, _, port = listen.rpartition(":")
    serve_site(found, host.strip("[]"), int(port), certificate=certificate, key=key, link_file=link_file)
