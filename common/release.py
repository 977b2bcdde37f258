"""The numbers that may leave a site. The types here are the allow-list: what has no field here can't be sent.

Every number stands in a class that says what it depends on, and those that depend on patients carry their basis:

    noised     differentially private: noise was added and the ledger was charged before
    declared   of a split, or a count, that the hospital's policy declares releasable
    exact      of a job without differential privacy, which the hospital's policy allows

To let a task report a further metric is to add one field to `Evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from common.errors import UpdateError

Basis = Literal["noised", "declared", "exact"]
BASES: tuple[Basis, ...] = get_args(Basis)


def _number(meaning: str) -> Any:
    return field(default=None, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Operation:
    """What the machine did. Steps follow from the job and the released count; `seconds` and `held` are the clock's."""

    seconds: float | None = _number("seconds spent in local training")
    steps: float | None = _number("optimizer steps taken in the round")
    held: float | None = _number("seconds from the request's arrival at the site to its answer")


@dataclass(frozen=True)
class Accounting:
    """What the run has cost here so far. It follows from the job, the ledger and the released count: from no image."""

    epsilon: float | None = _number("epsilon spent by this run so far, as accounted")
    delta: float | None = _number("delta of that epsilon")
    noise_multiplier: float | None = _number("noise's standard deviation over the clip norm")
    sample_rate: float | None = _number("probability with which a unit is in a step")


@dataclass(frozen=True)
class Training:
    """What depends on the training split: how large it is, and (only `exact`) the loss on it."""

    basis: Basis
    images: float | None = _number("images in the site's training split")
    patients: float | None = _number("patients in the site's training split")
    loss: float | None = _number("mean loss over the round's training steps")
    loss_before: float | None = _number("mean loss of the received model on the training split")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a validation or test split. None: undefined, or not released."""

    basis: Basis
    images: float | None = _number("images evaluated")
    patients: float | None = _number("patients evaluated")
    loss: float | None = _number("mean loss")
    auc: float | None = _number("area under the ROC curve (mean over labels)")
    auc_low: float | None = _number("lower end of its 95 % interval")
    auc_high: float | None = _number("upper end of its 95 % interval")
    accuracy: float | None = _number("share of images whose label is right")
    accuracy_low: float | None = _number("lower end of its 95 % interval")
    accuracy_high: float | None = _number("upper end of its 95 % interval")
    sensitivity: float | None = _number("share of positives found (mean over labels)")
    sensitivity_low: float | None = _number("lower end of its 95 % interval")
    sensitivity_high: float | None = _number("upper end of its 95 % interval")
    specificity: float | None = _number("share of negatives found (mean over labels)")
    specificity_low: float | None = _number("lower end of its 95 % interval")
    specificity_high: float | None = _number("upper end of its 95 % interval")
    seconds: float | None = _number("seconds spent in evaluation")


Part = Operation | Accounting | Training | Evaluation


@dataclass(frozen=True)
class Numbers:
    """All the numbers of an answer."""

    operation: Operation = field(default_factory=Operation)
    accounting: Accounting | None = None
    training: Training | None = None
    evaluation: Evaluation | None = None

    def flat(self) -> dict[str, float]:
        """Return the numbers by the names of `METRIC_FIELDS`; what is None is left out."""
        return {
            f"{prefix}.{item.name}": float(value)
            for prefix, part in self._parts()
            for item in fields(part)
            if item.name != "basis" and (value := getattr(part, item.name)) is not None
        }

    def bases(self) -> dict[str, Basis]:
        """Return on what basis the training and evaluation numbers leave."""
        return {prefix: part.basis for prefix, part in self._parts() if isinstance(part, Training | Evaluation)}

    def _parts(self) -> Iterator[tuple[str, Part]]:
        parts = (("train", self.operation), ("privacy", self.accounting), ("train", self.training))
        yield from ((prefix, part) for prefix, part in (*parts, ("eval", self.evaluation)) if part is not None)


METRIC_FIELDS: dict[str, str] = {
    f"{prefix}.{item.name}": item.metadata["meaning"]
    for prefix, kind in (("train", Operation), ("train", Training), ("privacy", Accounting), ("eval", Evaluation))
    for item in fields(kind)
    if item.name != "basis"
}
"""Every number's name on the wire with its meaning: read off the types above."""


def numbers_of(values: Mapping[str, object], bases: Mapping[str, object]) -> Numbers:
    """Return the numbers whose flat names and values are `values`. Inverse of `flat` and `bases`.

    Raises
    ------
    UpdateError
        A name that no type has, a value that is not a finite number, or a basis that is missing or unknown.
    """
    for name, value in values.items():
        if name not in METRIC_FIELDS:
            raise UpdateError(f'the answer has a metric "{name[:60]}" that is not on the allow-list')
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UpdateError(f'the answer\'s metric "{name}" is not a finite number')
    training, evaluation = _named(values, "train", Training), _named(values, "eval", Evaluation)
    accounting = _named(values, "privacy", Accounting)
    return Numbers(
        Operation(**_named(values, "train", Operation)),
        Accounting(**accounting) if accounting else None,
        Training(_basis(bases, "train"), **training) if training or "train" in bases else None,
        Evaluation(_basis(bases, "eval"), **evaluation) if evaluation or "eval" in bases else None,
    )


def _named(values: Mapping[str, object], prefix: str, kind: type[Part]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)} - {"basis"}
    return {name: values[f"{prefix}.{name}"] for name in sorted(names) if f"{prefix}.{name}" in values}


def _basis(bases: Mapping[str, object], prefix: str) -> Basis:
    found = bases.get(prefix)
    if found not in BASES:
        raise UpdateError(f'the answer does not say on what basis its "{prefix}" numbers leave: {", ".join(BASES)}')
    return found
