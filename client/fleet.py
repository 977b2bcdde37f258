"""Flower's own connection to the coordinator (TLS gRPC, calls signed by the site's key), fit for a resident service.

Flower's ends the process when the first call fails, loses its heartbeat for good at an unforeseen error, and waits
without end for a machine that lost its power. Here each end of the link is a LinkError with its reason in one line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.client.grpc_rere_client import connection
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.grpc import GRPC_MAX_MESSAGE_LENGTH, create_channel
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import RunNotRunningException

from common import flower as _settings  # noqa: F401 - both ends cut tensors into the same pieces
from common.errors import LinkError
from common.kit import Kit

CALL_PATIENCE_SECONDS = 30.0
"""How long a call that found nobody is tried again before the link counts as lost."""
LOOK_TIMEOUT_SECONDS, CALL_TIMEOUT_SECONDS = 30.0, 300.0
"""How long a call may take: to look for a message, and to send or fetch one part of it on a slow line."""
UNKNOWN_KEY = ("public key", "Failed to activate", "Invalid node ID", "Invalid signature")
Received = Callable[[], tuple[Message, ObjectTree] | None]
Keys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]
log = logging.getLogger("wardround.node")
logging.getLogger("flwr").setLevel(logging.CRITICAL)  # the node says what matters, in one line


@dataclass(frozen=True)
class Connection:
    """Flower's fleet connection, by name."""

    node_id: int
    receive: Received
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


class _NotConnectedError(Exception):
    """Flower could not open its connection."""


def _raise_instead_of_exit(_code: int, message: str | None = None, **_details: Any) -> NoReturn:
    """Stand in for Flower's way to end the process (it arms a timer that kills it) when a first call fails."""
    raise _NotConnectedError(message or "")


class _SteadyHeartbeat(HeartbeatSender):
    """Flower's heartbeat, which would end for good, unnoticed, at the first error that it does not expect."""

    def __init__(self, heartbeat_fn: Callable[[], bool]) -> None:
        super().__init__(partial(_beat, heartbeat_fn))


def _beat(heartbeat: Callable[[], bool]) -> bool:
    try:
        return heartbeat()
    except (grpc.RpcError, RuntimeError, RunNotRunningException) as error:
        log.debug("heartbeat: %s", error)
        return False


class _Timeouts(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """A limit for each call: without one, a call to a machine that lost its power is never over."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Set the call's timeout unless it has one."""
        usual = LOOK_TIMEOUT_SECONDS if details.method.endswith("/PullMessages") else CALL_TIMEOUT_SECONDS
        return continuation(details._replace(timeout=details.timeout or usual), request)


def _channel(*, interceptors: Sequence[Any], **settings: Any) -> grpc.Channel:
    return create_channel(interceptors=[_Timeouts(), *interceptors], **settings)


vars(connection).update(flwr_exit=_raise_instead_of_exit, HeartbeatSender=_SteadyHeartbeat, create_channel=_channel)


@contextmanager
def connect(kit: Kit, keys: Keys) -> Iterator[Connection]:
    """Open Flower's fleet connection. Raises LinkError for whatever ends it."""
    closing = threading.Event()

    def wait(seconds: float) -> None:
        closing.wait(seconds)  # Flower waits for its heartbeat before it says goodbye: that must not sleep on

    retry = RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.2, max_delay=2),
        recoverable_exceptions=grpc.RpcError,
        max_tries=None,
        max_time=CALL_PATIENCE_SECONDS,
        should_giveup=lambda error: _is_final(error) or closing.is_set(),
        wait_function=wait,
    )
    manager = connection.grpc_request_response(
        kit.address, False, retry, GRPC_MAX_MESSAGE_LENGTH, kit.authority_certificate.read_bytes(), keys
    )
    try:
        node_id, receive, send, _, _, pull_object, push_object, confirm = manager.__enter__()
    except (_NotConnectedError, grpc.RpcError) as error:
        raise LinkError(_refusal(kit, error)) from error
    try:
        yield Connection(node_id, partial(_receive_once, retry, receive), send, pull_object, push_object, confirm)
    except grpc.RpcError as error:
        raise LinkError(_refusal(kit, error)) from error
    finally:
        # Says goodbye if the coordinator is still there.
        closing.set()
        with suppress(Exception):
            manager.__exit__(None, None, None)


def _receive_once(retry: RetryInvoker, receive: Received) -> tuple[Message, ObjectTree] | None:
    """Look for a message, without another try when that fails.

    The coordinator counts a message as taken when it sends it: one that was lost on the way comes again only to a site
    that connects anew.
    """
    retry.max_tries = 1
    try:
        return receive()
    finally:
        retry.max_tries = None


def _is_final(error: Exception) -> bool:
    """Whether a failed call is not worth another try at once; a run that has ended is an exception of its own."""
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.PERMISSION_DENIED:
        raise RunNotRunningException
    return code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def _refusal(kit: Kit, error: Exception) -> str:
    """Say in one line why the coordinator did not go on with this site."""
    code = error.code() if isinstance(error, grpc.Call) else None
    # What the coordinator said, and not what gRPC says around it, which holds words of any kind.
    text = str(error.details() if isinstance(error, grpc.Call) else error)
    if any(sign in text for sign in UNKNOWN_KEY):
        return (
            f"{kit.address} does not know this site's key: it is not admitted, its certificate has ended, or it was "
            f"revoked: ask the coordinator of {kit.federation}"
        )
    if "timestamp" in text.lower():
        return (
            f"{kit.address} refuses this machine's clock: it is ahead by 5 seconds, or behind by 5 minutes, or more; "
            "set it (NTP) on both machines"
        )
    if "version" in text.lower():
        return f"{kit.address} runs another version of Flower: install the same version of Ward Round on both sides"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return f"the link to {kit.address} was lost"
    reason = next((line for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
    return f"{kit.address} refused this site: {reason.strip()[:200]}"
