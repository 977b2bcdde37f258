"""A Flower Grid without a network: every node is a function in this process.

The round loop and the strategies can't tell it from a deployment: the same messages in Flower's own types. Over
`of_sites` they go through the same encoding and validation as there, only not through protobuf. `by_reference` hands
requests and answers over as they are, for simulations.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable, KeysView, Mapping
from typing import Protocol

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.carrier import WIRE, ByReference, Carried, Carrier
from common.errors import WardroundError
from common.update import Answer, Request, decode_request, encode_answer

Node = Callable[[Message], Message]
log = logging.getLogger("wardround.grid")


class AnswersRequests(Protocol):
    """What the grid needs of a site: `client.site.Site` has it."""

    def answer(self, request: Request) -> Answer:
        """Do what `request` asks, or say why not."""


def node_of(site: AnswersRequests) -> Node:
    """Return a node that decodes a message, lets `site` answer, and encodes the answer, as a deployed site does."""

    def answer(message: Message) -> Message:
        return Message(encode_answer(site.answer(decode_request(message.content))), reply_to=message)

    return answer


BY_REFERENCE = ByReference()


class InProcessGrid(Grid):
    """A grid over `nodes`, by node id. A node runs when its reply is asked for, one at a time.

    Time is virtual: a message takes 1, or as long as `pace` says of its node; `clock` is when the last reply came.

    Guarantees: of the messages asked for, the one that is done first is answered first; of equals, the one that was
    pushed first. A node that raises gives an error reply, as in Flower, and costs only its own turn. One reply is made
    for each pull, so that whoever sums them up holds one at a time.
    """

    one_at_a_time = True

    in_virtual_time = True
    """No exchange closes because this machine is slow."""

    def __init__(
        self,
        nodes: Mapping[int, Node],
        *,
        run_id: int = 1,
        pace: Mapping[int, float] | None = None,
        carrier: Carrier = WIRE,
    ) -> None:
        self._nodes = dict(nodes)
        self._pace = pace or {}
        self.carrier = carrier
        self.clock = 0.0
        self._pushed = 0
        self._queue: list[tuple[float, int, str]] = []
        self._waiting: dict[str, Message] = {}
        self.set_run(Run.create_empty(run_id))

    @classmethod
    def by_reference(
        cls, answer: Callable[[int, Request], Answer], node_ids: Iterable[int], pace: Mapping[int, float]
    ) -> InProcessGrid:
        """Return a grid over nodes that `answer` speaks for, given a node's id: nothing is encoded or copied."""

        def node(message: Message) -> Message:
            request = BY_REFERENCE.request_in(message.content)
            return cls.reply_with(message, answer(message.metadata.dst_node_id, request))

        return cls(dict.fromkeys(node_ids, node), pace=pace, carrier=BY_REFERENCE)

    @classmethod
    def of_sites(cls, sites: Mapping[str, AnswersRequests]) -> tuple[InProcessGrid, dict[str, int]]:
        """Return a grid over `sites` and the node id of each site's name, from 1 in the order of `sites`."""
        node_ids = {name: number for number, name in enumerate(sites, start=1)}
        return cls({node_ids[name]: node_of(site) for name, site in sites.items()}), node_ids

    @staticmethod
    def reply_with(message: Message, answer: Answer) -> Message:
        """Return the reply to `message` that holds `answer` itself."""
        reply = Message(Carried(answer), reply_to=message)
        reply.metadata.__dict__["_message_id"] = f"reply-to-{message.metadata.message_id}"
        return reply

    def set_run(self, run: Run) -> None:
        """Set the run whose id messages carry."""
        self._run = run
        # Flower's Message constructor takes the sender from here; outside a Flower process nobody else sets it.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, SUPERLINK_NODE_ID

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message of this run to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in their order."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; return an id for each, in order ("" for a node that is not here, as Flower does)."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the node that is done first answer; return its reply in a list, or no reply when none waits."""
        wanted = message_ids if isinstance(message_ids, KeysView) else set(message_ids)
        others: list[tuple[float, int, str]] = []
        found: str | None = None
        while self._queue and found is None:
            entry = heapq.heappop(self._queue)
            if entry[2] in wanted:
                self.clock = max(self.clock, entry[0])
                found = entry[2]
            else:
                others.append(entry)
        for entry in others:
            heapq.heappush(self._queue, entry)
        return [] if found is None else [self._reply(found)]

    def _reply(self, message_id: str) -> Message:
        return self._run_node(self._waiting.pop(message_id))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push `messages` and return the replies that come within `timeout` seconds, in order."""
        message_ids = self.push_messages(messages)
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while (end is None or time.monotonic() < end) and (reply := list(self.pull_messages(message_ids))):
            replies += reply
        return replies

    def _push(self, message: Message) -> str:
        if message.metadata.dst_node_id not in self._nodes:
            return ""
        self._pushed += 1
        message_id = f"message-{self._pushed}"
        message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids set it
        self._waiting[message_id] = message
        done = self.clock + self._pace.get(message.metadata.dst_node_id, 1.0)
        heapq.heappush(self._queue, (done, self._pushed, message_id))
        return message_id

    def _run_node(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        try:
            reply = self._nodes[node_id](message)
        except WardroundError as error:
            log.error("node %d: %s", node_id, error)
            reply = _failure(message, str(error))
        except Exception as error:
            log.exception("node %d failed", node_id)
            reply = _failure(message, f"{type(error).__name__}: {error}")
        reply.metadata.__dict__["_message_id"] = f"reply-to-{message.metadata.message_id}"
        return reply


def _failure(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
