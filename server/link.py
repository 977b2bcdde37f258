"""The coordinator's end of the link: Flower's SuperLink inside this process, its nodes kept in step with the roster.

Runs come from the registry and no code is ever handed out: of the SuperLink only its state and its Fleet API are here.
Messages and tensors wait in Flower's SQLite state, so that memory does not grow with the sites.

`client/node.py` and, on this side, this file, `server/fleet.py` (the door) and `server/linkgrid.py` (the messages) are
all that touches Flower's internals (1.39).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, Status, SubStatus
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate import LinkStateFactory, SqlLinkState
from flwr.supercore import sql_mixin
from flwr.supercore.constant import NOOP_FEDERATION_ID, SQLITE_PRAGMAS, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy.exc import SQLAlchemyError

from certs.checks import require_usable
from certs.kits import AdmittedSite
from common import flower as _settings  # noqa: F401 - both ends cut tensors into the same pieces
from common.errors import DataError, RunError
from common.kit import Kit
from server.fleet import Door, close_door, listening_address, open_door
from server.linkgrid import LinkGrid, SiteState

__all__ = ["Link", "LinkGrid", "RunLink", "SiteState", "open_link"]

APP_ID = "wardround/wardround"
log = logging.getLogger("wardround.link")
logging.getLogger("flwr").setLevel(logging.ERROR)
logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)

PRAGMAS = {
    "page_size": "65536",  # tensors come in pieces of a megabyte
    **dict(SQLITE_PRAGMAS),
    # A connection's cache and memory map would otherwise grow with the sites that send at once, to gigabytes.
    "cache_size": "-4096",
    "mmap_size": "0",
    # What is under way is worth nothing after a power cut: it is asked for again. A killed process harms nothing.
    "synchronous": "OFF",
}
vars(sql_mixin)["SQLITE_PRAGMAS"] = list(PRAGMAS.items())


@dataclass(frozen=True)
class RunMembers:
    """The sites that a run's job names, as far as they are admitted now."""

    link: Link
    names: frozenset[str]

    @property
    def node_ids(self) -> dict[str, int]:
        """The node id of each, by name."""
        return {name: node_id for name, node_id in self.link.node_ids().items() if name in self.names}

    def states(self) -> list[SiteState]:
        """Look whether each of them is here."""
        return [site for site in self.link.sites() if site.name in self.names]


@dataclass(frozen=True)
class RunLink:
    """A run's way to its sites."""

    grid: LinkGrid
    members: RunMembers

    @property
    def node_ids(self) -> dict[str, int]:
        """The node id of each of the run's sites that is admitted now, by name."""
        return self.members.node_ids


class LinkState(SqlLinkState):
    """Flower's state, without the two writes to the database that it adds to every call."""

    def _cleanup_expired_task_tokens(self) -> None:
        """Nothing: a run ends with this process at the latest, and is not watched for signs of life."""

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        """Nothing: the round loop keeps the books of what was sent and received."""


class Link:
    """The running link. Made by `open_link`."""

    def __init__(self, state: LinkState, door: Door, address: str) -> None:
        self._state, self._door = state, door
        self._names: dict[int, str] = {}
        self.address = address

    def reconcile(self, roster: Mapping[str, AdmittedSite]) -> None:
        """Make the nodes that may connect those of the roster: new ones in, revoked and expired ones out.

        A site keeps its node id as long as it keeps its key, also over restarts. Doing it again changes nothing.
        """
        wanted = {site.public_key: name for name, site in roster.items() if not site.expired}
        here = {bytes(node.public_key): node for node in self._nodes()}
        for key in here.keys() - wanted.keys():
            self._state.delete_node(NOOP_FLWR_AID, here[key].node_id)
            log.warning("%s (node %d) is shut out: revoked, or expired", here[key].name, here[key].node_id)
        names = {}
        for key, name in wanted.items():
            if key in here:
                names[here[key].node_id] = name
            else:
                names[self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=name)] = name
        self._names = names

    def sites(self) -> list[SiteState]:
        """Return every admitted site, by name."""
        now = time.time()
        states = [
            SiteState(self._names[node.node_id], node.node_id, node.online_until > now, _last_seen(node))
            for node in self._nodes()
            if node.node_id in self._names
        ]
        return sorted(states, key=lambda site: site.name)

    def node_ids(self) -> dict[str, int]:
        """Return the node id of every admitted site, by its name."""
        return {name: node_id for node_id, name in self._names.items()}

    @contextmanager
    def open_run(self, name: str, sites: Iterable[str]) -> Iterator[RunLink]:
        """Open a run for the sites named; only they can be sent its messages. One run is open at a time.

        When it is closed, whatever is still under way for it is dropped.

        Raises
        ------
        RunError
            Flower's state did not take the run.
        """
        run, task_id = self._start_run(name)
        outcome, members = SubStatus.STOPPED, RunMembers(self, frozenset(sites))
        try:
            yield RunLink(LinkGrid(self._state, run, members, self._door.activated), members)
            outcome = SubStatus.COMPLETED
        except Exception:
            outcome = SubStatus.FAILED
            raise
        finally:
            self._state.finish_task(task_id, outcome, "")
            self._state.cleanup_run(run.run_id)

    def _start_run(self, name: str) -> tuple[Run, int]:
        """Create a run and its task, both running; return them.

        Flower fails a run that it has not heard of for a minute (a laptop that slept, a clock that was set). Here a run
        lives and dies with this process, and is not watched.
        """
        state = self._state
        try:
            run_id = state.create_run(
                APP_ID, "", None, {"run": name}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
            )
            (run,) = state.get_run_info(run_ids=[run_id])
            task_id = run.primary_task_id or 0
            started = state.claim_task(task_id) is not None and state.activate_task(task_id)
        except (SQLAlchemyError, ValueError) as error:
            raise RunError(f"run {name}: the link's database did not take it ({_reason(error)})") from error
        if not started:
            raise RunError(f"run {name}: the link's database did not start it: see the coordinator's log")
        # Flower's Message takes its sender and run from here.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, SUPERLINK_NODE_ID
        return run, task_id

    def _nodes(self) -> list[NodeInfo]:
        return [node for node in self._state.get_node_info() if node.status != "unregistered"]


@contextmanager
def open_link(kit: Kit, database: Path, *, listen: str | None = None) -> Iterator[Link]:
    """Open the link: gRPC over TLS with the kit's certificate, at `listen` ("host:port").

    By default it listens where the kit's address says if that is this machine's loopback, else on all interfaces at
    the address' port. Sites get in once `Link.reconcile` was given the roster. `database` belongs to one process at
    a time; what a process that was killed left under way in it is dropped.

    Raises
    ------
    KitError
        The server's key or certificate is missing, foreign or past its end.
    LinkError
        The port is in use, or the address is not this machine's.
    DataError
        The database can't be used.
    """
    require_usable(kit)
    address = listen or listening_address(kit.address)
    objects = ObjectStoreFactory(str(database))
    state = _open_state(database, objects)
    states = LinkStateFactory(str(database), state.federation_manager, objects)
    states.state_instance = state
    door = Door(states, objects)
    with ExitStack() as stack:
        server = open_door(door, kit, address)
        stack.callback(close_door, server)
        log.info("listening on %s", address)
        yield Link(state, door, address)


def _open_state(database: Path, objects: ObjectStoreFactory) -> LinkState:
    try:
        state = LinkState(str(database), NoOpFederationManager(), objects.store())
        state.initialize()
        for run in state.get_run_info(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING]):
            state.stop_run(run.run_id)
        state.object_store.clear()
    except (SQLAlchemyError, OSError) as error:
        raise DataError(
            f"{database}: the link's database can't be used ({_reason(error)}): if it is damaged, delete it; "
            "sites will come back by themselves"
        ) from error
    return state


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error)


def _last_seen(node: NodeInfo) -> datetime | None:
    """A heartbeat promises that a node stays for two intervals: so long before that end it was heard of."""
    if not node.last_activated_at:
        return None
    if node.last_deactivated_at and node.last_deactivated_at > node.last_activated_at:
        return datetime.fromisoformat(node.last_deactivated_at)
    return datetime.fromtimestamp(node.online_until - 2 * node.heartbeat_interval, UTC)
