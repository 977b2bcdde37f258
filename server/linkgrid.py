"""Flower's Grid over the state of the link, in this process: what the round loop sends to sites, and what comes back.

Flower's own Grid gives a message up when its site has been away for a minute. Here it waits, and the reply of a site
that has gone since is read all the same. Only what the site took and can't answer any more is given up.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.server.superlink.linkstate import SqlLinkState
from flwr.server.superlink.linkstate.utils import convert_sint64_values_in_dict_to_uint64, dict_to_message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.run import Run
from flwr.supercore.state.schema.corestate_models import ObjectPushSession, ObjectPushSessionRoot
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from common.errors import RunError

LOOK_SECONDS = 0.02

WHERE_IT_IS = """
    SELECT asked.delivered_at AS taken, reply.message_id AS reply
    FROM message_ins asked LEFT JOIN message_res reply ON reply.reply_to_message_id = asked.message_id
    WHERE asked.message_id = :message_id
"""
THE_REPLY = "SELECT * FROM message_res WHERE message_id = :message_id"


@dataclass(frozen=True)
class SiteState:
    """An admitted site as the link sees it. Times are in UTC; `last_seen` is None for a site that never came."""

    name: str
    node_id: int
    online: bool
    last_seen: datetime | None


class Members(Protocol):
    """The sites of a run."""

    @property
    def node_ids(self) -> Mapping[str, int]:
        """The node id of each that is admitted now, by name."""

    def states(self) -> list[SiteState]:
        """Look whether each of them is here."""


@dataclass(frozen=True)
class _Pushed:
    """A message under way: to which node, and until when (seconds since the epoch) it may be answered."""

    node_id: int
    until: float


class LinkGrid(Grid):
    """Flower's Grid for one run.

    Guarantees
    ----------
    A message goes only to a node of the run. Tensors that several messages share are stored once. Replies are read from
    the database one at a time, when asked for, and are gone from it once read. A message whose site is away waits
    for it. A message that a site took and lost with its process, or whose site was revoked, is answered by an error
    of code MESSAGE_UNAVAILABLE, and a reply that broke off by one of REPLY_MESSAGE_UNAVAILABLE: send it again.
    """

    def __init__(self, state: SqlLinkState, run: Run, members: Members, activated: Mapping[int, datetime]) -> None:
        """`activated` says when each node last came (UTC), and goes on changing."""
        self._state, self._run, self._members, self._activated = state, run, members, activated
        self._pushed: dict[str, _Pushed] = {}

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
        return [site.node_id for site in self._members.states() if site.online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store messages for their nodes; return an id each, in order.

        It is "" for a message that is not for a node of the run, or for one that never came yet: Flower keeps none.

        Raises
        ------
        RunError
            The database can't take them: the disk is full, for one.
        """
        allowed = {site.node_id for site in self._members.states() if site.last_seen is not None}
        with _readable_errors(), no_object_id_recompute():
            return [self._push(message) if message.metadata.dst_node_id in allowed else "" for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies that are there, reading each from the database only when it is asked for.

        Raises
        ------
        RunError
            The database can't be read.
        """
        for message_id in message_ids:
            with _readable_errors():
                reply = self._pull(message_id)
            if reply is not None:
                yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return the replies that come within `timeout` seconds (None: wait for all)."""
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            for message_id in tuple(waiting):
                for reply in self.pull_messages([message_id]):
                    waiting.discard(message_id)
                    replies.append(reply)
            time.sleep(LOOK_SECONDS)
        return replies

    def _push(self, message: Message) -> str:
        message_id, run_id = message.object_id, self._run.run_id
        message.metadata.__dict__["_message_id"] = message_id
        store, objects = self._state.object_store, get_all_nested_objects(message)
        # Objects first: a site takes a message as soon as it is there, and would wait for what is not yet.
        for object_id in store.preregister(run_id, get_object_tree(message)):
            store.put(object_id, objects[object_id].deflate())
        if self._state.store_message_ins(remove_content_from_message(message)) is None:
            store.delete(message_id)
            return ""
        expires = message.metadata.created_at + message.metadata.ttl
        self._pushed[message_id] = _Pushed(message.metadata.dst_node_id, expires)
        return message_id

    def _pull(self, message_id: str) -> Message | None:
        """The reply to a message; None while it is awaited."""
        pushed, found = self._pushed.get(message_id), self._state.query(WHERE_IT_IS, {"message_id": message_id})
        if pushed is None or not found:
            return self._given_up(message_id, "the message is gone")
        taken, reply_id = found[0]["taken"], found[0]["reply"]
        came = self._activated.get(pushed.node_id)
        renewed = bool(taken and came and came > datetime.fromisoformat(taken))
        if reply_id is not None and (whole := self._is_whole(reply_id)) is not None:
            return self._read(message_id, reply_id) if whole else self._broken(message_id, reply_id)
        if renewed:
            return self._given_up(message_id, "the site came anew and has lost it")
        if pushed.node_id not in self._members.node_ids.values():
            return self._given_up(message_id, "the site is no longer on the roster")
        return self._given_up(message_id, "its time has passed") if time.time() > pushed.until else None

    def _is_whole(self, reply_id: str) -> bool | None:
        """Whether all of a reply is here; None while it is on its way: so long Flower keeps a session for it."""
        query = select(ObjectPushSession.expires_at).join(
            ObjectPushSessionRoot, ObjectPushSessionRoot.session_id == ObjectPushSession.session_id
        )
        with self._state.session() as session:
            expires = session.scalar(query.where(ObjectPushSessionRoot.root_object_id == reply_id))
        if expires is None:
            return True
        return False if expires <= datetime.now(UTC) else None

    def _read(self, message_id: str, reply_id: str) -> Message:
        (row,) = self._state.query(THE_REPLY, {"message_id": reply_id})
        convert_sint64_values_in_dict_to_uint64(row, ["run_id", "src_node_id", "dst_node_id"])
        bare = dict_to_message(row)
        try:
            message = bare if bare.has_error() else self._inflated(reply_id)
        except (NoObjectInStoreError, KeyError, ValueError, TypeError):
            return self._broken(message_id, reply_id)
        self._forget(message_id, reply_id)
        return message

    def _inflated(self, reply_id: str) -> Message:
        store = self._state.object_store
        contents: dict[str, bytes] = {}
        for node in iterate_object_tree(store.get_object_tree(reply_id)):
            content = store.get(node.object_id)
            if not content:
                raise NoObjectInStoreError(f"object {node.object_id} is not there")
            contents[node.object_id] = content
        message = inflate_object_from_contents(reply_id, contents)
        if not isinstance(message, Message):
            raise TypeError(f"object {reply_id} is no message")
        message.metadata.__dict__["_message_id"] = reply_id
        return message

    def _broken(self, message_id: str, reply_id: str) -> Message:
        self._forget(message_id, reply_id)
        return self._error(message_id, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "the reply did not arrive whole")

    def _given_up(self, message_id: str, reason: str) -> Message:
        self._forget(message_id)
        return self._error(message_id, ErrorCode.MESSAGE_UNAVAILABLE, reason)

    def _forget(self, *object_ids: str) -> None:
        """Drop a message and its reply with all that belongs to them alone."""
        self._pushed.pop(object_ids[0], None)
        self._state.delete_messages({object_ids[0]})
        for object_id in object_ids:
            self._state.object_store.delete(object_id)

    def _error(self, message_id: str, code: int, reason: str) -> Message:
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
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__)
        raise RunError(f"the link's database can't be used ({reason}): see to the disk, then resume the run") from error
