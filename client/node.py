"""The resident node: Flower's fleet link, kept open, each message handed to the code installed here.

The stock SuperNode fetches the app's code from the server and starts a new process for every message. This node fetches
no code and starts nothing: the coordinator can send numbers and a declarative job, never a program.

On this side, this file and `client/fleet.py` are all that touches Flower's internals (1.39).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
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
from flwr.supercore.run import RunNotRunningException

from certs.pem import read_private_key
from client.fleet import Connection, connect
from client.probe import LinkReport, probe
from common.errors import LinkError
from common.kit import Kit

__all__ = ["LinkReport", "check_admission", "probe", "run_node"]

SHORTEST_POLL, LONGEST_POLL, POLLS_GROW_OVER = 0.05, 1.0, 100.0
"""Seconds between two looks for a message: the longer there was none, the longer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds before the link is tried again."""
STEADY_SECONDS = 30.0
"""A link that held so long starts again from the first pause."""
log = logging.getLogger("wardround.node")


def run_node(
    kit: Kit,
    answer: Callable[[Message], Message],
    *,
    stop: threading.Event,
    on_state: Callable[[str], None] | None = None,
) -> None:
    """Connect to the coordinator and answer its messages until `stop` is set; reconnect for ever.

    `on_state` is told each change of the link, and the size of each exchange, in one line. An exception in `answer`
    costs that message only: the coordinator gets an error reply, which names its class and nothing of its text.

    Raises
    ------
    KitError
        The site's key can't be read.
    """
    key = read_private_key(kit.key)
    say, pause, last = on_state or log.info, FIRST_PAUSE, ""
    while not stop.is_set():
        started = time.monotonic()
        try:
            probe(kit)
            with connect(kit, (key, key.public_key())) as connection:
                say(f"connected to {kit.address} as node {connection.node_id}")
                last = ""
                _serve(connection, answer, stop, say)
        except LinkError as error:
            if str(error) != last:
                say(f"{error}; trying again until it works")
                last = str(error)
        if time.monotonic() - started > STEADY_SECONDS:
            pause = FIRST_PAUSE
        # Jitter, so that a hundred sites do not come back in the same instant.
        stop.wait(pause * random.uniform(0.7, 1.3))  # noqa: S311
        pause = min(pause * 1.7, LONGEST_PAUSE)


def check_admission(kit: Kit) -> int:
    """Connect once with the site's key, and return the node id that the coordinator knows it by.

    Raises
    ------
    LinkError
        As `probe`, or the coordinator does not accept the key.
    """
    probe(kit)
    key = read_private_key(kit.key)
    with connect(kit, (key, key.public_key())) as connection:
        return connection.node_id


def _serve(
    connection: Connection, answer: Callable[[Message], Message], stop: threading.Event, say: Callable[[str], None]
) -> None:
    """Take messages and give replies until `stop` is set. Raises grpc.RpcError when the link is lost."""
    idle_since = time.monotonic()
    while not stop.is_set():
        if (received := connection.receive()) is None:
            idle = time.monotonic() - idle_since
            stop.wait(min(LONGEST_POLL, max(SHORTEST_POLL, idle / POLLS_GROW_OVER)))
            continue
        try:
            _exchange(connection, answer, *received, say)
        except (RunNotRunningException, ObjectPullError, ObjectPushError):
            # The run ended, or the coordinator has sent the message anew: nobody waits for this reply.
            say(f"the coordinator no longer waits for the answer to {received[0].metadata.message_type}")
        idle_since = time.monotonic()


def _exchange(
    connection: Connection,
    answer: Callable[[Message], Message],
    bare: Message,
    tree: ObjectTree,
    say: Callable[[str], None],
) -> None:
    started = time.monotonic()
    message, received = _take(connection, bare, tree)
    taken = time.monotonic()
    reply = _answered(answer, message)
    answered = time.monotonic()
    sent = _give(connection, reply, answered - taken)
    say(
        f"{bare.metadata.message_type} {bare.metadata.group_id}: received {received / 1e6:.1f} MB in "
        f"{taken - started:.1f} s, answered in {answered - taken:.1f} s, sent {sent / 1e6:.1f} MB in "
        f"{time.monotonic() - answered:.1f} s"
    )


def _take(connection: Connection, bare: Message, tree: ObjectTree) -> tuple[Message, int]:
    """Fetch a message's objects and put it together; also return their size in bytes."""
    run_id, message_id = bare.metadata.run_id, bare.metadata.message_id
    # Tensors that are alike are one object in several places: each is fetched once.
    object_ids = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
    contents = pull_objects(object_ids, partial(connection.pull_object, run_id), initial_backoff=FIRST_PAUSE)
    size = sum(len(content) for content in contents.values())
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise ObjectPullError(message_id, "it is no message")
    message.metadata.__dict__["_message_id"] = message_id
    connection.confirm(run_id, message_id)
    return message, size


def _answered(answer: Callable[[Message], Message], message: Message) -> Message:
    try:
        return answer(message)
    except Exception as error:
        # The text of an unforeseen error may hold what must not leave: only its class goes out.
        log.exception("the message could not be answered")
        reason = f"{type(error).__name__}: the site's log has the details"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _give(connection: Connection, reply: Message, seconds: float) -> int:
    """Send a reply: those of its objects that the coordinator does not have. Returns their size in bytes."""
    run_id, sizes = reply.metadata.run_id, []
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        wanted, session = connection.send(reply, get_object_tree(reply), seconds)
        objects = get_all_nested_objects(reply)

        def push(object_id: str, content: bytes) -> None:
            connection.push_object(run_id, session, object_id, content)
            sizes.append(len(content))

        push_object_contents_from_iterable(
            ((object_id, objects[object_id].deflate()) for object_id in wanted if object_id in objects), push
        )
    return sum(sizes)
