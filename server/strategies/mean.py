"""Strategies that need one weighted mean of the sites' models: nearly all of them.

They differ in what an update counts by (`weigh`), what of it is averaged (`view`), and how the mean becomes the next
model (`finish`). Each is written as a step from the current model towards the mean, so that where it is the mean, it is
so to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from common.errors import UpdateError
from common.job import Job
from common.strategies import Parameters
from common.update import Tensors
from server.aggregation import RunningMean, check_weight
from server.strategies.strategy import Advance, Update


@dataclass(frozen=True)
class Note:
    """What is remembered of an update beside the mean: numbers only. `length` is ||y - x||, where it is measured."""

    site: str
    weight: float
    examples: int
    steps: int
    metrics: Mapping[str, float]
    length: float = 0.0


class MeanStrategy:
    """Federated averaging; what others change of it is in their own files."""

    name: ClassVar[str]
    streaming: ClassVar[bool] = True
    central: ClassVar[bool] = True
    """Whether the mean may be made with noise by a trusted coordinator instead, every site counting the same."""
    measures: ClassVar[bool] = False
    """Whether `Note.length` is needed."""

    def __init__(self, job: Job) -> None:
        """Take the parameters from the job."""
        self.job = job

    @property
    def parameters(self) -> Parameters:
        """The strategy's own parameters."""
        return self.job.aggregation.known_parameters

    def control(self, model: Tensors, state: Tensors) -> Tensors:
        """Nothing is sent beside the model."""
        return {}

    def begin(self, model: Tensors, state: Tensors) -> MeanGathering:
        """Return an empty mean."""
        return MeanGathering(self, model, state)

    def weigh(self, update: Update) -> float:
        """What the update counts by: its examples, or 1 where every site counts the same."""
        return float(update.examples) if self.job.aggregation.weighting == "examples" else 1.0

    def view(self, update: Update, model: Tensors) -> Tensors:
        """What of the update is averaged: the site's model."""
        return update.tensors

    def finish(self, mean: Tensors, notes: Sequence[Note], model: Tensors, state: Tensors) -> Advance:
        """The mean is the next model."""
        return Advance(mean)


class MeanGathering:
    """One running mean, and a note on each update."""

    def __init__(self, strategy: MeanStrategy, model: Tensors, state: Tensors) -> None:
        """Start from nothing."""
        self.strategy, self.model, self.state = strategy, model, state
        self.mean = RunningMean(model)
        self.notes: list[Note] = []

    @property
    def updates(self) -> int:
        """How many updates are in the mean."""
        return self.mean.updates

    def add(self, update: Update) -> None:
        """Add an update. Raises UpdateError as `RunningMean.add` does."""
        weight = self.strategy.weigh(update)
        self.mean.add(self.strategy.view(update, self.model), weight, update.site)
        length = distance(update.tensors, self.model) if self.strategy.measures else 0.0
        self.notes.append(Note(update.site, weight, update.examples, update.steps, update.metrics, length))

    def merge(self, other: MeanGathering) -> None:
        """Add all of another gathering's updates."""
        self.mean.merge(other.mean)
        self.notes += other.notes

    def finish(self) -> Advance:
        """Return the next model. Raises UpdateError when there is no update, or the step leads out of all numbers."""
        self.notes.sort(key=lambda note: note.site)
        return finite(self.advance(self.mean.mean()))

    def advance(self, mean: Tensors) -> Advance:
        """Return what the strategy makes of the mean and the notes, which are sorted by site."""
        return self.strategy.finish(mean, self.notes, self.model, self.state)

    def __getstate__(self) -> dict[str, object]:
        """A partial gathering travels without the model that it started from: whoever merges it has that."""
        return {**self.__dict__, "model": {}, "state": {}}


class TwoMeans(MeanGathering):
    """A second mean of the sites' models beside the first, by other weights."""

    def __init__(self, strategy: MeanStrategy, model: Tensors, state: Tensors) -> None:
        """Start from nothing."""
        super().__init__(strategy, model, state)
        self.second = RunningMean(model)

    def weigh_second(self, update: Update) -> float:
        """What the update counts by in the second mean."""
        raise NotImplementedError

    def add(self, update: Update) -> None:
        """Add an update to both means, or to none."""
        weight = self.weigh_second(update)
        check_weight(weight, update.site)
        super().add(update)
        self.second.add(update.tensors, weight, update.site)

    def merge(self, other: MeanGathering) -> None:
        """Add all of another gathering's updates."""
        super().merge(other)
        self.second.merge(cast(TwoMeans, other).second)


def moved(model: Tensors, towards: Tensors, factor: float) -> Tensors:
    """Return model + factor (towards - model), float tensors in float64; with factor 1 it is `towards` to the bit."""
    if factor == 1.0:
        return towards
    return {
        name: rounded(tensor + factor * (towards[name].astype(np.float64) - tensor), tensor)
        if tensor.dtype.kind == "f"
        else towards[name]
        for name, tensor in model.items()
    }


def rounded(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return float64 values in the dtype of `like`; infinite where they are too large for it, for `finite` to find."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=like.dtype)


def finite(advance: Advance) -> Advance:
    """Return the advance if all of it is finite. Raises UpdateError: a model that has run away is not sent to sites."""
    for name, tensor in (*advance.model.items(), *advance.state.items()):
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise UpdateError(f'the step makes "{name}" infinite: it is too long, or updates are far off')
    return advance


def differences(towards: Tensors, model: Tensors) -> Tensors:
    """Return towards - model in float64, for float tensors."""
    return {
        name: towards[name].astype(np.float64) - tensor for name, tensor in model.items() if tensor.dtype.kind == "f"
    }


def distance(tensors: Tensors, model: Tensors) -> float:
    """Return the L2 norm of tensors - model over all float tensors."""
    return math.sqrt(math.fsum(float(np.vdot(delta, delta)) for delta in differences(tensors, model).values()))


def remembered(state: Tensors, prefix: str, like: Tensors) -> Tensors:
    """Return the part of a strategy's memory called `prefix`, by tensor; zeros before the first round."""
    return {
        name: state.get(f"{prefix}/{name}", np.zeros(tensor.shape))
        for name, tensor in like.items()
        if tensor.dtype.kind == "f"
    }


def named(prefix: str, tensors: Tensors) -> Tensors:
    """Return tensors as the part called `prefix` of a strategy's memory."""
    return {f"{prefix}/{name}": np.asarray(tensor) for name, tensor in tensors.items()}
