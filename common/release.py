"""The numbers that may leave a site. The types here are the allow-list: what has no field here can't be sent.

Every number stands in a class that says what it depends on, and those that depend on patients carry their basis:

    noised     differentially private: noise was added and the ledger was charged before
    declared   of a split, or a count, that the hospital's policy declares releasable
    exact      of a job without differential privacy, which the hospital's policy allows

To let a task report a further metric is to add one field to `Evaluation`; and one to `ByLabel` where each label has its
own. What statistics count is a field of `Statistics`, its bins are public (`common.bins`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from common import bins
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
class ByLabel:
    """Metrics of one label of the job, in the order of its labels. On the wire: `eval.NAME.K`, K from 0."""

    auc: float | None = _number("area under the ROC curve")
    sensitivity: float | None = _number("share of positives found")
    specificity: float | None = _number("share of negatives found")
    dice: float | None = _number("Dice overlap")
    surface_dice: float | None = _number("share of the surface that agrees within the task's tolerance")
    hd95: float | None = _number("95th percentile of the distance between surfaces (mm with data.spacing, else pixels)")
    ap50: float | None = _number("average precision at an overlap (IoU) of 0.5")
    froc: float | None = _number("mean sensitivity at 1/8 to 8 false positives an image")


MOST_LABELS = 256
"""Metrics of a label leave for at most so many labels."""


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
    sensitivity_at_specificity: float | None = _number("sensitivity at the task's fixed specificity")
    brier: float | None = _number("Brier score (lower is better)")
    ece: float | None = _number("expected calibration error (lower is better)")
    dice: float | None = _number("Dice overlap (mean over structures)")
    dice_low: float | None = _number("lower end of its 95 % interval")
    dice_high: float | None = _number("upper end of its 95 % interval")
    surface_dice: float | None = _number("share of the surfaces that agree within the task's tolerance")
    surface_dice_low: float | None = _number("lower end of its 95 % interval")
    surface_dice_high: float | None = _number("upper end of its 95 % interval")
    hd95: float | None = _number("95th percentile of the distance between surfaces (mm with data.spacing, else pixels)")
    hd95_low: float | None = _number("lower end of its 95 % interval")
    hd95_high: float | None = _number("upper end of its 95 % interval")
    ap50: float | None = _number("average precision at an overlap (IoU) of 0.5 (mean over labels)")
    ap50_low: float | None = _number("lower end of its 95 % interval")
    ap50_high: float | None = _number("upper end of its 95 % interval")
    ap: float | None = _number("average precision, mean over overlaps from 0.5 to 0.95 (and over labels)")
    froc: float | None = _number("mean sensitivity at 1/8 to 8 false positives an image (mean over labels)")
    froc_low: float | None = _number("lower end of its 95 % interval")
    froc_high: float | None = _number("upper end of its 95 % interval")
    precision: float | None = _number("share of the boxes called that are right")
    precision_low: float | None = _number("lower end of its 95 % interval")
    precision_high: float | None = _number("upper end of its 95 % interval")
    psnr: float | None = _number("peak signal-to-noise ratio, dB of full scale")
    psnr_low: float | None = _number("lower end of its 95 % interval")
    psnr_high: float | None = _number("upper end of its 95 % interval")
    ssim: float | None = _number("structural similarity")
    ssim_low: float | None = _number("lower end of its 95 % interval")
    ssim_high: float | None = _number("upper end of its 95 % interval")
    nmse: float | None = _number("normalised mean squared error (lower is better)")
    nmse_low: float | None = _number("lower end of its 95 % interval")
    nmse_high: float | None = _number("upper end of its 95 % interval")
    seconds: float | None = _number("seconds spent in evaluation")
    by_label: tuple[ByLabel, ...] = ()
    by_group: tuple[ByGroup, ...] = ()


@dataclass(frozen=True)
class ByGroup:
    """Metrics of the patients in one bin of a trait (`bins.TRAITS`). On the wire: `eval.TRAIT.BIN.NAME`, BIN from 0.

    `found` has neither labels nor groups of its own, and leaves on the same basis as the whole.
    """

    trait: str
    bin: int
    found: Evaluation


@dataclass(frozen=True)
class Statistics:
    """Histograms of a collection's patients over public bins, `deviation` being that of the noise on each weight.

    A histogram is a weight for each bin, in patients: noised (then it may be negative) or exact.
    """

    basis: Basis
    deviation: float | None = _number("standard deviation of the noise on each bin")
    label: tuple[float, ...] | None = _number("patients by label")
    modality: tuple[float, ...] | None = _number("patients by modality")
    maker: tuple[float, ...] | None = _number("patients by the maker of the scanner")
    field: tuple[float, ...] | None = _number("patients by magnetic field")
    sex: tuple[float, ...] | None = _number("patients by sex")
    age: tuple[float, ...] | None = _number("patients by decade of age")
    size: tuple[float, ...] | None = _number("patients by the longer side of their images")
    spacing: tuple[float, ...] | None = _number("patients by pixel spacing")
    distance: tuple[float, ...] | None = _number("patients by distance or thickness of slices")
    images: tuple[float, ...] | None = _number("patients by their number of images")
    intensity: tuple[float, ...] | None = _number("patients by intensity of their pixels")


Part = Operation | Accounting | Training | Evaluation | Statistics
_KINDS: tuple[tuple[str, type[Part]], ...] = (
    ("train", Operation), ("train", Training), ("privacy", Accounting), ("eval", Evaluation), ("stat", Statistics)
)  # fmt: skip


@dataclass(frozen=True)
class Numbers:
    """All the numbers of an answer."""

    operation: Operation = field(default_factory=Operation)
    accounting: Accounting | None = None
    training: Training | None = None
    evaluation: Evaluation | None = None
    statistics: Statistics | None = None

    def flat(self) -> dict[str, float]:
        """Return the single numbers by the names of `METRIC_FIELDS`; what is None is left out."""
        return (
            {name: float(value) for name, value in self._values() if not isinstance(value, tuple)}
            | {
                f"eval.{item.name}.{number}": float(value)
                for number, label in enumerate(self.evaluation.by_label if self.evaluation else ())
                for item in fields(label)
                if (value := getattr(label, item.name)) is not None
            }
            | {
                f"eval.{group.trait}.{group.bin}.{item.name}": float(value)
                for group in (self.evaluation.by_group if self.evaluation else ())
                for item in fields(group.found)
                if item.name not in NO_NUMBERS and (value := getattr(group.found, item.name)) is not None
            }
        )

    def lists(self) -> dict[str, list[float]]:
        """Return the histograms by the names of `METRIC_FIELDS`."""
        return {name: [float(weight) for weight in value] for name, value in self._values() if isinstance(value, tuple)}

    def bases(self) -> dict[str, Basis]:
        """Return on what basis the numbers of training, evaluation and statistics leave."""
        told = ((prefix, part) for prefix, part in self._parts())
        return {prefix: part.basis for prefix, part in told if isinstance(part, Training | Evaluation | Statistics)}

    def _values(self) -> Iterator[tuple[str, float | tuple[float, ...]]]:
        for prefix, part in self._parts():
            for item in fields(part):
                if item.name not in NO_NUMBERS and (value := getattr(part, item.name)) is not None:
                    yield f"{prefix}.{item.name}", value

    def _parts(self) -> Iterator[tuple[str, Part]]:
        parts = (
            ("train", self.operation), ("privacy", self.accounting), ("train", self.training),
            ("eval", self.evaluation), ("stat", self.statistics),
        )  # fmt: skip
        yield from ((prefix, part) for prefix, part in parts if part is not None)


NO_NUMBERS = frozenset({"basis", "by_label", "by_group"})
LABEL_FIELDS: dict[str, str] = {item.name: item.metadata["meaning"] for item in fields(ByLabel)}
METRIC_FIELDS: dict[str, str] = {
    f"{prefix}.{item.name}": item.metadata["meaning"]
    for prefix, kind in _KINDS
    for item in fields(kind)
    if item.name not in NO_NUMBERS
}
"""Every number's name on the wire with its meaning, read off the types above.

A label's own have its place behind; a group's have its trait and bin before (`ByLabel`, `ByGroup`).
"""
_HISTOGRAMS = {f"stat.{name}": len(one.bins) for name, one in bins.HISTOGRAMS.items()}
"""The histograms on the wire but for that of labels, with their number of bins."""


QUALITIES: tuple[str, ...] = tuple(
    item.name
    for item in fields(Evaluation)
    if item.name not in NO_NUMBERS and not item.name.endswith(("images", "patients", "seconds", "_low", "_high"))
)
"""The metrics that say how good a model is."""


def meaning_of(name: str) -> str | None:
    """Return the meaning of a number by its name on the wire, a label's and a group's too; None for no type's name."""
    if name in METRIC_FIELDS:
        return METRIC_FIELDS[name]
    if (group := group_of(name)) is not None:
        trait, number, metric = group
        return f"{METRIC_FIELDS[f'eval.{metric}']}, of patients by {group_title(trait, number)}"
    place = _place_of(name)
    return f"{LABEL_FIELDS[place[0]]}, of the job's label {place[1]} (from 0)" if place else None


def is_metric(name: str) -> bool:
    """Whether `name` ("auc", or "auc.1" of a label) says how good a model is."""
    return name in QUALITIES or _place_of(f"eval.{name}") is not None


def metric_title(name: str, labels: Sequence[str]) -> str:
    """Return a metric's name for people: for that of a label with the label's own name, of the job's `labels`."""
    place = _place_of(f"eval.{name}")
    return f"{place[0]} of {labels[place[1]]}" if place and place[1] < len(labels) else name


def group_of(name: str) -> tuple[str, int, str] | None:
    """Return the trait, the bin and the metric behind a group's number on the wire; None for any other name."""
    found = re.fullmatch(r"eval\.([a-z]+)\.(0|[1-9][0-9]?)\.([a-z0-9_]+)", name)
    if found is None or found[1] not in bins.TRAITS or f"eval.{found[3]}" not in METRIC_FIELDS:
        return None
    number = int(found[2])
    return (found[1], number, found[3]) if number < len(bins.HISTOGRAMS[found[1]].bins) else None


def group_title(trait: str, number: int) -> str:
    """Return a group's name for people: "sex: F"."""
    histogram = bins.HISTOGRAMS[trait]
    return f"{histogram.title}: {histogram.bins[number]}"


def evaluation_of(basis: Basis, values: Mapping[str, Any]) -> Evaluation:
    """Return an evaluation of numbers by name: `NAME`, `NAME.K` of the K-th label, `TRAIT.BIN.NAME` of a group."""
    labels: dict[int, dict[str, float]] = {}
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for name, value in values.items():
        if group := group_of(f"eval.{name}"):
            groups.setdefault(group[:2], {})[group[2]] = value
        elif place := _place_of(f"eval.{name}"):
            labels.setdefault(place[1], {})[place[0]] = value
        else:
            whole[name] = value
    by_label = tuple(ByLabel(**labels.get(number, {})) for number in range(max(labels, default=-1) + 1))
    by_group = tuple(ByGroup(*place, Evaluation(basis, **groups[place])) for place in sorted(groups))
    return Evaluation(basis, **whole, by_label=by_label, by_group=by_group)


def _place_of(name: str) -> tuple[str, int] | None:
    """The field and the label's place behind a label's number; None for any other name."""
    found = re.fullmatch(r"eval\.([a-z0-9_]+)\.(0|[1-9][0-9]{0,2})", name)
    if found is None or found[1] not in LABEL_FIELDS or int(found[2]) >= MOST_LABELS:
        return None
    return found[1], int(found[2])


def numbers_of(values: Mapping[str, object], bases: Mapping[str, object]) -> Numbers:
    """Return the numbers whose flat names and values are `values`. Inverse of `flat` and `bases`.

    Raises
    ------
    UpdateError
        A name that no type has, a value that is not a finite number (or not so many of them as a histogram has bins),
        or a basis that is missing or unknown.
    """
    for name, value in values.items():
        if meaning_of(name) is None:
            raise UpdateError(f'the answer has a metric "{name[:60]}" that is not on the allow-list')
        if name in _HISTOGRAMS or name == f"stat.{bins.LABEL}":
            _check_histogram(name, value)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UpdateError(f'the answer\'s metric "{name}" is not a finite number')
    training, evaluation = _named(values, "train", Training), _evaluated(values)
    accounting, statistics = _named(values, "privacy", Accounting), _named(values, "stat", Statistics)
    return Numbers(
        Operation(**_named(values, "train", Operation)),
        Accounting(**accounting) if accounting else None,
        Training(_basis(bases, "train"), **training) if training or "train" in bases else None,
        evaluation_of(_basis(bases, "eval"), evaluation) if evaluation or "eval" in bases else None,
        Statistics(_basis(bases, "stat"), **statistics) if statistics or "stat" in bases else None,
    )


def _check_histogram(name: str, value: object) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not 0 < len(value) <= bins.MOST_LABELS + 2:
        raise UpdateError(f'the answer\'s histogram "{name}" is no list of numbers')
    if len(value) != _HISTOGRAMS.get(name, len(value)):
        raise UpdateError(f'the answer\'s histogram "{name}" has {len(value)} bins, not {_HISTOGRAMS[name]}')
    if not all(isinstance(weight, int | float) and math.isfinite(weight) for weight in value):
        raise UpdateError(f'the answer\'s histogram "{name}" holds a number that is not finite')


def _named(values: Mapping[str, object], prefix: str, kind: type[Part]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)} - NO_NUMBERS
    found = {name: values[f"{prefix}.{name}"] for name in sorted(names) if f"{prefix}.{name}" in values}
    return {name: tuple(value) if isinstance(value, Sequence) else value for name, value in found.items()}


def _evaluated(values: Mapping[str, object]) -> dict[str, Any]:
    return {name.removeprefix("eval."): values[name] for name in sorted(values) if name.startswith("eval.")}


def _basis(bases: Mapping[str, object], prefix: str) -> Basis:
    found = bases.get(prefix)
    if found not in BASES:
        raise UpdateError(f'the answer does not say on what basis its "{prefix}" numbers leave: {", ".join(BASES)}')
    return found
