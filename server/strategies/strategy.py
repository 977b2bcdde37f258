"""What a strategy is: how the sites' updates of a round become the next global model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

from common.job import Job
from common.update import Answer, Tensors


@dataclass(frozen=True)
class Update:
    """One site's checked update: the model it came to after `steps` steps, from the current one or an older `base`.

    `staleness` is how many models there have been since `base`; `metrics` are the answer's numbers by name.
    """

    site: str
    tensors: Tensors
    examples: int
    steps: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)
    staleness: int = 0
    base: Tensors | None = None

    @classmethod
    def of(cls, answer: Answer, staleness: int = 0, base: Tensors | None = None) -> Self:
        """Return the update that a checked answer holds."""
        steps = max(1, round(answer.metrics.get("train.steps", 1)))
        return cls(answer.site, answer.tensors or {}, answer.examples, steps, answer.metrics, staleness, base)


@dataclass(frozen=True)
class Advance:
    """What a round makes: the next model, and what the strategy has to remember for the rounds after it."""

    model: Tensors
    state: Tensors = field(default_factory=dict)


class Gathering(Protocol):
    """A round's updates, taken as they arrive."""

    @property
    def updates(self) -> int:
        """How many there are."""

    def add(self, update: Update) -> None:
        """Take one: all of it or nothing. Raises UpdateError when it can't be used."""

    def merge(self, other: Self) -> None:
        """Take all that another gathering of the same round took."""

    def finish(self) -> Advance:
        """Return what the round makes. Raises UpdateError when the updates are too few for it."""


class Strategy(Protocol):
    """Makes the next global model of a round. Built once a run.

    Guarantees that every strategy gives (a contract test runs over all of them): the result depends only on the updates
    and not on their order or grouping; names, shapes and dtypes are those of the current model; the state is a plain
    dictionary of finite arrays, from which a run goes on after a restart.
    """

    name: ClassVar[str]
    streaming: ClassVar[bool]
    """Whether updates are summed as they arrive; else all of a round's are needed at once, and wait on disk."""

    def __init__(self, job: Job) -> None:
        """Take the parameters from the job. Raises JobError for what does not go with this strategy."""

    def control(self, model: Tensors, state: Tensors) -> Tensors:
        """Return what the sites are sent beside the model."""

    def begin(self, model: Tensors, state: Tensors) -> Gathering:
        """Return an empty gathering for a round that starts from `model`; local layers are not in it."""
