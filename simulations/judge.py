"""Judges models on the patients that every hospital holds out: exact metrics, by hospital and over all.

Scopes: "site", one hospital's test; "pooled", all of them as one; "mean" and "worst" over hospitals; "unseen", a test
set that is no hospital's. Where each hospital has a model of its own, it is judged by that one: "pooled" then has each
patient's prediction from its own hospital, and "unseen" is the mean over hospitals' models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from client.dataset import CaseSet
from client.evaluation import Split, predict
from client.scaling import scaled
from common.job import Job
from common.networks import build_network, load_tensors
from common.tasks.registry import build_task
from common.update import Tensors
from server.criterion import LOWER_IS_BETTER
from simulations.members import Population
from simulations.scenario import JudgeSection
from simulations.sources import joined

Values = dict[str, float]
ModelOf = Callable[[str], Tensors]
"""Gives a hospital's model."""


@dataclass(frozen=True)
class Row:
    """One number: a metric after a round, in a scope; `site` is empty but in the scope "site"."""

    round: int
    scope: str
    site: str
    metric: str
    value: float
    final: bool = False


@dataclass(frozen=True)
class Said:
    """What a model says of a split: scores (N, K) and losses (N,)."""

    scores: np.ndarray
    losses: np.ndarray


class Judge:
    """The held-out patients of a population, with the job's task and network."""

    def __init__(
        self, job: Job, population: Population, unseen: CaseSet | None, section: JudgeSection, device: torch.device,
        training: CaseSet | None = None,
    ) -> None:  # fmt: skip
        """Take at most `section.sites` hospitals, evenly, of those that hold anyone out.

        `training`: whose training split scales a table for the model; None: each hospital's own.
        """
        self._task, self._device = build_task(job), device
        self._network = build_network(job).to(device)
        tests: dict[str, CaseSet] = {}
        for name in _evenly(tuple(population), section.sites):
            splits = dict(population[name].splits)
            if "test" in splits:
                tests[name] = scaled(splits | ({"train": training} if training else {}), job.data)["test"]
        self.sites = tuple(tests)
        self._tests = {name: self._split(cases) for name, cases in tests.items()}
        self._all = self._split(joined(tuple(tests.values()))) if tests else None
        self._unseen = self._split(unseen) if unseen is not None else None

    def common(self, number: int, model: Tensors, *, final: bool = False) -> list[Row]:
        """Judge one model for all."""
        load_tensors(self._network, model)
        rows: list[Row] = []
        if self._all is not None:
            said = self._said(self._all)
            ends = np.cumsum([len(split.cases.labels) for split in self._tests.values()])
            starts = [0, *ends[:-1]]
            parts = {
                name: Said(said.scores[start:end], said.losses[start:end])
                for name, start, end in zip(self._tests, starts, ends, strict=True)
            }
            rows += self.together(number, parts, final=final)
        if self._unseen is not None:
            rows += _rows(number, "unseen", "", self._values(self._said(self._unseen), self._unseen), final)
        return rows

    def own(self, number: int, model_of: ModelOf, *, final: bool = False) -> list[Row]:
        """Judge each hospital by its own model."""
        said = {name: self.at(name, model_of(name)) for name in self.sites}
        outside = [self.outside(model_of(name)) for name in self.sites]
        return self.together(number, said, final=final) + self.mean_outside(number, outside, final=final)

    def at(self, site: str, model: Tensors) -> Said:
        """Return what a model says at one hospital."""
        load_tensors(self._network, model)
        return self._said(self._tests[site])

    def outside(self, model: Tensors) -> Values:
        """Return a model's metrics on the patients that are no hospital's; nothing if there are none."""
        if self._unseen is None:
            return {}
        load_tensors(self._network, model)
        return self._values(self._said(self._unseen), self._unseen)

    def mean_outside(self, number: int, found: Sequence[Values], *, final: bool) -> list[Row]:
        """Return the mean of several models' metrics on patients that are no hospital's."""
        return _rows(number, "unseen", "", _means(found), final)

    def together(self, number: int, said: Mapping[str, Said], *, final: bool = False) -> list[Row]:
        """Return all rows of what was said at the hospitals."""
        if self._all is None or not said:
            return []
        by_site = {name: self._values(one, self._tests[name]) for name, one in said.items()}
        whole = Said(
            np.concatenate([said[name].scores for name in self.sites]),
            np.concatenate([said[name].losses for name in self.sites]),
        )
        rows = _rows(number, "pooled", "", self._values(whole, self._all), final)
        rows += _rows(number, "mean", "", _means(list(by_site.values())), final)
        rows += _rows(number, "worst", "", _worst(list(by_site.values())), final)
        for name, values in by_site.items():
            rows += _rows(number, "site", name, values, final)
        return rows

    def _split(self, cases: CaseSet) -> Split:
        return Split(cases, self._task.targets(cases))

    def _said(self, split: Split) -> Said:
        found = predict(self._network, split, self._task, self._device)
        return Said(found.scores, found.losses)

    def _values(self, said: Said, split: Split) -> Values:
        loss = float(said.losses.mean())
        values = {"loss": loss} if np.isfinite(loss) else {}
        return values | self._task.metrics(said.scores, split.targets.numpy())


def _rows(number: int, scope: str, site: str, values: Values, final: bool) -> list[Row]:
    return [Row(number, scope, site, metric, float(value), final) for metric, value in values.items()]


def _means(found: Sequence[Values]) -> Values:
    return {name: float(np.mean(values)) for name, values in _by_metric(found).items()}


def _worst(found: Sequence[Values]) -> Values:
    return {
        name: (max if name.split(".")[0] in LOWER_IS_BETTER else min)(values)
        for name, values in _by_metric(found).items()
    }


def _by_metric(found: Sequence[Values]) -> dict[str, list[float]]:
    """Each metric's values where it is defined; ends of intervals are left out."""
    names = dict.fromkeys(name for values in found for name in values if not name.endswith(("_low", "_high")))
    return {name: [values[name] for values in found if name in values] for name in names}


def _evenly(names: tuple[str, ...], most: int) -> tuple[str, ...]:
    if len(names) <= most:
        return names
    return tuple(names[int(place)] for place in np.linspace(0, len(names) - 1, most).round()) if most else ()
