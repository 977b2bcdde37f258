"""What the dashboard and the API show, as plain values of `server.readmodel`. Times are seconds since 1970 UTC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, median
from typing import Any, Generic, Literal, TypeVar

from common.job import Job
from common.release import group_of, is_metric
from server.records import RoundRecord, SiteRound, Stage

T = TypeVar("T")
SiteState = Literal["online", "training", "waiting", "late", "refused", "away", "never seen"]
FLAG_AT, FLAG_FROM = 4.0, 3
"""An update is flagged from this many times the round's median norm, in rounds of at least so many updates."""
_WIDTH = NormalDist().inv_cdf(0.975)
"""How many standard errors a 95 % interval reaches to either side."""


@dataclass(frozen=True)
class Listing(Generic[T]):
    """A page of a list: `items` from `offset` on, at most `limit` of them, of `total`."""

    items: tuple[T, ...]
    total: int
    offset: int
    limit: int


@dataclass(frozen=True)
class SiteLine:
    """A site of the federation. `detail` says why it is in its state; `counts` are training cases by collection.

    `version` and `device` are "" until it has told them, which its policy may forbid. `audit_head` is the number of the
    newest entry of its audit log that the coordinator witnessed.
    """

    name: str
    state: SiteState
    detail: str
    last_seen: float | None
    certificate_ends: float | None
    version: str
    device: str
    counts: Mapping[str, int]
    audit_head: int | None


@dataclass(frozen=True)
class Federation:
    """The federation as it is now."""

    name: str
    coordinator_running: bool
    coordinator_started: float | None
    heartbeat: float | None
    sites: tuple[SiteLine, ...]


@dataclass(frozen=True)
class RunLine:
    """A run in a line. `done` of `rounds` are committed; `progress` is the exchange under way (`RunSummary`)."""

    name: str
    job_name: str
    status: str
    reason: str
    rounds: int
    done: int
    created: float
    started: float | None
    finished: float | None
    sites: int
    strategy: str
    mechanism: str
    progress: Mapping[str, Any] | None
    digest: str
    code_version: str


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


Group = tuple[str, int]
"""A group of patients: a trait, and its bin (`common.bins`)."""
Groups = Mapping[Group, Mapping[str, Interval]]
"""Metrics by group; "patients" among them says how many they are of."""


@dataclass(frozen=True)
class Turn:
    """One site in one round. `seconds` from request to answer, `held` of them at the site, `trained` of these training.

    `norm` is the L2 norm of its update; `flagged` says what is odd about it, "" if nothing. `epsilon` is what the run
    had spent there by then.
    """

    site: str
    status: str
    reason: str
    seconds: float
    held: float | None
    trained: float | None
    sent: int
    received: int
    examples: int
    norm: float | None
    flagged: str
    loss: float | None
    epsilon: float | None
    metrics: Mapping[str, Interval]
    groups: Groups = field(default_factory=dict)


@dataclass(frozen=True)
class Phases:
    """Where a round's time went, in seconds: at its slowest site, on the way there and back, adding up, waiting.

    `train` is the slowest answering site's time at work (evaluation and training), `transfer` the rest of its time from
    request to answer (the lines, and looking for messages), `aggregate` checking and adding up, and `wait` what is left
    of the round: for sites that never answered. `train` and `transfer` are None where the site does not tell its time.
    """

    wait: float
    train: float | None
    transfer: float | None
    aggregate: float | None


@dataclass(frozen=True)
class RoundLine:
    """A round. `metrics` are all sites' together, of the model after round `model_round`."""

    run: str
    kind: str
    title: str
    number: int
    attempt: int
    status: str
    reason: str
    started: float
    seconds: float
    score: float | None
    loss: float | None
    share: float | None
    whole: bool
    warnings: tuple[str, ...]
    turns: tuple[Turn, ...]
    phases: Phases
    metrics: Mapping[str, Interval]
    epsilon: float | None

    @property
    def model_round(self) -> int:
        """The round after which the model stood that was evaluated: training rounds evaluate what they start from."""
        return self.number - 1 if self.kind == "train" else self.number

    @property
    def sent(self) -> int:
        """Bytes of tensors sent to all sites."""
        return sum(turn.sent for turn in self.turns)

    @property
    def received(self) -> int:
        """Bytes of tensors received from all sites."""
        return sum(turn.received for turn in self.turns)


@dataclass(frozen=True)
class SiteSpend:
    """What a run has spent at a site, of the epsilon that its job may spend there."""

    site: str
    epsilon: float
    budget: float
    delta: float


@dataclass(frozen=True)
class StageChange:
    """Who put a model into a stage, when and why."""

    stage: Stage
    by: str
    at: float
    note: str


@dataclass(frozen=True)
class ModelLine:
    """A model that a run left: its "best" or its "last". `changes` of its stage, the newest first."""

    id: int
    run: str
    run_status: str
    job_name: str
    kind: Literal["best", "last"]
    round: int
    score: float | None
    criterion: str
    created: float
    bytes: int
    sha256: str
    digest: str
    code_version: str
    changes: tuple[StageChange, ...]

    @property
    def stage(self) -> Stage:
        """The stage it is in: a candidate until somebody decides."""
        return self.changes[0].stage if self.changes else "candidate"


@dataclass(frozen=True)
class RunView:
    """Everything of a run. `toml` is its job as a file has it, `sent` and `received` bytes of tensors."""

    line: RunLine
    job: Job
    toml: str
    rounds: tuple[RoundLine, ...]
    spends: tuple[SiteSpend, ...]
    models: tuple[ModelLine, ...]
    warnings: tuple[str, ...]
    sent: int
    received: int


@dataclass(frozen=True)
class ModelView:
    """A model with its file and its metrics: by site and metric, and under "" those of all sites together.

    `judged_on` is the split that the metrics are of, "" where the model was not evaluated. `groups` has them by group
    of patients, site as in `metrics`, and metric, where the job asks for that and sites may tell.
    """

    line: ModelLine
    run: RunView
    path: str
    judged_on: str
    metrics: Mapping[str, Mapping[str, Interval]]
    groups: Mapping[Group, Mapping[str, Mapping[str, Interval]]] = field(default_factory=dict)


def round_line(run: str, record: RoundRecord) -> RoundLine:
    """Return what is shown of a round."""
    flags = _flags(record.sites)
    turns = tuple(_turn(row, flag) for row, flag in zip(record.sites, flags, strict=True))
    spent = [turn.epsilon for turn in turns if turn.epsilon is not None]
    return RoundLine(
        run,
        record.kind,
        record.title,
        record.number,
        record.attempt,
        record.status,
        record.reason,
        record.started,
        record.seconds,
        record.score,
        record.loss,
        record.share,
        record.whole,
        record.warnings,
        turns,
        _phases(record, turns),
        together(turns, record.sites),
        record.central.epsilon if record.central else max(spent, default=None),
    )


def together(turns: Sequence[Turn], rows: Sequence[SiteRound]) -> dict[str, Interval]:
    """Return all sites' metrics as one: means weighted by the patients (else images) that each was judged on.

    A mean's interval is there if all its parts have one: sites share no patient, so that their errors are independent
    and the variance of sum(w x) / sum(w) is sum(w^2 s^2) / sum(w)^2.
    """
    weights = [row.metrics.get("eval.patients") or row.metrics.get("eval.images") or row.examples for row in rows]
    found: dict[str, Interval] = {}
    for name in dict.fromkeys(name for turn in turns for name in turn.metrics):
        parts = [(turn.metrics[name], w) for turn, w in zip(turns, weights, strict=True) if name in turn.metrics and w]
        if parts:
            found[name] = _mean(parts)
    return found


def by_group(turns: Sequence[Turn]) -> dict[Group, dict[str, dict[str, Interval]]]:
    """Return the metrics of each group by site, and under "" those of all sites together, weighted by its patients."""
    found: dict[Group, dict[str, dict[str, Interval]]] = {}
    for group in sorted({group for turn in turns for group in turn.groups}):
        told = {turn.site: dict(turn.groups[group]) for turn in turns if group in turn.groups}
        weights = {site: metrics["patients"].value for site, metrics in told.items() if "patients" in metrics}
        whole: dict[str, Interval] = {}
        for name in dict.fromkeys(name for metrics in told.values() for name in metrics if name != "patients"):
            parts = [
                (told[site][name], weight) for site, weight in weights.items() if name in told[site] and weight > 0
            ]
            if parts:
                whole[name] = _mean(parts)
        if weights:
            whole["patients"] = Interval(math.fsum(weights.values()))
        found[group] = {"": whole} | told
    return found


def _mean(parts: Sequence[tuple[Interval, float]]) -> Interval:
    whole = math.fsum(weight for _, weight in parts)
    value = math.fsum(part.value * weight for part, weight in parts) / whole
    if any(part.low is None or part.high is None for part, _ in parts):
        return Interval(value)
    errors = [weight * ((part.high or 0) - (part.low or 0)) / (2 * _WIDTH) for part, weight in parts]
    reach = _WIDTH * math.hypot(*errors) / whole
    lowest, highest = min(part.low or 0.0 for part, _ in parts), max(part.high or 0.0 for part, _ in parts)
    # Uneven intervals are taken as even ones: what no site's own reaches (1, of a share) the mean's does not either.
    return Interval(value, max(lowest, value - reach), min(highest, value + reach))


def _turn(row: SiteRound, flag: str) -> Turn:
    numbers = row.metrics
    metrics = {
        name: Interval(numbers[f"eval.{name}"], numbers.get(f"eval.{name}_low"), numbers.get(f"eval.{name}_high"))
        for name in (one.removeprefix("eval.") for one in numbers if one.startswith("eval."))
        if is_metric(name)
    }
    groups: dict[Group, dict[str, Interval]] = {}
    for trait, place, name in filter(None, map(group_of, numbers)):
        if is_metric(name) or name == "patients":
            wire = f"eval.{trait}.{place}.{name}"
            told = Interval(numbers[wire], numbers.get(f"{wire}_low"), numbers.get(f"{wire}_high"))
            groups.setdefault((trait, place), {})[name] = told
    return Turn(
        row.site,
        row.status,
        row.reason,
        row.seconds,
        numbers.get("train.held"),
        numbers.get("train.seconds"),
        row.sent,
        row.received,
        row.examples,
        row.norm,
        flag,
        numbers.get("train.loss"),
        numbers.get("privacy.epsilon"),
        metrics,
        groups,
    )


def _flags(rows: Sequence[SiteRound]) -> list[str]:
    norms = [row.norm for row in rows if row.norm is not None]
    usual = median(norms) if len(norms) >= FLAG_FROM else math.inf
    return [_flag(row, usual) for row in rows]


def _flag(row: SiteRound, usual: float) -> str:
    if row.status == "rejected":
        return f"rejected: {row.reason}"
    if row.norm is not None and 0 < usual < math.inf and row.norm >= FLAG_AT * usual:
        return f"its norm is {row.norm / usual:.1f} times the round's median"
    return ""


def _phases(record: RoundRecord, turns: Sequence[Turn]) -> Phases:
    slowest = max((turn for turn in turns if turn.seconds), key=lambda turn: turn.seconds, default=None)
    if slowest is None:
        return Phases(record.seconds, None, None, record.aggregating)
    transfer = max(0.0, slowest.seconds - slowest.held) if slowest.held is not None else None
    return Phases(max(0.0, record.seconds - slowest.seconds), slowest.held, transfer, record.aggregating)
