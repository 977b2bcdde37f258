"""One exchange with the sites: a request goes out to each, replies come in lazily, one in memory at a time.

Knows Flower's Grid and nothing of training. A site that is away is no error: it is sent its message when it comes,
and again when Flower says that the message was lost, until the exchange closes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.carrier import WIRE, Carrier
from common.errors import UpdateError
from common.update import Answer

PATIENCE_SECONDS = 30 * 24 * 3600.0
"""How long an unanswered message is kept when the job sets no deadline."""
GRACE_SECONDS = 60.0
"""How long after the deadline a message is still kept, so that a late answer can be told from none."""
SHORTEST_PAUSE, LONGEST_PAUSE, ROLL_CALL_SECONDS = 0.01, 0.25, 1.0
UNREACHED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
log = logging.getLogger("wardround.rounds")


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop
    """The run was asked to stop while it waited."""


@dataclass(frozen=True)
class Reply:
    """What came back from one site: an answer, or the problem with what came instead (or why nothing could).

    `seconds` from sending to arrival; `received` is the size of the tensors in bytes, as they were sent; `message` the
    id of the message that it answers.
    """

    site: str
    answer: Answer | None
    problem: str = ""
    broken: bool = False
    seconds: float = 0.0
    received: int = 0
    message: str = ""


@dataclass
class Exchange:
    """A request under way to several sites. `open` says what is still awaited; iterate `replies` to take what comes.

    `deadline` in seconds from the start, or None to wait for every site. `node_ids` is looked at anew on every use:
    a site that is admitted or renewed while the exchange is open is reached as soon as it is there. `witness` gives
    the head of a site's audit log that is sent along. `under_way` are messages of earlier exchanges that are still
    awaited, by id, with the site and when they were sent: these sites are not sent another.
    """

    grid: Grid
    node_ids: Callable[[], Mapping[str, int]]
    content: RecordDict
    message_type: str
    group: str
    sites: tuple[str, ...]
    deadline: float | None = None
    stopped: Callable[[], bool] = lambda: False
    witness: Callable[[str], str] = lambda site: ""
    carrier: Carrier = WIRE
    under_way: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    open: dict[str, str] = field(default_factory=dict)
    _unsent: set[str] = field(default_factory=set)
    _sent_at: dict[str, float] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """The size of the request's tensors in bytes, for each site."""
        return self.carrier.size(self.content)

    @property
    def left(self) -> dict[str, tuple[str, float]]:
        """The messages that are still awaited, as `under_way` takes them."""
        return {message_id: (site, self._sent_at[site]) for message_id, site in self.open.items()}

    @property
    def waiting(self) -> tuple[str, ...]:
        """The sites whose reply is still awaited."""
        return tuple(site for site in self.sites if site in self._unsent or site in self.open.values())

    def replies(self) -> Iterator[Reply]:
        """Send the request, then yield replies as they come, until all are there or the deadline has passed.

        Whoever iterates may take any time with a reply: the next one is fetched only after it.

        Raises
        ------
        Stopped
            `stopped()` became true.
        """
        started, pause, roll_call = time.monotonic(), SHORTEST_PAUSE, float("-inf")
        self.open = {message_id: site for message_id, (site, _) in self.under_way.items()}
        self._sent_at = dict(self.under_way.values())
        self._unsent = set(self.sites) - set(self.open.values())
        while self.waiting:
            if self.stopped():
                raise Stopped
            if time.monotonic() - roll_call > ROLL_CALL_SECONDS:
                roll_call = time.monotonic()
                self._call_the_roll()
            some = False
            for wanted in self._turns():
                for message in self.grid.pull_messages(wanted):
                    reply = self._read(message, message.metadata.reply_to_message_id)
                    del message
                    if reply is not None:
                        some = True
                        yield reply
                    del reply  # its tensors are used by now; the next message must not find them in memory
            if self.deadline is not None and time.monotonic() - started > self.deadline:
                return
            pause = SHORTEST_PAUSE if some else min(LONGEST_PAUSE, pause * 1.05)
            if self.waiting and not some:
                time.sleep(pause)

    def _turns(self) -> Iterable[Iterable[str]]:
        """What to ask the grid for, call by call, so that one reply at a time is in memory."""
        if getattr(self.grid, "one_at_a_time", False):
            return (self.open.keys(),) if self.open else ()
        return [(message_id,) for message_id in self.open]

    def _call_the_roll(self) -> None:
        """See who is here; send (again) to those that have no message waiting."""
        here, node_ids = set(self.grid.get_node_ids()), self.node_ids()
        self.seen |= {site for site in self.sites if node_ids.get(site) in here}
        self._send(tuple(site for site in self.sites if site in self._unsent and node_ids.get(site) in here))

    def _send(self, sites: tuple[str, ...]) -> None:
        node_ids = self.node_ids()
        ttl = PATIENCE_SECONDS if self.deadline is None else self.deadline + GRACE_SECONDS
        known = [site for site in sites if site in node_ids]
        messages = [
            Message(
                self.carrier.address(self.content, self.witness(site)),
                node_ids[site],
                self.message_type,
                ttl=ttl,
                group_id=self.group,
            )
            for site in known
        ]
        if not messages:
            return
        taken = list(self.grid.push_messages(messages))
        for position, (site, message) in enumerate(zip(known, messages, strict=True)):
            # Some of Flower's grids leave a message that they can't take out of their list, some put None in its place.
            message_id = taken[position] if len(taken) == len(messages) else message.metadata.message_id
            if message_id and message_id in taken:
                self.open[message_id] = site
                self._unsent.discard(site)
                self._sent_at.setdefault(site, time.monotonic())

    def _read(self, message: Message, message_id: str) -> Reply | None:
        """Turn a message into a reply; None when it only says that the request or the reply was lost."""
        site = self.open.pop(message_id)
        seconds = time.monotonic() - self._sent_at[site]
        if message.has_error():
            if message.error.code in UNREACHED:
                log.info("%s went away: it is asked again when it is back", site)
                self._unsent.add(site)
                return None
            reason = (message.error.reason or "no reason given").strip().splitlines()[-1]
            return Reply(site, None, f"the site's app failed: {reason[:300]}", True, seconds, message=message_id)
        self.seen.add(site)
        received = self.carrier.size(message.content)
        try:
            answer = self.carrier.unpack(message.content)
            return Reply(site, answer, seconds=seconds, received=received, message=message_id)
        except UpdateError as error:
            return Reply(site, None, str(error), seconds=seconds, received=received, message=message_id)
        finally:
            self.carrier.drop(message.content)
