"""The resident service: one site, one node, and a lock so that only one service runs on a kit."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from certs.checks import kit_warnings, require_usable
from client.app import answer, introduce
from client.node import run_node
from client.site import Site
from common.errors import UsageError
from common.kit import Kit

log = logging.getLogger("wardround.site")


def serve(kit: Kit, device: str, stop: threading.Event) -> None:
    """Serve the site until `stop` is set.

    Raises
    ------
    KitError
        The site has no key or certificate yet, they do not belong together, or the certificate has ended.
    UsageError
        A service runs on this kit already.
    DataError
        The ledger or the audit log can't be used, or they do not fit each other.
    """
    require_usable(kit)
    for warning in kit_warnings(kit):
        log.warning("%s", warning)
    with _only_one(kit.folder):
        site = Site.open(kit.folder, device)
        site.log.append("started", {"version": metadata.version("wardround"), "device": str(site.device)})
        log.info("site %s of federation %s on %s", site.name, kit.federation, site.device)
        run_node(
            kit,
            lambda message: (
                introduce(message, site) if message.metadata.message_type == "query" else answer(message, site)
            ),
            stop=stop,
            on_state=lambda state: log.info("%s", state),
        )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the kit's service lock. The kernel frees it when the process ends, however it ends."""
    with (folder / "service.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UsageError(
                f"{folder}: this site runs already (process {file.read().strip() or 'unknown'}): stop that one first"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
