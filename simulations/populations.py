"""Hospitals of a scenario: a source's patients split over them, held out for tests, seen through each one's scanner.

Guarantees: every case goes to one hospital and one split of it, or to none (where sizes leave some over, or a hospital
is too small); a patient never goes to two; the same sections and seed give the same hospitals.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from client.dataset import CaseSet
from common.errors import UsageError
from common.job import DataSection
from simulations.members import Hospital
from simulations.partition import even_sizes, partition
from simulations.public_sets import draw_phantoms
from simulations.scanners import Look, looks, seen_through
from simulations.scenario import PartitionSection, ScannersSection, SourceSection
from simulations.sources import Source, joined, rows_of

POOLED = "pooled"
"""The name of the one place where all cases are, in an arm without federation."""


class Hospitals(Mapping[str, Hospital]):
    """Hospitals of a split source: a hospital's arrays are cut out when it is looked up."""

    def __init__(self, source: Source, rows: Mapping[str, Mapping[str, np.ndarray]], scanners: Mapping[str, Look], seed: int):  # fmt: skip  # noqa: ANN204, E501
        """Take each hospital's rows of the source by split."""
        self._source, self._rows, self._scanners, self._seed = source, rows, scanners, seed

    def __getitem__(self, name: str) -> Hospital:
        """Return a hospital."""
        splits = {}
        for place, (split, rows) in enumerate(self._rows[name].items()):
            cases = rows_of(self._source.cases, rows)
            if name in self._scanners:
                cases = seen_through(self._scanners[name], cases, (self._seed, place, zlib.crc32(name.encode())))
            splits[split] = cases
        return Hospital(name, splits)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a hospital; it is not made for that."""
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._rows)

    def __len__(self) -> int:
        """How many hospitals there are."""
        return len(self._rows)


@dataclass(frozen=True)
class Phantoms(Mapping[str, Hospital]):
    """Hospitals that draw their own phantoms when they are looked up, and are forgotten after."""

    names: Mapping[str, int]
    sizes: tuple[int, ...]
    source: SourceSection
    data: DataSection
    seed: int
    scanners: Mapping[str, Look] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Hospital:
        """Draw a hospital."""
        number = self.names[name]
        cases = draw_phantoms(self.sizes[number], self.source.prevalence, self.data, (self.seed, 2, number))
        rows = split_patients(cases, self.source, np.random.default_rng([self.seed, 3, number]))
        splits = {split: rows_of(cases, chosen) for split, chosen in rows.items()}
        if name in self.scanners:
            splits = {
                split: seen_through(self.scanners[name], found, (self.seed, place, number))
                for place, (split, found) in enumerate(splits.items())
            }
        return Hospital(name, splits)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a hospital; it is not made for that."""
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many hospitals there are."""
        return len(self.names)


def populate(
    source: Source, section: SourceSection, split: PartitionSection, scanners: ScannersSection, seed: int
) -> Hospitals:
    """Split a source over hospitals.

    Raises
    ------
    UsageError
        There is no such column, it has fewer patients than hospitals are asked for, a patient is in two hospitals, or
        no hospital is left.
    """
    parts = _parts(source, split, split.seed if split.seed is not None else seed)
    held_out = section.seed if section.seed is not None else seed
    rows = {}
    for name, patients in parts.items():
        mine = np.flatnonzero(np.isin(source.cases.patients, patients))
        rows[name] = _splits(source, section, mine, np.random.default_rng([held_out, 5, zlib.crc32(name.encode())]))
    return Hospitals(source, rows, looks(scanners, tuple(rows), seed) if scanners.any else {}, seed)


def populate_each(
    section: SourceSection, split: PartitionSection, scanners: ScannersSection, data: DataSection, seed: int
) -> Phantoms:
    """Name hospitals that draw their own phantoms. Raises UsageError for a source that can't draw."""
    if section.kind != "phantoms":
        raise UsageError('partition.kind = "each" is for phantoms: no other source can make more patients')
    names = {name: number for number, name in enumerate(_names(split.count))}
    random = np.random.default_rng([split.seed if split.seed is not None else seed, 19])
    sizes = np.round(section.patients * random.lognormal(0, split.skew, split.count)) if split.skew else None
    sizes = np.full(split.count, section.patients) if sizes is None else np.maximum(sizes, max(2, split.least))
    drawn = section.seed if section.seed is not None else seed
    shown = looks(scanners, tuple(names), seed) if scanners.any else {}
    return Phantoms(names, tuple(map(int, sizes)), section, data, drawn, shown)


def pool(population: Mapping[str, Hospital]) -> dict[str, Hospital]:
    """Return all hospitals' cases in one place. Each keeps its scanner and its held-out patients."""
    every = [population[name] for name in population]
    splits = {}
    for split in ("train", "validation", "test"):
        if found := [one.splits[split] for one in every if split in one.splits]:
            splits[split] = joined(found)
    return {POOLED: Hospital(POOLED, splits)}


def split_patients(cases: CaseSet, section: SourceSection, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the rows of "train", and of "validation" and "test" where shares ask for them: by patient, by label.

    Where the shares leave no patient for training, all are for training.
    """
    labels = _main_labels(cases.labels, cases.patients, cases.patient_count)
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    tests, rest = _every(order, section.test)
    checks, trained = _every(rest, section.validation / (1 - section.test))
    if not len(trained):
        trained, checks, tests = np.sort(order), checks[:0], tests[:0]
    named = {"train": trained, "validation": checks, "test": tests}
    return {name: np.flatnonzero(np.isin(cases.patients, chosen)) for name, chosen in named.items() if len(chosen)}


def _every(order: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Take `share` of what stands in order, evenly: each label, standing together, gives its part."""
    steps = np.floor(np.arange(len(order) + 1) * share + 0.5)
    taken = np.diff(steps) > 0
    return order[taken], order[~taken]


def _splits(source: Source, section: SourceSection, mine: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:  # fmt: skip  # noqa: E501
    if source.splits is None:
        return {name: mine[rows] for name, rows in split_patients(rows_of(source.cases, mine), section, random).items()}
    given = np.array([source.splits[row] for row in mine])
    found = {name: mine[given == name] for name in ("train", "validation", "test") if (given == name).any()}
    if section.validation and "validation" not in found:
        asked = section.model_copy(update={"test": 0.0})
        inside = split_patients(rows_of(source.cases, found["train"]), asked, random)
        found |= {name: found["train"][rows] for name, rows in inside.items()}
    return found


def _parts(source: Source, split: PartitionSection, seed: int) -> dict[str, np.ndarray]:
    """The patients of each hospital."""
    cases = source.cases
    if split.kind == "column":
        return _by_column(source, split)
    labels = _main_labels(cases.labels, cases.patients, cases.patient_count)
    sizes = _sizes(split, len(labels), seed)
    if split.count > len(labels) or sum(sizes) > len(labels):
        raise UsageError(
            f"partition asks for {split.count} hospitals with {sum(sizes)} patients, but the source has {len(labels)}"
        )
    alpha = split.alpha if split.kind == "dirichlet" else np.inf
    try:
        parts = partition(labels.tolist(), sizes, alpha=alpha, seed=seed)
    except UsageError as error:
        raise UsageError(f"partition: {error}") from error
    return dict(zip(_names(len(parts)), parts, strict=True))


def _by_column(source: Source, split: PartitionSection) -> dict[str, np.ndarray]:
    if split.column not in source.columns:
        known = ", ".join(source.columns) or "none"
        raise UsageError(f'partition.column: the source has no column "{split.column}": there are {known}')
    places: dict[str, set[int]] = {}
    for text, patient in zip(source.columns[split.column], source.cases.patients.tolist(), strict=True):
        places.setdefault(_name(text), set()).add(patient)
    times = Counter(patient for mine in places.values() for patient in mine)
    double = next((patient for patient, count in times.items() if count > 1), None)
    if double is not None:
        raise UsageError(f'partition.column: patient number {double} is in two hospitals by "{split.column}"')
    kept = {name: np.array(sorted(who)) for name, who in sorted(places.items()) if len(who) >= split.least}
    if not kept:
        raise UsageError(f'partition.least: no hospital by "{split.column}" has {split.least} patients')
    return kept


def _sizes(split: PartitionSection, patients: int, seed: int) -> tuple[int, ...]:
    if split.sizes:
        return split.sizes
    if split.kind != "quantity":
        return even_sizes(patients, split.count)
    if split.least * split.count > patients:
        return (split.least,) * split.count
    random = np.random.default_rng([seed, 23])
    weights = random.lognormal(0, split.skew, split.count)
    if split.law == "power":
        weights = np.arange(1, split.count + 1, dtype=float) ** -split.skew
    exact = split.least + weights / weights.sum() * (patients - split.least * split.count)
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: patients - int(sizes.sum())]] += 1
    return tuple(map(int, sizes))


def _main_labels(labels: tuple[str, ...], patients: np.ndarray, count: int) -> np.ndarray:
    """Each patient's most frequent label; of equally frequent ones the first in order."""
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.zeros((count, len(names)), dtype=np.int64)
    np.add.at(counts, (patients, codes), 1)
    return np.asarray(names[counts.argmax(axis=1)])


@lru_cache(maxsize=16)
def _names(count: int) -> tuple[str, ...]:
    return tuple(f"site-{number:0{len(str(count))}d}" for number in range(1, count + 1))


def _name(text: str) -> str:
    """A text of a column as a site's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64] or "unnamed"
