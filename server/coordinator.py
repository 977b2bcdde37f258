"""The resident coordinator: link open, roster kept in step, runs executed one after another from the registry."""

from __future__ import annotations

import fcntl
import gc
import importlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from certs.checks import kit_warnings, require_usable
from certs.roster import AdmittedSite, read_roster
from common.errors import UsageError, WardroundError
from common.kit import Kit
from server.companion import Companion
from server.records import CoordinatorSeen, SiteSeen
from server.registry import Registry, open_registry
from server.runlog import logged

if TYPE_CHECKING:
    from server.link import Link

LINK_DATABASE = "link.sqlite"
LOOK_SECONDS = 0.5
ROSTER_SECONDS = 2.0
GOODBYE_SECONDS = 30.0
log = logging.getLogger("wardround.coordinator")


def serve(kit: Kit, *, stop: threading.Event, listen: str | None = None, dashboard: str | None = None) -> None:
    """Serve the federation until `stop` is set; a run under way is then left as interrupted, to be resumed.

    With `dashboard` (HOST:PORT) the dashboard is served there meanwhile, by a process of its own.

    Raises
    ------
    KitError
        A file of the kit is missing, foreign or damaged, or the server's certificate has ended.
    UsageError
        A coordinator runs on this kit already.
    LinkError
        The port is in use, or the address is not this machine's.
    DataError
        The registry can't be used.
    """
    require_usable(kit)
    for warning in kit_warnings(kit):
        log.warning("%s", warning)
    with _only_one(kit):
        registry = open_registry(kit)
        for name in registry.interrupt_running():
            log.warning("run %s was cut off; to go on: wardround run --resume %s", name, name)
        from server.link import open_link  # Flower, which nobody needs to be told that a kit is missing

        with open_link(kit, kit.folder / LINK_DATABASE, listen=listen) as link:
            log.info("coordinator of federation %s", kit.federation)
            worker = threading.Thread(target=_execute_runs, args=(registry, link, stop), name="runs")
            started = time.time()
            _keep_house(kit, registry, link, started)
            worker.start()
            try:
                with Companion(kit, dashboard) if dashboard else nullcontext() as companion:
                    while not stop.wait(ROSTER_SECONDS):
                        _try_to_keep_house(kit, registry, link, started)
                        if companion is not None:
                            companion.keep()
            finally:
                stop.set()
                worker.join(GOODBYE_SECONDS)
                registry.see_coordinator(None)
                registry.close()
    log.info("coordinator stopped")


def known_sites(kit: Kit, registry: Registry) -> list[SiteSeen]:
    """Return the sites on the roster as it is now, with what the coordinator last saw of each. Raises KitError."""
    seen = {site.name: site for site in registry.list_sites()}
    return [
        replace(seen.get(name, SiteSeen(name, None, False, None)), certificate_ends=admitted.not_after.timestamp())
        for name, admitted in sorted(read_roster(kit.folder / "roster").items())
    ]


def _try_to_keep_house(kit: Kit, registry: Registry, link: Link, started: float) -> None:
    try:
        _keep_house(kit, registry, link, started)
    except WardroundError as error:
        log.error("%s", error)  # a roster that is being written to, or a full disk: told, and looked at again


def _keep_house(kit: Kit, registry: Registry, link: Link, started: float) -> None:
    """Bring link and registry in step with the roster, and show a sign of life."""
    roster = read_roster(kit.folder / "roster")
    link.reconcile(roster)
    registry.see_sites(_seen(link, roster))
    registry.see_coordinator(CoordinatorSeen(os.getpid(), link.address, started, time.time()))


def _seen(link: Link, roster: dict[str, AdmittedSite]) -> list[SiteSeen]:
    states = {state.name: state for state in link.sites()}
    seen = []
    for name, admitted in sorted(roster.items()):
        state = states.get(name)
        last = state.last_seen.timestamp() if state is not None and state.last_seen is not None else None
        seen.append(SiteSeen(name, admitted.not_after.timestamp(), state is not None and state.online, last))
    return seen


def _execute_runs(registry: Registry, link: Link, stop: threading.Event) -> None:
    _set_apart_what_stays()
    while not stop.is_set():
        try:
            name = registry.claim()
            if name is None:
                stop.wait(LOOK_SECONDS)
                continue
            _execute_run(registry, link, name, stop)
        except WardroundError as error:
            log.error("%s", error)
            stop.wait(ROSTER_SECONDS)


def _execute_run(registry: Registry, link: Link, name: str, stop: threading.Event) -> None:
    from server.execution import execute

    try:
        with logged(registry, name), link.open_run(name, registry.run_detail(name).job.sites) as run:
            execute(registry, name, run.grid, lambda: run.node_ids, shutting_down=stop.is_set)
    except WardroundError as error:
        registry.finish(name, "failed", str(error))
        raise


def _set_apart_what_stays() -> None:
    """Load what runs need, and keep it out of the collection that each round makes (`Carrier.collect`)."""
    importlib.import_module("server.execution")
    gc.collect()
    gc.freeze()


@contextmanager
def _only_one(kit: Kit) -> Iterator[None]:
    """Hold the kit's service lock. The kernel frees it when the process ends, however it ends."""
    with (kit.folder / "service.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            process = file.read().strip() or "unknown"
            raise UsageError(f"{kit.folder}: the coordinator is running already (process {process})") from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
