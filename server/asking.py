"""One request to the sites, and what each of them did: replies are judged one by one, and good ones are used.

Remembers over a whole run who has refused, whose answers came too late, and what is wrong with whose audit log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from flwr.app import MessageType
from flwr.serverapp import Grid

from common.carrier import WIRE, Carrier
from common.errors import UpdateError
from common.job import Job
from common.update import Answer, Request
from server.consent import ANSWER_SECONDS
from server.exchange import Exchange, Reply
from server.records import LateAnswer, RoundRecord, SiteRound, SiteStatus
from server.replies import check_answer, norm_of_update
from server.witness import Witnesses, see_head

log = logging.getLogger("wardround.rounds")
Use = Callable[[Answer, Request], SiteStatus]
"""Takes a good answer, with the request that it answers. Raises UpdateError when it can't be used after all."""


class Watches(Protocol):
    """Who is told of an exchange under way."""

    def progress(self, record: RoundRecord, waiting: tuple[str, ...]) -> None:
        """Show the answers so far, and who is awaited. Nothing of it is kept."""


@dataclass
class Asker:
    """Asks the sites of one run. `refused` has the reason of each site that said no: it is not asked again."""

    job: Job
    run: str
    grid: Grid
    node_ids: Callable[[], Mapping[str, int]]
    recorder: Watches
    stopped: Callable[[], bool]
    witnesses: Witnesses
    refused: dict[str, str] = field(default_factory=dict)
    _suspicions: list[str] = field(default_factory=list)
    _stragglers: list[tuple[str, LateAnswer, float]] = field(default_factory=list)
    _under_way: dict[str, tuple[str, float, Request]] = field(default_factory=dict)

    def ask(
        self,
        request: Request,
        record: RoundRecord,
        use: Use,
        sites: tuple[str, ...],
        *,
        enough: int | None = None,
    ) -> RoundRecord:
        """Ask `sites`; return `record` with what each of them did, in the order of `sites`.

        With `enough` the round closes after so many good updates; sites that are still at work stay so, and their
        answer is taken in a later round.
        """
        started = time.monotonic()
        record = replace(record, started=record.started or time.time())
        if enough is None:
            self._give_up_on_those_at_work(record)
        exchange = self._exchange(request, tuple(site for site in sites if site not in self.refused))
        requests = {message: asked for message, (_, _, asked) in self._under_way.items()}
        done = {row.site: row for row in record.sites}
        self.recorder.progress(record, exchange.sites)
        used = 0
        for reply in exchange.replies():
            site = self._judge(reply, requests.get(reply.message, request), use)
            used += site.status == "trained"
            done[reply.site] = replace(site, seconds=reply.seconds, sent=exchange.sent, received=reply.received)
            self.recorder.progress(replace(record, sites=tuple(done.values())), exchange.waiting)
            del reply  # as in `replies`: its tensors are in the sum
            if enough is not None and used >= enough:
                break
        self._carrier.collect()
        late = self._late_answers()
        if enough is None:
            self._remember_stragglers(exchange.open, record)
        else:
            self._under_way = {
                message: (site, at, requests.get(message, request)) for message, (site, at) in exchange.left.items()
            }
        rows = tuple(done.get(site) or self._absent(site, exchange) for site in self._named(sites, done))
        warnings, self._suspicions = tuple(self._suspicions), []
        return replace(record, sites=rows, seconds=time.monotonic() - started, late=late, warnings=warnings)

    @property
    def numbers_under_way(self) -> set[int]:
        """The rounds of which an update is still awaited."""
        return {asked.number for _, _, asked in self._under_way.values()}

    @property
    def at_work(self) -> set[str]:
        """The sites whose update of an earlier round is still awaited."""
        return {site for site, _, _ in self._under_way.values()}

    @property
    def _carrier(self) -> Carrier:
        carrier: Carrier = getattr(self.grid, "carrier", WIRE)
        return carrier

    def _exchange(self, request: Request, sites: tuple[str, ...]) -> Exchange:
        deadline = self.job.aggregation.deadline_seconds
        if request.kind == "consent":
            deadline = min(ANSWER_SECONDS, deadline or ANSWER_SECONDS)
        if getattr(self.grid, "in_virtual_time", False):
            deadline = None  # the clock on the wall must not decide what a simulation comes to
        return Exchange(
            self.grid,
            self.node_ids,
            self._carrier.pack(request),
            MessageType.EVALUATE if request.kind == "evaluate" else MessageType.TRAIN,
            f"{request.kind}-{request.number}",
            (*sites, *(self.at_work - set(sites))),
            deadline,
            self.stopped,
            self.witnesses.witness,
            self._carrier,
            {message: (site, at) for message, (site, at, _) in self._under_way.items()},
        )

    def _named(self, sites: tuple[str, ...], done: Mapping[str, SiteRound]) -> tuple[str, ...]:
        """The sites that a round's record has a line for: those that were asked, and whoever answered all the same."""
        return (*sites, *(site for site in done if site not in set(sites)))

    def _judge(self, reply: Reply, request: Request, use: Use) -> SiteRound:
        """Decide what a reply is worth, and use it if it is good."""
        answer = reply.answer
        if answer is None:
            log.warning("run %s round %d: %s", self.run, request.number, reply.problem)
            return SiteRound(reply.site, "failed" if reply.broken else "rejected", reply.problem)
        try:
            check_answer(answer, request, reply.site)
            self._suspect(see_head(self.witnesses, reply.site, answer.head))
            if answer.version or answer.device:
                self.witnesses.see_machine(reply.site, answer.version, answer.device)
            if answer.status != "ok":
                self._see_no(reply.site, answer)
                return SiteRound(reply.site, answer.status, answer.reason)
            status = use(answer, request)
        except UpdateError as error:
            log.warning("run %s round %d: update rejected: %s", self.run, request.number, error)
            return SiteRound(reply.site, "rejected", str(error))
        norm = norm_of_update(answer.tensors, request.model) if answer.tensors is not None else None
        return SiteRound(
            reply.site, status, examples=answer.examples, metrics=dict(answer.metrics), norm=norm,
            statistics=answer.numbers.lists(),
        )  # fmt: skip

    def _see_no(self, site: str, answer: Answer) -> None:
        log.warning("run %s: %s %s: %s", self.run, site, answer.status, answer.reason)
        if answer.status == "refused":
            self.refused[site] = answer.reason
            if not answer.head and self.witnesses.witness(site):
                self._suspect(f"{site} does not show the audit log that was seen before: {answer.reason}")

    def _suspect(self, problem: str) -> None:
        """Remember what is wrong with a site's audit log, for the record of this exchange."""
        if problem:
            log.warning("run %s: %s", self.run, problem)
            self._suspicions.append(problem)

    def _absent(self, site: str, exchange: Exchange) -> SiteRound:
        if site in self.refused:
            return SiteRound(site, "excluded", f"refused before: {self.refused[site]}")
        if site in self.at_work:
            return SiteRound(site, "working", "still at work: its update is taken in a later round", sent=exchange.sent)
        if site in exchange.seen:
            return SiteRound(site, "late", "no answer before the round closed", sent=exchange.sent)
        known = site in self.node_ids()
        return SiteRound(site, "unreached", "not connected" if known else "no node of this name is admitted")

    def _give_up_on_those_at_work(self, record: RoundRecord) -> None:
        """Updates of earlier rounds are of no use to a request that waits for everybody: they count as late."""
        self._remember_stragglers({message: site for message, (site, _, _) in self._under_way.items()}, record)
        self._under_way = {}

    def _remember_stragglers(self, awaited: Mapping[str, str], record: RoundRecord) -> None:
        closed = time.monotonic()
        for message_id, site in awaited.items():
            answer = LateAnswer(record.kind, record.number, record.attempt, site, 0.0)
            self._stragglers.append((message_id, answer, closed))

    def _late_answers(self) -> tuple[LateAnswer, ...]:
        """Take the answers that came to rounds already closed off the grid, and tell of them."""
        late, still = [], []
        for message_id, answer, closed in self._stragglers:
            messages = list(self.grid.pull_messages([message_id]))
            if not messages:
                still.append((message_id, answer, closed))
            elif not messages[0].has_error():
                late.append(replace(answer, seconds=time.monotonic() - closed))
        self._stragglers = still
        return tuple(late)
