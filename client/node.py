"""The resident node: Flower's own fleet connection, kept open, each message handed to the code installed here.

The stock SuperNode fetches the app's code from the server and starts a new process for every message. This node fetches
no code and starts nothing: the coordinator can send numbers and a declarative job, never a program.

This file and `server/link.py` are all that touches Flower's internals (1.39).
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.client.grpc_rere_client import connection as fleet
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.grpc import GRPC_MAX_MESSAGE_LENGTH
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import RunNotRunningException

from certs.pem import read_private_key
from common.errors import LinkError
from common.kit import Kit

POLL_SECONDS = 0.15
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
CALL_PATIENCE_SECONDS = 20.0
PROBE_TIMEOUT_SECONDS = 5.0
Keys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]
log = logging.getLogger("wardround.node")
logging.getLogger("flwr").setLevel(logging.CRITICAL)  # this module says what matters, in one line


@dataclass(frozen=True)
class LinkReport:
    """What a probe of the coordinator saw: TLS version, ALPN protocol, the end of the server's certificate."""

    tls: str
    alpn: str
    server_certificate_ends: str


@dataclass(frozen=True)
class Connection:
    """Flower's fleet connection, by name."""

    node_id: int
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


def run_node(
    kit: Kit,
    answer: Callable[[Message], Message],
    *,
    stop: threading.Event,
    on_state: Callable[[str], None] | None = None,
) -> None:
    """Connect to the coordinator and answer its messages until `stop` is set; reconnect for ever.

    `on_state` is told each change of the link in one line. An exception in `answer` costs that message only: the
    coordinator gets an error reply, which names the exception's class and nothing of its text.

    Raises
    ------
    KitError
        The site's key can't be read.
    """
    key = read_private_key(kit.key)
    threading.excepthook = partial(_quiet_heartbeat, threading.__excepthook__)
    say, pause, last = on_state or log.info, FIRST_PAUSE, ""
    while not stop.is_set():
        try:
            probe(kit)
            with _connect(kit, (key, key.public_key())) as connection:
                say(f"connected to {kit.address} as node {connection.node_id}")
                pause, last = FIRST_PAUSE, ""
                _serve(connection, answer, stop)
        except LinkError as error:
            if str(error) != last:
                say(f"{error}; trying again until it works")
                last = str(error)
        # Jitter, so that a hundred sites do not come back in the same instant.
        stop.wait(pause * random.uniform(0.7, 1.3))  # noqa: S311
        pause = min(pause * 1.7, LONGEST_PAUSE)


def probe(kit: Kit) -> LinkReport:
    """Open a TLS connection to the coordinator and look at it, without the site's key.

    Raises
    ------
    LinkError
        The coordinator can't be reached, speaks no TLS, or its certificate is of another authority, for another name,
        or past its end: each with its own line.
    """
    host, _, port = kit.address.rpartition(":")
    host = host.strip("[]")
    context = ssl.create_default_context(cafile=str(kit.authority_certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_SECONDS) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=host) as secure:
                    certificate = secure.getpeercert() or {}
                    ends = str(certificate.get("notAfter", ""))
                    return LinkReport(secure.version() or "", secure.selected_alpn_protocol() or "", ends)
            except ssl.SSLCertVerificationError as error:
                raise LinkError(_certificate_problem(kit, error)) from error
            except (ssl.SSLError, ConnectionError, TimeoutError) as error:
                raise LinkError(
                    f"{kit.address} does not speak TLS: is it the coordinator of {kit.federation}?"
                ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise LinkError(f"the coordinator at {kit.address} can't be reached ({reason.lower()})") from error


def check_admission(kit: Kit) -> int:
    """Connect once with the site's key, and return the node id that the coordinator knows it by.

    Raises
    ------
    LinkError
        As `probe`, or the coordinator does not accept the key.
    """
    probe(kit)
    key = read_private_key(kit.key)
    with _connect(kit, (key, key.public_key())) as connection:
        return connection.node_id


def _certificate_problem(kit: Kit, error: ssl.SSLCertVerificationError) -> str:
    reason = error.verify_message
    if "expired" in reason:
        return f"the certificate of {kit.address} has ended: the coordinator must renew it (kits renew coordinator)"
    if "mismatch" in reason or "not valid for" in reason:
        return f"the certificate of {kit.address} is for another name: {reason}"
    return (
        f"{kit.address} is not the coordinator of {kit.federation}: another authority signed its certificate ({reason})"
    )


class _NotConnectedError(Exception):
    """Flower could not open its connection."""


def _raise_instead_of_exit(_code: int, message: str | None = None, **_details: Any) -> NoReturn:
    """Stand in for Flower's way to end the process (it arms a timer that kills it) when a first call fails."""
    raise _NotConnectedError(message or "")


setattr(fleet, "flwr_exit", _raise_instead_of_exit)  # noqa: B010 - not Flower's to export, ours to replace


@contextmanager
def _connect(kit: Kit, keys: Keys) -> Iterator[Connection]:
    """Open Flower's fleet connection. Raises LinkError for whatever ends it."""
    retry = RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.25, max_delay=2),
        recoverable_exceptions=grpc.RpcError,
        max_tries=None,
        max_time=CALL_PATIENCE_SECONDS,
        should_giveup=_is_final,
    )
    manager = fleet.grpc_request_response(
        kit.address, False, retry, GRPC_MAX_MESSAGE_LENGTH, kit.authority_certificate.read_bytes(), keys
    )
    try:
        node_id, receive, send, _, _, pull_object, push_object, confirm = manager.__enter__()
    except (_NotConnectedError, grpc.RpcError) as error:
        raise LinkError(_refusal(kit, error)) from error
    try:
        yield Connection(node_id, receive, send, pull_object, push_object, confirm)
    except grpc.RpcError as error:
        raise LinkError(_refusal(kit, error)) from error
    finally:
        # Says goodbye if the coordinator is still there; Flower raises here when its heartbeat thread has ended.
        with suppress(Exception):
            manager.__exit__(None, None, None)


def _is_final(error: Exception) -> bool:
    """Whether a failed call is not worth another try at once; a run that has ended is an exception of its own."""
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.PERMISSION_DENIED:
        raise RunNotRunningException
    return code is not grpc.StatusCode.UNAVAILABLE


def _refusal(kit: Kit, error: Exception) -> str:
    """Say in one line why the coordinator did not go on with this site."""
    text = str(error)
    if "public key" in text or "Invalid node ID" in text or "Invalid signature" in text:
        return (
            f"{kit.address} does not know this site's key: it is not admitted, its certificate has ended, or it was "
            f"revoked: ask the coordinator ({kit.federation})"
        )
    if "timestamp" in text.lower():
        return f"{kit.address} refuses this machine's clock: it is wrong by a minute or more; set it (NTP)"
    if "version" in text.lower():
        return f"{kit.address} runs another version of Flower: install the same version of Ward Round on both sides"
    if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"the link to {kit.address} was lost"
    reason = next((line for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
    return f"{kit.address} refused this site: {reason.strip()[:200]}"


def _serve(connection: Connection, answer: Callable[[Message], Message], stop: threading.Event) -> None:
    """Take messages and give replies until `stop` is set. Raises grpc.RpcError when the link is lost."""
    while not stop.is_set():
        if (received := connection.receive()) is None:
            stop.wait(POLL_SECONDS)
            continue
        try:
            message = _take(connection, *received)
            started = time.monotonic()
            reply = _answered(answer, message)
            _give(connection, reply, time.monotonic() - started)
        except (RunNotRunningException, ObjectPullError, ObjectPushError):
            # The run ended, or the coordinator has sent the message anew: nobody waits for this reply.
            log.info("run %s no longer waits for this message", received[0].metadata.run_id)


def _take(connection: Connection, bare: Message, tree: ObjectTree) -> Message:
    run_id, message_id = bare.metadata.run_id, bare.metadata.message_id
    object_ids = [node.object_id for node in iterate_object_tree(tree)]
    contents = pull_objects(object_ids, partial(connection.pull_object, run_id))
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise ObjectPullError(message_id, "it is no message")
    message.metadata.__dict__["_message_id"] = message_id
    connection.confirm(run_id, message_id)
    return message


def _answered(answer: Callable[[Message], Message], message: Message) -> Message:
    try:
        return answer(message)
    except Exception as error:
        # The text of an unforeseen error may hold what must not leave: only its class goes out.
        log.exception("the message could not be answered")
        reason = f"{type(error).__name__}: the site's log has the details"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _give(connection: Connection, reply: Message, seconds: float) -> None:
    run_id = reply.metadata.run_id
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        wanted, session = connection.send(reply, get_object_tree(reply), seconds)
        objects = get_all_nested_objects(reply)
        push_object_contents_from_iterable(
            ((object_id, objects[object_id].deflate()) for object_id in wanted if object_id in objects),
            partial(connection.push_object, run_id, session),
        )


def _quiet_heartbeat(default: Callable[[threading.ExceptHookArgs], Any], problem: threading.ExceptHookArgs) -> None:
    """Flower's heartbeat thread ends with a traceback when the link does: the main loop says it in one line."""
    if problem.exc_type is RuntimeError or issubclass(problem.exc_type, grpc.RpcError):
        log.debug("heartbeat ended: %s", problem.exc_value)
    else:
        default(problem)
