"""The round loop: asks the sites that the job names, adds up what they send, keeps the books of every round.

Knows Flower's Grid, a strategy and a recorder; it is the same in a deployment, under stock `flwr run`, and in a
simulation. It holds one site's update at a time beside the running sum.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from flwr.app import MessageType
from flwr.serverapp import Grid

from common.errors import RunError, UpdateError
from common.job import Job
from common.update import Answer, Request, Tensors, encode_request
from server.aggregation import RunningMean
from server.central import Central, ClippedSum
from server.consent import ANSWER_SECONDS, gather, pause
from server.criterion import build_criterion
from server.exchange import Exchange, Reply
from server.records import Kept, LateAnswer, RoundRecord, SiteRound, SiteStatus
from server.replies import check_answer, check_update
from server.strategies.registry import build_strategy
from server.witness import NoWitnesses, Witnesses, see_head

SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 600.0
"""Before a round is tried again that only lacks sites that wait: doubled each time."""
log = logging.getLogger("wardround.rounds")


class Recorder(Protocol):
    """Where the loop's results go. Each `commit` is all or nothing; what it has taken is never lost."""

    def progress(self, record: RoundRecord, waiting: tuple[str, ...]) -> None:
        """Show an exchange under way: the answers so far, and who is awaited. Nothing of it is kept."""

    def commit(self, record: RoundRecord, model: Tensors | None, best: Kept | None) -> None:
        """Keep a round, the new model if it made one, and which model is the best so far."""

    def load(self, number: int) -> Tensors:
        """Return the model after round `number`: the last, or the best one committed."""


@dataclass(frozen=True)
class Start:
    """Where a run starts, or goes on from: all that the loop needs of what was committed before.

    `number` is the last committed round (0: none), `attempts` how often the next one was tried without quorum,
    `examples` the sites' counts so far as known, `validated` whether the last model was evaluated already,
    `clip_norm` where an adaptive clip norm had got to.
    """

    model: Tensors
    number: int = 0
    attempts: int = 0
    best: Kept | None = None
    examples: Mapping[str, int] = field(default_factory=dict)
    validated: bool = False
    clip_norm: float | None = None


class RoundLoop:
    """One run of a job, from `start` to its end."""

    def __init__(
        self,
        job: Job,
        run: str,
        grid: Grid,
        node_ids: Callable[[], Mapping[str, int]],
        recorder: Recorder,
        start: Start,
        *,
        stopped: Callable[[], bool] = lambda: False,
        witnesses: Witnesses | None = None,
    ) -> None:
        """Take the parts together. Raises JobError for a strategy or criterion that there is not."""
        self._job, self._run, self._grid, self._node_ids, self._stopped = job, run, grid, node_ids, stopped
        self._recorder = recorder
        self._witnesses = witnesses or NoWitnesses()
        self._suspicions: list[str] = []
        self._strategy = build_strategy(job.aggregation)
        self._criterion = build_criterion(job.aggregation.criterion)
        self._model, self._number, self._best = start.model, start.number, start.best
        self._attempts, self._failed, self._validated = start.attempts, 0, start.validated
        self._pause, self._waited = SHORTEST_PAUSE, 0.0
        self._examples = dict(start.examples)
        self._refused: dict[str, str] = {}
        self._central = Central(job, start.clip_norm) if job.privacy.mechanism == "central" else None
        self._stragglers: list[tuple[str, LateAnswer, float]] = []

    def run(self) -> Kept:
        """Do all rounds, then evaluate the last model on "validation" and the kept one on "test"; return which it is.

        Raises
        ------
        RunError
            Too many rounds in a row without quorum, or a quorum that can't be reached any more.
        Stopped
            The run was asked to stop; everything committed so far stands.
        """
        if self._number < self._job.aggregation.rounds:
            self._ask_consent()
        while self._number < self._job.aggregation.rounds:
            self._round()
        if not self._validated:
            self._evaluate("validation", self._model, self._number)
        kept = self._best or Kept(self._number, None)
        model = self._model if kept.round == self._number else self._recorder.load(kept.round)
        self._evaluate("test", model, kept.round)
        return kept

    def _ask_consent(self) -> None:
        """Ask every site whether the job may run there; wait for those where a person decides."""
        wanted = self._job.aggregation
        request = Request("consent", self._run, self._number, self._job, {})
        record = RoundRecord("consent", self._number, 1, "asked", (), started=time.time())

        suspicions: dict[str, None] = {}

        def ask(sites: tuple[str, ...], before: Mapping[str, SiteRound]) -> Mapping[str, SiteRound]:
            others = tuple(row for site, row in before.items() if site not in sites)
            asked = self._exchange(request, replace(record, sites=others), lambda answer: "agreed", sites)
            suspicions.update(dict.fromkeys(asked.warnings))
            return {row.site: row for row in asked.sites if row.site in sites}

        said = gather(self._job.sites, ask, wanted.approval_seconds, self._stopped)
        self._refused |= {site: row.reason for site, row in said.items() if row.status == "refused"}
        self._examples |= {site: row.examples for site, row in said.items() if row.examples}
        rows, seconds = tuple(said[site] for site in self._job.sites), time.time() - record.started
        record = replace(record, sites=rows, seconds=seconds, warnings=tuple(suspicions))
        self._recorder.commit(record, None, self._best)
        self._require_possible_quorum()

    def _round(self) -> None:
        request = Request("train", self._run, self._number + 1, self._job, self._model)
        total = self._central.begin(self._model) if self._central else RunningMean(self._model)
        record = self._exchange(
            request,
            RoundRecord("train", request.number, self._attempts + 1, "no quorum", ()),
            lambda answer: self._add(answer, total),
        )
        trained = record.named("trained")
        share = self._share(trained)
        problem = self._no_quorum(trained, share)
        record = replace(record, share=share, score=self._criterion.score(list(record.sites)))
        if problem:
            self._commit_failed(replace(record, reason=problem))
            return
        if isinstance(total, ClippedSum) and self._central is not None:
            mean, central = self._central.finish(total, request.number)
            record = replace(record, central=central)
        elif isinstance(total, RunningMean):
            mean = total.mean()
        self._commit(record, self._strategy.next_model(self._model, mean))

    def _add(self, answer: Answer, total: RunningMean | ClippedSum) -> SiteStatus:
        tensors = check_update(answer, self._model, self._examples.get(answer.site))
        total.add(tensors, answer.examples, answer.site)
        self._examples[answer.site] = answer.examples
        return "trained"

    def _commit(self, record: RoundRecord, model: Tensors) -> None:
        """Keep a round with quorum. Its score is that of the model before it, which may turn out the best so far."""
        if record.number > 1 and self._criterion.better(record.score, self._best):
            self._best = Kept(record.number - 1, record.score)
        trained = record.named("trained")
        missing = self._missing(record)
        warnings = (*record.warnings, *missing)
        for warning in warnings:
            log.warning("run %s round %d: %s", self._run, record.number, warning)
        sites = tuple(replace(site, status="aggregated") if site.site in trained else site for site in record.sites)
        record = replace(record, status="aggregated", sites=sites, whole=not missing, warnings=warnings)
        self._recorder.commit(record, model, self._best)
        self._model, self._number, self._failed = model, record.number, 0
        self._attempts, self._pause, self._waited = 0, SHORTEST_PAUSE, 0.0
        log.info("run %s round %d: %d sites aggregated", self._run, self._number, len(trained))

    def _commit_failed(self, record: RoundRecord) -> None:
        """Keep a round without quorum: the model stays, and the same round is tried again.

        A round that only lacks sites that wait for their hours, or for a person, has not failed: it is tried later,
        until they have waited as long as the job allows.
        """
        log.warning("run %s round %d, attempt %d: %s", self._run, record.number, record.attempt, record.reason)
        self._recorder.commit(record, None, self._best)
        self._attempts += 1
        self._require_possible_quorum()
        wanted, waiting = self._job.aggregation, record.named("waiting")
        only_waits = len(waiting) + len(record.named("trained")) >= wanted.min_sites
        if waiting and only_waits and self._waited <= wanted.approval_seconds:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
            self._waited += self._pause
            pause(self._pause, self._stopped)
            return
        self._failed += 1
        if self._failed >= self._job.aggregation.max_failed_rounds:
            raise RunError(f"round {record.number} found no quorum {self._failed} times in a row: {record.reason}")

    def _require_possible_quorum(self) -> None:
        """Raise RunError when so many sites have refused that no round can find its quorum."""
        left = [site for site in self._job.sites if site not in self._refused]
        if len(left) < self._job.aggregation.min_sites:
            reasons = "; ".join(f"{site} refused: {reason}" for site, reason in self._refused.items())
            raise RunError(f"the quorum of {self._job.aggregation.min_sites} can't be reached any more: {reasons}")

    def _evaluate(self, split: Literal["validation", "test"], model: Tensors, number: int) -> None:
        request = Request("evaluate", self._run, number, self._job, model, split)
        record = self._exchange(request, RoundRecord(split, number, 1, "evaluated", ()), lambda answer: "evaluated")
        score = self._criterion.score(list(record.sites))
        if split == "validation" and self._criterion.better(score, self._best):
            self._best = Kept(number, score)
        warnings = tuple(
            f"{site.site} is missing from the evaluation on {split}: {site.reason or site.status}"
            for site in record.sites
            if site.status != "evaluated"
        )
        warnings = (*record.warnings, *warnings)
        self._recorder.commit(replace(record, score=score, warnings=warnings), None, self._best or Kept(number, None))

    def _exchange(
        self,
        request: Request,
        record: RoundRecord,
        use: Callable[[Answer], SiteStatus],
        only: tuple[str, ...] = (),
    ) -> RoundRecord:
        """Ask the sites, or `only` some; return `record` with what each of them did, in the job's order of sites."""
        started = time.monotonic()
        record = replace(record, started=record.started or time.time())
        deadline = self._job.aggregation.deadline_seconds
        exchange = Exchange(
            self._grid,
            self._node_ids,
            encode_request(request),
            MessageType.EVALUATE if request.kind == "evaluate" else MessageType.TRAIN,
            f"{request.kind}-{request.number}",
            only or tuple(site for site in self._job.sites if site not in self._refused),
            min(ANSWER_SECONDS, deadline or ANSWER_SECONDS) if request.kind == "consent" else deadline,
            self._stopped,
            self._witnesses.witness,
        )
        done = {row.site: row for row in record.sites}
        self._recorder.progress(record, exchange.sites)
        for reply in exchange.replies():
            site = self._judge(reply, request, use)
            done[reply.site] = replace(site, seconds=reply.seconds, sent=exchange.sent, received=reply.received)
            self._recorder.progress(replace(record, sites=tuple(done.values())), exchange.waiting)
            del reply  # as in `replies`: its tensors are in the sum
        gc.collect()  # the request's encoded model: Flower's records refer to themselves
        late = self._late_answers()
        self._remember_stragglers(exchange, record)
        rows = tuple(done.get(site) or self._absent(site, exchange) for site in self._job.sites)
        warnings, self._suspicions = tuple(self._suspicions), []
        return replace(record, sites=rows, seconds=time.monotonic() - started, late=late, warnings=warnings)

    def _judge(self, reply: Reply, request: Request, use: Callable[[Answer], SiteStatus]) -> SiteRound:
        """Decide what a reply is worth, and use it if it is good."""
        answer = reply.answer
        if answer is None:
            log.warning("run %s round %d: %s", self._run, request.number, reply.problem)
            return SiteRound(reply.site, "failed" if reply.broken else "rejected", reply.problem)
        try:
            check_answer(answer, request, reply.site)
            self._suspect(see_head(self._witnesses, reply.site, answer.head))
            if answer.status != "ok":
                log.warning("run %s: %s %s: %s", self._run, reply.site, answer.status, answer.reason)
                if answer.status == "refused":
                    self._refused[reply.site] = answer.reason
                    if not answer.head and self._witnesses.witness(reply.site):
                        self._suspect(f"{reply.site} does not show the audit log that was seen before: {answer.reason}")
                return SiteRound(reply.site, answer.status, answer.reason)
            status = use(answer)
        except UpdateError as error:
            log.warning("run %s round %d: update rejected: %s", self._run, request.number, error)
            return SiteRound(reply.site, "rejected", str(error))
        return SiteRound(reply.site, status, examples=answer.examples, metrics=dict(answer.metrics))

    def _suspect(self, problem: str) -> None:
        """Remember what is wrong with a site's audit log, for the record of this exchange."""
        if problem:
            log.warning("run %s: %s", self._run, problem)
            self._suspicions.append(problem)

    def _absent(self, site: str, exchange: Exchange) -> SiteRound:
        if site in self._refused:
            return SiteRound(site, "excluded", f"refused before: {self._refused[site]}")
        if site in exchange.seen:
            return SiteRound(site, "late", "no answer before the round closed", sent=exchange.sent)
        known = site in self._node_ids()
        return SiteRound(site, "unreached", "not connected" if known else "no node of this name is admitted")

    def _remember_stragglers(self, exchange: Exchange, record: RoundRecord) -> None:
        closed = time.monotonic()
        for message_id, site in exchange.open.items():
            answer = LateAnswer(record.kind, record.number, record.attempt, site, 0.0)
            self._stragglers.append((message_id, answer, closed))

    def _late_answers(self) -> tuple[LateAnswer, ...]:
        """Take the answers that came to rounds already closed off the grid, and tell of them."""
        late, still = [], []
        for message_id, answer, closed in self._stragglers:
            messages = list(self._grid.pull_messages([message_id]))
            if not messages:
                still.append((message_id, answer, closed))
            elif not messages[0].has_error():
                late.append(replace(answer, seconds=time.monotonic() - closed))
        self._stragglers = still
        return tuple(late)

    def _share(self, trained: tuple[str, ...]) -> float | None:
        """The part of all known training cases that the sites `trained` hold."""
        known = sum(self._examples.values())
        return sum(self._examples[site] for site in trained) / known if known else None

    def _no_quorum(self, trained: tuple[str, ...], share: float | None) -> str:
        """Why there is no quorum, or nothing when there is one."""
        wanted = self._job.aggregation
        if len(trained) < wanted.min_sites:
            return f"no quorum: {len(trained)} of {len(self._job.sites)} sites trained, {wanted.min_sites} needed"
        if share is not None and share < wanted.min_share:
            return f"no quorum: updates cover {share:.0%} of the known training cases, {wanted.min_share:.0%} needed"
        return ""

    def _missing(self, record: RoundRecord) -> tuple[str, ...]:
        """A warning for each site missing from the model that has the most training cases, or may have."""
        trained = record.named("trained")
        largest = max(self._examples.values(), default=0)
        return tuple(
            f"{site.site} ({site.status}) is missing from this round, "
            + (
                f"the site with the most training cases, {largest:,} of {sum(self._examples.values()):,}"
                if site.site in self._examples
                else "and may be the largest: its number of cases is not known"
            )
            for site in record.sites
            if site.site not in trained and self._examples.get(site.site, largest) >= largest
        )
