"""How much there is of what: by split, label, scanner, protocol, size, and what is known of the patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from client.catalog import SPLITS, FileRecord
from client.intake.sight import BINS, PARTS

MOST_ROWS = 30
"""A table has so many rows; what is rarer is one more."""


@dataclass(frozen=True)
class Table:
    """Counts under a title: the first column says of what, the others are numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Histogram:
    """How the intensities of a scanner's images are spread: shares of `BINS` bins, each file counting the same."""

    name: str
    files: int
    shares: tuple[float, ...]


def tables(records: Sequence[FileRecord], splits: Mapping[str, str]) -> Iterator[Table]:
    """Yield the counts of indexed records."""

    def by(title: str, head: str, key: Callable[[FileRecord], Hashable], *, in_order: bool = False) -> Iterator[Table]:
        groups: dict[Hashable, list[FileRecord]] = defaultdict(list)
        for record in records:
            groups[key(record)].append(record)
        if set(groups) <= {"", "unknown"}:
            return  # nobody says anything of it
        ordered = sorted(groups.items(), key=lambda item: (0 if in_order else -len(item[1]), str(item[0])))
        rows = [(str(name) or "not said", *_counts(found)) for name, found in ordered[:MOST_ROWS]]
        if rest := [record for _, found in ordered[MOST_ROWS:] for record in found]:
            rows.append((f"{len(ordered) - MOST_ROWS} others", *_counts(rest)))
        yield Table(title, (head, "patients", "series", "images"), tuple(rows))

    yield from by("Splits", "split", lambda record: splits[record.patient])
    yield from _labels(records, splits)
    yield from by("Modalities", "modality", lambda record: record.modality)
    yield from by("Scanners", "manufacturer, model, field", scanner)
    yield from by("Protocols", "known words of the description", lambda record: record.acquired.protocol)
    yield from by("Sizes", "rows x columns", lambda record: f"{record.rows} x {record.columns}")
    yield from by("Spacing", "mm between rows x columns", _spacing)
    yield from by("Sex", "sex", lambda record: record.acquired.sex)
    yield from by("Age", "years", _age, in_order=True)


def scanner(record: FileRecord) -> str:
    """Return who made the scanner, its model and field, as far as the header says."""
    how = record.acquired
    field = f"{how.field:g} T" if how.field is not None else ""
    return ", ".join(part for part in (how.manufacturer, how.model, field) if part)


def images_each(records: Sequence[FileRecord]) -> tuple[int, int, int]:
    """Return the fewest, median and most images of a patient."""
    counts: dict[str, int] = defaultdict(int)
    for record in records:
        counts[record.patient] += record.frames
    values = list(counts.values()) or [0]
    return min(values), int(np.median(values)), max(values)


def histograms(records: Sequence[FileRecord], most: int = 12) -> tuple[Histogram, ...]:
    """Return the intensities of the scanners with most files."""
    groups: dict[str, list[FileRecord]] = defaultdict(list)
    for record in records:
        if len(record.seen.histogram) == BINS:
            groups[", ".join(part for part in (record.modality, scanner(record)) if part)].append(record)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    return tuple(
        Histogram(name, len(found), tuple(np.mean([record.seen.histogram for record in found], axis=0) / PARTS))
        for name, found in ordered
    )


def _labels(records: Sequence[FileRecord], splits: Mapping[str, str]) -> Iterator[Table]:
    """Patients and images of each label in each split."""
    found: dict[str, dict[str, list[FileRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.label is not None:
            found[record.label][splits[record.patient]].append(record)
    if not found:
        return
    heads = tuple(f"{split}: {what}" for split in SPLITS for what in ("patients", "images"))
    rows = [
        (label or "(none)", *(text for split in SPLITS for text in _patients_and_images(groups[split])))
        for label, groups in sorted(found.items(), key=lambda item: -sum(map(len, item[1].values())))
    ]
    yield Table("Labels", ("label", *heads), tuple(rows[:MOST_ROWS]))


def _counts(records: Sequence[FileRecord]) -> tuple[str, str, str]:
    patients, images = _patients_and_images(records)
    return patients, f"{len({record.series or record.sha256 for record in records}):,}", images


def _patients_and_images(records: Sequence[FileRecord]) -> tuple[str, str]:
    return f"{len({record.patient for record in records}):,}", f"{sum(record.frames for record in records):,}"


def _spacing(record: FileRecord) -> str:
    return " x ".join(f"{size:.2g}" for size in record.acquired.spacing)


def _age(record: FileRecord) -> str:
    decade = record.acquired.age
    if decade is None:
        return ""
    return f"{decade} and older" if decade >= 80 else f"{decade} to {decade + 9}"
