"""What is known of a run, as plain values: the round loop makes them, the registry keeps them, people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.job import Job
from server.central import CentralRound

SiteStatus = Literal[
    "agreed",  # it said that the job may run there
    "aggregated",  # its update is in the new model
    "trained",  # its update was good, but the round had no quorum
    "working",  # its update is awaited: the strategy does not wait for it, and takes it in a later round
    "evaluated",  # it sent metrics, as asked
    "refused",  # it said no; it is not asked again in this run
    "waiting",  # it said not yet: a person must approve there, or the hour is wrong
    "rejected",  # what it sent was not usable
    "failed",  # it said that it could not
    "late",  # it was there, but no answer came before the round closed
    "unreached",  # it was not there
    "excluded",  # not asked: it has refused before
]
RoundKind = Literal["consent", "train", "validation", "test", "statistics"]
RunStatus = Literal["queued", "running", "completed", "incomplete", "failed", "interrupted", "stopped"]
Stage = Literal["candidate", "approved", "retired"]
RESUMABLE: tuple[RunStatus, ...] = ("failed", "interrupted", "stopped")


@dataclass(frozen=True)
class SiteRound:
    """What one site did in one round. `seconds` from request to answer; `sent` and `received` are bytes of tensors.

    `norm` is the L2 norm of its update, the difference from the model that it was sent. `statistics` are histograms by
    their names in `METRIC_FIELDS`.
    """

    site: str
    status: SiteStatus
    reason: str = ""
    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    norm: float | None = None
    statistics: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LateAnswer:
    """An answer to an earlier round that came `seconds` after that round had closed, and was not used."""

    kind: RoundKind
    number: int
    attempt: int
    site: str
    seconds: float


@dataclass(frozen=True)
class RoundRecord:
    """One exchange with the sites.

    `kind` "consent": the sites were asked whether the job may run there, before round `number + 1`.
    `kind` "train": the model before it was evaluated on "validation" (`score` is of that model, the model after round
    `number - 1`), then trained. "validation", "test": the model after round `number` was evaluated; `score` is of it.
    "statistics": patients were counted; there is no model.
    `share` is the part of all known training cases that the updates cover. `whole` is false when the site that has the
    most cases, or may have, is missing from the new model. `central` is what central privacy did in the round, if any.
    `aggregating` are the seconds that checking, adding up and finishing took.
    """

    kind: RoundKind
    number: int
    attempt: int
    status: Literal["asked", "aggregated", "no quorum", "evaluated"]
    sites: tuple[SiteRound, ...]
    reason: str = ""
    started: float = 0.0
    seconds: float = 0.0
    share: float | None = None
    score: float | None = None
    whole: bool = True
    warnings: tuple[str, ...] = ()
    late: tuple[LateAnswer, ...] = ()
    central: CentralRound | None = None
    aggregating: float | None = None

    @property
    def title(self) -> str:
        """A heading for people."""
        if self.kind == "consent":
            return "consent" if self.number == 0 else f"consent after round {self.number}"
        if self.kind == "statistics":
            return "statistics"
        if self.kind != "train":
            return f"{self.kind} of the model after round {self.number}"
        return f"round {self.number}" + (f", attempt {self.attempt}" if self.attempt > 1 else "")

    def named(self, *statuses: SiteStatus) -> tuple[str, ...]:
        """Return the names of the sites with one of `statuses`."""
        return tuple(site.site for site in self.sites if site.status in statuses)

    @property
    def invited(self) -> tuple[str, ...]:
        """The sites that were asked."""
        return tuple(site.site for site in self.sites if site.status != "excluded")

    @property
    def reached(self) -> tuple[str, ...]:
        """The sites that were there during the round."""
        return tuple(site.site for site in self.sites if site.status not in ("excluded", "unreached"))

    @property
    def loss(self) -> float | None:
        """The mean training loss, weighted by examples, of the sites that say it."""
        return weighted_mean((site.metrics.get("train.loss"), site.examples) for site in self.sites)


@dataclass(frozen=True)
class RunSummary:
    """A run in one line. Times are seconds since 1970 UTC; `done` counts committed rounds.

    `progress` is the exchange under way: kind, number, attempt, since, waiting (sites), done (status by site).
    """

    name: str
    status: RunStatus
    reason: str
    job_name: str
    digest: str
    rounds: int
    done: int
    code_version: str
    created: float
    started: float | None
    finished: float | None
    progress: Mapping[str, Any] | None


@dataclass(frozen=True)
class ModelFile:
    """A model that the registry keeps: the "best" by the job's criterion, or the "last"."""

    kind: Literal["best", "last"]
    round: int
    path: str
    sha256: str
    bytes: int
    digest: str
    code_version: str
    score: float | None
    created: float


@dataclass(frozen=True)
class RunDetail:
    """Everything that is kept of a run. `examples`: each site's training cases, None where it never said."""

    summary: RunSummary
    job: Job
    examples: Mapping[str, int | None]
    rounds: tuple[RoundRecord, ...]
    models: tuple[ModelFile, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all rounds, each with where it arose."""
        return tuple(f"{record.title}: {text}" for record in self.rounds for text in record.warnings)


@dataclass(frozen=True)
class SiteSeen:
    """A site of the federation as the coordinator last saw it."""

    name: str
    certificate_ends: float | None
    online: bool
    last_seen: float | None


@dataclass(frozen=True)
class MachineSeen:
    """A site's software version and what it trains on, as it told; "" where its policy does not tell. `seen`: since."""

    version: str
    device: str
    seen: float


@dataclass(frozen=True)
class LogLine:
    """A line of the coordinator's log, of a run or ("") of none. `id` grows with time."""

    id: int
    run: str
    at: float
    level: str
    text: str


@dataclass(frozen=True)
class CoordinatorSeen:
    """The coordinator as it last showed itself."""

    process: int
    address: str
    started: float
    heartbeat: float


@dataclass(frozen=True)
class Kept:
    """The best model so far: the round after which it stood, and its score (None when no site gave one)."""

    round: int
    score: float | None


def weighted_mean(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """Return the mean of the values that are there, by weight; None when there is none. The order does not matter."""
    present = [(value, weight) for value, weight in pairs if value is not None and weight > 0]
    if not present:
        return None
    return math.fsum(value * weight for value, weight in present) / math.fsum(weight for _, weight in present)
