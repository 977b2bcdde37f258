"""The coordinator's end of the link: Flower's SuperLink inside this process, and a Grid over its state.

Only Flower's Fleet API is started: gRPC over TLS, every call signed by the node's key. The stock SuperLink's other
doors (its HTTP APIs for submitting code and for running it) stay shut: runs come from the registry, and no code
is ever handed out. Messages and tensors wait in Flower's SQLite state, so that memory does not grow with the sites.

This file and `client/node.py` are all that touches Flower's internals (1.39).
"""

from __future__ import annotations

import datetime
import errno
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory, SqlLinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID, OBJECT_PUSH_SESSION_TTL_SECONDS, TaskType
from flwr.supercore.grpc import GRPC_MAX_MESSAGE_LENGTH, generic_create_grpc_server
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors import (
    RpcErrorTranslationServerInterceptor,
    create_fleet_runtime_version_server_interceptor,
)
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.state.schema.linkstate_models import MessageRes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import select

from certs.checks import require_usable
from certs.kits import AdmittedSite
from common.errors import LinkError, RunError
from common.kit import Kit

FLEET_WORKERS = 64
HEARTBEAT_SECONDS = 10.0
log = logging.getLogger("wardround.link")
logging.getLogger("flwr").setLevel(logging.WARNING)


@dataclass(frozen=True)
class SiteState:
    """An admitted site as the link sees it. Times are in UTC; `last_seen` is None for a site that never came."""

    name: str
    node_id: int
    online: bool
    last_seen: datetime.datetime | None


class Link:
    """The running link. Made by `open_link`."""

    def __init__(self, factory: LinkStateFactory, address: str) -> None:
        self._factory = factory
        self._names: dict[int, str] = {}
        self.address = address

    @property
    def _state(self) -> LinkState:
        return self._factory.state()

    def reconcile(self, roster: Mapping[str, AdmittedSite]) -> None:
        """Make the nodes that may connect those of the roster: new ones in, revoked and expired ones out.

        A site keeps its node id as long as it keeps its key, also over restarts.
        """
        wanted = {site.public_key: name for name, site in roster.items() if not site.expired}
        here = {bytes(node.public_key): node for node in self._nodes()}
        for key in here.keys() - wanted.keys():
            self._state.delete_node(NOOP_FLWR_AID, here[key].node_id)
            log.warning("node %d is no longer on the roster: shut out", here[key].node_id)
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
        return sorted(
            (
                SiteState(self._names[node.node_id], node.node_id, node.online_until > now, _last_seen(node))
                for node in self._nodes()
                if node.node_id in self._names
            ),
            key=lambda site: site.name,
        )

    def node_ids(self) -> dict[str, int]:
        """Return the node id of every admitted site, by its name."""
        return {name: node_id for node_id, name in self._names.items()}

    @contextmanager
    def open_run(self, name: str, sites: Iterable[str]) -> Iterator[RunLink]:
        """Open a run of Flower's for the sites named; only they can be sent its messages.

        Raises
        ------
        RunError
            Flower's state did not take the run.
        """
        state = self._state
        run_id = state.create_run(
            "wardround/wardround", "", None, {"run": name}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        run = next(iter(state.get_run_info(run_ids=[run_id])), None)
        if run is None or run.primary_task_id is None:
            raise RunError(f"run {name}: the link's database did not take it: see the coordinator's log")
        task_id = run.primary_task_id
        if state.claim_task(task_id) is None or not state.activate_task(task_id):
            raise RunError(f"run {name}: the link's database did not start it: see the coordinator's log")
        # Flower's Message takes sender and run from here; a coordinator process carries out one run at a time.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, SUPERLINK_NODE_ID
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(state, task_id, stop), daemon=True, name="run-heartbeat")
        beat.start()
        outcome = SubStatus.FAILED
        try:
            yield RunLink(LinkGrid(self, state, run, frozenset(sites)), self)
            outcome = SubStatus.COMPLETED
        finally:
            stop.set()
            beat.join()
            state.finish_task(task_id, outcome, "")
            state.cleanup_run(run_id)

    def _nodes(self) -> list[NodeInfo]:
        return [node for node in self._state.get_node_info() if node.status != "unregistered"]


@dataclass(frozen=True)
class RunLink:
    """A run's way to its sites."""

    grid: LinkGrid
    link: Link

    @property
    def node_ids(self) -> dict[str, int]:
        """The node id of each of the run's sites that is admitted now, by name."""
        return {name: node for name, node in self.link.node_ids().items() if name in self.grid.sites}


class LinkGrid(Grid):
    """Flower's Grid over the link's state, in process.

    Guarantees: a message goes only to a site of the run. Replies are read from the database one at a time, and are
    gone from it once read. A message whose site is away stays; one that a site took and lost with its process is
    answered by an error reply of code MESSAGE_UNAVAILABLE, so that it can be sent again.
    """

    def __init__(self, link: Link, state: LinkState, run: Run, sites: frozenset[str]) -> None:
        self.sites = sites
        self._link, self._state, self._run = link, state, run
        self._pushed: dict[str, tuple[int, float]] = {}
        self._arriving: dict[str, tuple[Message, float]] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message of this run to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the run's sites that are online."""
        return [site.node_id for site in self._link.sites() if site.online and site.name in self.sites]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store messages for their nodes, equal tensors once. Returns an id each, in order ("" for refused)."""
        allowed = {node for name, node in self._link.node_ids().items() if name in self.sites}
        with no_object_id_recompute():
            return [self._push(message) if message.metadata.dst_node_id in allowed else "" for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies that are there, reading each from the database only when it is asked for."""
        for message_id in message_ids:
            if (reply := self._pull(message_id)) is not None:
                yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return the replies that come within `timeout` seconds (None: wait for all)."""
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        end, replies = None if timeout is None else time.monotonic() + timeout, []
        while waiting and (end is None or time.monotonic() < end):
            for message_id in tuple(waiting):
                for reply in self.pull_messages([message_id]):
                    waiting.discard(message_id)
                    replies.append(reply)
            time.sleep(0.02)
        return replies

    def _push(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = message.object_id
        session = self._state.start_session(self._run.run_id)
        bare, tree = remove_content_from_message(message), get_object_tree(message)
        stored, missing = self._state.store_message_and_object_tree(bare, tree, session)
        if not stored:
            return ""
        objects = get_all_nested_objects(message)
        for object_id in missing:
            self._state.store_object(self._run.run_id, session, object_id, objects[object_id].deflate())
        self._pushed[message.object_id] = message.metadata.dst_node_id, time.time()
        return message.object_id

    def _pull(self, message_id: str) -> Message | None:
        if message_id in self._arriving:
            return self._inflate(message_id)
        node_id, pushed = self._pushed.get(message_id, (0, 0.0))
        node = next(iter(self._state.get_node_info(node_ids=[node_id])), None) if node_id else None
        if node is None or node.status == "unregistered":
            return self._lost(message_id, "the site is no longer on the roster")
        found = self._replies(message_id, node)
        if not found:
            # A site that came anew after the message was sent may have taken it before: it is lost with that process.
            return self._lost(message_id, "the site was started anew") if _came_after(node, pushed) else None
        self._state.delete_messages(message_ins_ids={message_id})
        (bare,) = found
        if bare.has_error():
            return bare
        self._arriving[message_id] = bare, time.monotonic()
        return self._inflate(message_id)

    def _replies(self, message_id: str, node: NodeInfo) -> list[Message]:
        """The reply, once it is there. Flower's own question costs ten queries, and gives up a site that is away."""
        if not isinstance(self._state, SqlLinkState):
            return self._state.get_message_res({message_id}, self._run.run_id) if _online(node) else []
        with self._state.session() as session:
            there = session.scalar(select(MessageRes.message_id).where(MessageRes.reply_to_message_id == message_id))
        if there is None or not _online(node):
            return []
        return self._state.get_message_res({message_id}, self._run.run_id)

    def _inflate(self, message_id: str) -> Message | None:
        """Put a reply together from its objects; None while some are still being sent."""
        bare, since = self._arriving[message_id]
        store, reply_id = self._state.object_store, bare.metadata.message_id
        try:
            object_ids = [node.object_id for node in iterate_object_tree(store.get_object_tree(reply_id))]
            contents = {object_id: store.get(object_id) for object_id in object_ids}
        except NoObjectInStoreError:
            contents = {}
        if not contents or not all(contents.values()):
            if contents and time.monotonic() - since < OBJECT_PUSH_SESSION_TTL_SECONDS:
                return None
            del self._arriving[message_id]
            return self._error(message_id, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "the reply did not arrive whole")
        del self._arriving[message_id]
        message = inflate_object_from_contents(reply_id, {key: bytes(value or b"") for key, value in contents.items()})
        store.delete(reply_id)
        if not isinstance(message, Message):
            return self._error(message_id, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "the reply is no message")
        message.metadata.__dict__["_message_id"] = reply_id
        return message

    def _lost(self, message_id: str, reason: str) -> Message:
        self._state.delete_messages(message_ins_ids={message_id})
        return self._error(message_id, ErrorCode.MESSAGE_UNAVAILABLE, reason)

    def _error(self, message_id: str, code: int, reason: str) -> Message:
        self._pushed.pop(message_id, None)
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=SUPERLINK_NODE_ID,
            message_type="system",
            group_id="",
            ttl=0,
            reply_to_message_id=message_id,
            created_at=time.time(),
        )
        return make_message(metadata=metadata, error=Error(code=code, reason=reason))


@contextmanager
def open_link(kit: Kit, database: Path, *, listen: str | None = None) -> Iterator[Link]:
    """Open the link: gRPC over TLS with the kit's certificate, at `listen` ("host:port").

    By default it listens where the kit's address says if that is this machine's loopback, else on all interfaces at
    the address' port.

    Raises
    ------
    KitError
        The server's key or certificate is missing, foreign or past its end.
    LinkError
        The port is in use, or the address is not this machine's.
    """
    require_usable(kit)
    address = listen or _listening_address(kit.address)
    _check_port(address)
    objects = ObjectStoreFactory(str(database))
    factory = LinkStateFactory(str(database), NoOpFederationManager(), objects)
    factory.state()
    certificates = (kit.authority_certificate.read_bytes(), kit.certificate.read_bytes(), kit.key.read_bytes())
    with ExitStack() as stack:
        server = _fleet_server(address, factory, objects, certificates)
        server.start()
        stack.callback(lambda: server.stop(grace=1).wait())
        log.info("listening on %s", address)
        yield Link(factory, address)


def _fleet_server(
    address: str, factory: LinkStateFactory, objects: ObjectStoreFactory, certificates: tuple[bytes, bytes, bytes]
) -> grpc.Server:
    servicer = FleetServicer(state_factory=factory, objectstore_factory=objects, enable_supernode_auth=True)
    return generic_create_grpc_server(
        servicer_and_add_fn=(servicer, add_FleetServicer_to_server),
        server_address=address,
        max_concurrent_workers=FLEET_WORKERS,
        max_message_length=GRPC_MAX_MESSAGE_LENGTH,
        certificates=certificates,
        interceptors=[
            RpcErrorTranslationServerInterceptor(),
            NodeAuthServerInterceptor(factory),
            create_fleet_runtime_version_server_interceptor(),
        ],
    )


def _listening_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    return address if host in ("127.0.0.1", "localhost", "[::1]") else f"0.0.0.0:{port}"


def _check_port(address: str) -> None:
    """Find out before gRPC does, which says it less well."""
    host, _, port = address.rpartition(":")
    try:
        family, *_, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        reason = "the port is in use: is the coordinator running already?"
        if error.errno != errno.EADDRINUSE:
            reason = f"{error.strerror or error}: give an address of this machine with --listen"
        raise LinkError(f"can't listen on {address}: {reason}") from error


def _heartbeat(state: LinkState, task_id: int, stop: threading.Event) -> None:
    """Flower ends a run whose task it has not heard of for a minute."""
    while not stop.wait(HEARTBEAT_SECONDS):
        state.acknowledge_task_heartbeat(task_id)


def _online(node: NodeInfo) -> bool:
    return bool(node.online_until > time.time())


def _came_after(node: NodeInfo, moment: float) -> bool:
    if not node.last_activated_at:
        return False
    return datetime.datetime.fromisoformat(node.last_activated_at).timestamp() > moment


def _last_seen(node: NodeInfo) -> datetime.datetime | None:
    """A heartbeat promises that a node stays for two intervals: so long before that end it was heard of."""
    if not node.last_activated_at:
        return None
    if node.last_deactivated_at and node.last_deactivated_at > node.last_activated_at:
        return datetime.datetime.fromisoformat(node.last_deactivated_at)
    return datetime.datetime.fromtimestamp(node.online_until - 2 * node.heartbeat_interval, datetime.UTC)
