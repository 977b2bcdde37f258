"""The round loop: asks the sites that the job names, adds up what they send, keeps the books of every round.

Knows Flower's Grid, a strategy and a recorder; it is the same in a deployment, under stock `flwr run`, and in a
simulation. It holds one site's update at a time beside the running sum.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from flwr.serverapp import Grid

from common.errors import JobError, RunError, UpdateError
from common.job import Job
from common.selection import chosen
from common.statistics import counts_only
from common.strategies import FedBuff
from common.update import Answer, Request, Tensors
from server.asking import Asker, Use
from server.central import Central, CentralGathering
from server.consent import gather, pause
from server.criterion import build_criterion
from server.records import Kept, RoundRecord, SiteRound, SiteStatus
from server.replies import Summed, SumsUpdates, check_statistics, check_update
from server.stopwatch import Stopwatch
from server.strategies.mean import MeanStrategy
from server.strategies.registry import build_strategy
from server.strategies.strategy import Advance, Gathering, Strategy, Update
from server.witness import NoWitnesses, Witnesses

SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 600.0
"""Before a round is tried again that only lacks sites that wait: doubled each time."""
log = logging.getLogger("wardround.rounds")


class Recorder(Protocol):
    """Where the loop's results go. Each `commit` is all or nothing; what it has taken is never lost."""

    def progress(self, record: RoundRecord, waiting: tuple[str, ...]) -> None:
        """Show an exchange under way: the answers so far, and who is awaited. Nothing of it is kept."""

    def commit(self, record: RoundRecord, advance: Advance | None, best: Kept | None) -> None:
        """Keep a round; what it made, if it made a new model; and which model is the best so far."""

    def load(self, number: int) -> Tensors:
        """Return the model after round `number`: the last, or the best one committed."""


@dataclass(frozen=True)
class Start:
    """Where a run starts, or goes on from: all that the loop needs of what was committed before.

    `number` is the last committed round (0: none), `attempts` how often the next one was tried without quorum,
    `examples` the sites' counts so far as known, `validated` whether the last model was evaluated already,
    `clip_norm` where an adaptive clip norm had got to, `state` the strategy's memory.
    """

    model: Tensors
    state: Tensors = field(default_factory=dict)
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
        trains_only: bool = False,
    ) -> None:
        """Take the parts together. With `trains_only` sites are not asked for consent, nor to evaluate at the end.

        Raises JobError for a strategy or criterion that there is not, or that does not go with the job.
        """
        self._job, self._run, self._stopped, self._trains_only = job, run, stopped, trains_only
        self._recorder, self._grid = recorder, grid
        self._asker = Asker(job, run, grid, node_ids, recorder, stopped, witnesses or NoWitnesses())
        self._strategy = build_strategy(job)
        self._criterion = build_criterion(job.aggregation.criterion)
        self._model, self._state, self._number, self._best = start.model, start.state, start.number, start.best
        self._local = _local_names(job)
        self._attempts, self._failed, self._validated = start.attempts, 0, start.validated
        self._pause, self._waited = SHORTEST_PAUSE, 0.0
        self._examples = dict(start.examples)
        self._central = _central(job, self._strategy, start.clip_norm)
        self._older: dict[int, Tensors] = {}

    def run(self) -> Kept:
        """Do all rounds, then evaluate the last model on "validation" and the kept one on "test"; return which it is.

        A job for statistics has one exchange, and no model.

        Raises
        ------
        RunError
            Too many rounds in a row without quorum, or a quorum that can't be reached any more.
        Stopped
            The run was asked to stop; everything committed so far stands.
        """
        if self._number < self._job.aggregation.rounds and not self._trains_only:
            self._ask_consent()
        if counts_only(self._job):
            return self._statistics()
        while self._number < self._job.aggregation.rounds:
            self._round()
        if self._trains_only:
            return self._best or Kept(self._number, None)
        if not self._validated:
            self._evaluate("validation", self._model, self._number)
        kept = self._best or Kept(self._number, None)
        model = self._model if kept.round == self._number else self._recorder.load(kept.round)
        self._evaluate("test", model, kept.round)
        return kept

    def _ask_consent(self) -> None:
        """Ask every site whether the job may run there; wait for those where a person decides."""
        request = Request("consent", self._run, self._number, self._job, {})
        record = RoundRecord("consent", self._number, 1, "asked", (), started=time.time())
        record = self._patiently(request, record, lambda answer, _: "agreed")
        self._asker.refused |= {row.site: row.reason for row in record.sites if row.status == "refused"}
        self._examples |= {row.site: row.examples for row in record.sites if row.examples}
        self._recorder.commit(record, None, self._best)
        self._require_possible_quorum()

    def _statistics(self) -> Kept:
        """Ask every site for its statistics, once."""

        def use(answer: Answer, _: Request) -> SiteStatus:
            check_statistics(answer, self._job)
            return "evaluated"

        request = Request("statistics", self._run, 1, self._job, {})
        record = RoundRecord("statistics", 1, 1, "evaluated", (), started=time.time())
        record = self._patiently(request, record, use)
        missing = tuple(row for row in record.sites if row.status != "evaluated")
        warnings = tuple(f"{row.site} is missing from the statistics: {row.reason or row.status}" for row in missing)
        self._recorder.commit(replace(record, warnings=(*record.warnings, *warnings)), None, None)
        if len(missing) == len(record.sites):
            raise RunError("no site gave statistics: " + "; ".join(warnings))
        return Kept(0, None)

    def _patiently(self, request: Request, record: RoundRecord, use: Use) -> RoundRecord:
        """Ask every site, and those that wait for a person or their hours again; return what each said in the end."""
        suspicions: dict[str, None] = {}

        def ask(sites: tuple[str, ...], before: Mapping[str, SiteRound]) -> Mapping[str, SiteRound]:
            others = tuple(row for site, row in before.items() if site not in sites)
            asked = self._asker.ask(request, replace(record, sites=others), use, sites)
            suspicions.update(dict.fromkeys(asked.warnings))
            return {row.site: row for row in asked.sites if row.site in sites}

        said = gather(self._job.sites, ask, self._job.aggregation.approval_seconds, self._stopped)
        rows, seconds = tuple(said[site] for site in self._job.sites), time.time() - record.started
        return replace(record, sites=rows, seconds=seconds, warnings=tuple(suspicions))

    def _round(self) -> None:
        shared = {name: tensor for name, tensor in self._model.items() if name not in self._local}
        number = self._number + 1
        control = self._strategy.control(shared, self._state)
        request = Request("train", self._run, number, self._job, self._model, control=control)
        total = self._central.begin(shared, self._state) if self._central else self._strategy.begin(shared, self._state)
        if self._enough is not None:
            self._older[number] = shared
        clock = Stopwatch()

        def use(answer: Answer, asked: Request) -> SiteStatus:
            with clock:
                return self._add(answer, asked, shared, total)

        record = self._asker.ask(
            request,
            RoundRecord("train", number, self._attempts + 1, "no quorum", ()),
            use,
            self._asked(number),
            enough=self._enough,
        )
        if isinstance(self._grid, SumsUpdates) and not isinstance(total, CentralGathering):
            for partial in self._grid.take_sums():
                total.merge(partial)
        share = self._share(record)
        problem = self._no_quorum(record, share)
        record = replace(record, share=share, score=self._criterion.score(list(record.sites)))
        if problem:
            self._commit_failed(replace(record, reason=problem))
            return
        try:
            with clock:
                if isinstance(total, CentralGathering):
                    advance, central = total.finish(number)
                    record = replace(record, central=central)
                else:
                    advance = total.finish()
        except UpdateError as error:  # too few updates for this strategy
            self._commit_failed(replace(record, reason=f"no quorum: {error}"))
            return
        self._forget_older(number)
        self._commit(replace(record, aggregating=clock.seconds), Advance(self._model | advance.model, advance.state))

    def _asked(self, number: int) -> tuple[str, ...]:
        """The sites that are sent a round: those drawn for it; without waiting, no more than take the free places."""
        drawn, places = chosen(self._job, number), self._job.aggregation.sites_per_round
        if self._enough is None or places is None:
            return drawn
        busy = self._asker.at_work
        free = [site for site in drawn if site not in busy]
        turn = number % max(1, len(free))  # so that it is not always the job's last sites that find no place
        return tuple((free[turn:] + free[:turn])[: max(0, places - len(busy))])

    @property
    def _enough(self) -> int | None:
        """How many updates make a model where nobody waits for all: FedBuff's K."""
        parameters = self._job.aggregation.known_parameters
        return parameters.K if isinstance(parameters, FedBuff) else None

    def _forget_older(self, number: int) -> None:
        """Keep the models that sites at work have started from, and no others."""
        needed = self._asker.numbers_under_way
        self._older = {old: model for old, model in self._older.items() if old in needed or old == number}

    def _add(self, answer: Answer, asked: Request, shared: Tensors, total: Gathering | CentralGathering) -> SiteStatus:
        if not isinstance(answer, Summed):
            check_update(answer, self._job, shared, self._examples.get(answer.site))
            behind = self._number + 1 - asked.number
            total.add(Update.of(answer, behind, self._older.get(asked.number) if behind else None))
        self._examples[answer.site] = answer.examples
        return "trained"

    def _commit(self, record: RoundRecord, advance: Advance) -> None:
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
        self._recorder.commit(record, advance, self._best)
        self._model, self._state, self._number, self._failed = advance.model, advance.state, record.number, 0
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
        left = [site for site in self._job.sites if site not in self._asker.refused]
        if len(left) < self._job.aggregation.min_sites:
            reasons = "; ".join(f"{site} refused: {reason}" for site, reason in self._asker.refused.items())
            raise RunError(f"the quorum of {self._job.aggregation.min_sites} can't be reached any more: {reasons}")

    def _evaluate(self, split: Literal["validation", "test"], model: Tensors, number: int) -> None:
        request = Request("evaluate", self._run, number, self._job, model, split)
        record = RoundRecord(split, number, 1, "evaluated", ())
        record = self._asker.ask(request, record, lambda answer, _: "evaluated", self._job.sites)
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

    def _share(self, record: RoundRecord) -> float | None:
        """The part of the known training cases of all sites that were asked which the round's updates cover."""
        known = sum(self._examples.get(row.site, 0) for row in record.sites)
        return sum(self._examples[site] for site in record.named("trained")) / known if known else None

    def _no_quorum(self, record: RoundRecord, share: float | None) -> str:
        """Why there is no quorum, or nothing when there is one."""
        wanted, trained = self._job.aggregation, len(record.named("trained"))
        if trained < wanted.min_sites:
            return f"no quorum: {trained} of {len(record.sites)} sites trained, {wanted.min_sites} needed"
        if share is not None and share < wanted.min_share:
            return f"no quorum: updates cover {share:.0%} of the known training cases, {wanted.min_share:.0%} needed"
        return ""

    def _missing(self, record: RoundRecord) -> tuple[str, ...]:
        """A warning for each site missing from the model that has the most training cases, or may have."""
        there = record.named("trained", "working")
        known = {row.site: self._examples[row.site] for row in record.sites if row.site in self._examples}
        largest = max(known.values(), default=0)
        return tuple(
            f"{site.site} ({site.status}) is missing from this round, "
            + (
                f"the site with the most training cases, {largest:,} of {sum(known.values()):,}"
                if site.site in known
                else "and may be the largest: its number of cases is not known"
            )
            for site in record.sites
            if site.site not in there and known.get(site.site, largest) >= largest
        )


def _local_names(job: Job) -> frozenset[str]:
    """The tensors that stay at the sites. Only a job that has any needs torch, to know the network's layers."""
    if not job.aggregation.keeps_layers:
        return frozenset()
    from common.networks import local_names

    return local_names(job)


def _central(job: Job, strategy: Strategy, clip_norm: float | None) -> Central | None:
    """Central privacy, where the job asks for it. Raises JobError for a strategy that needs more than a mean."""
    if job.privacy.mechanism != "central":
        return None
    if not isinstance(strategy, MeanStrategy) or not strategy.central:
        raise JobError(f'"aggregation.strategy": central privacy gives a noised mean, and "{strategy.name}" needs more')
    return Central(job, strategy, clip_norm)
