"""What a check gives: one finding in words, and what to show of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from client.catalog import FileRecord
from client.intake.folder import shown

MOST_PLACES = 20
"""So many examples of a finding are named."""
MOST_ROWS = 8
"""So many examples of a finding are shown as pictures."""


@dataclass(frozen=True)
class Finding:
    """One kind of problem. `count` is of what `says` counts; `places` name the first examples.

    A `grave` one can make a result wrong, or a training fail; the others are to be looked at.
    """

    kind: str
    grave: bool
    count: int
    says: str
    places: tuple[str, ...] = ()


class Shot(NamedTuple):
    """A picture to show, and what to write under it."""

    record: FileRecord
    caption: str


@dataclass(frozen=True)
class Problem:
    """A finding with its pictures: rows of shots that belong together."""

    finding: Finding
    rows: tuple[tuple[Shot, ...], ...] = ()


def problem(
    kind: str, says: str, places: Sequence[str], rows: Sequence[Sequence[Shot]], *, grave: bool, count: int = 0
) -> Problem:
    """Return a problem with as many of its examples as are shown. `count` is that of the places unless given."""
    finding = Finding(kind, grave, count or len(places), says, tuple(shown(place) for place in places[:MOST_PLACES]))
    return Problem(finding, tuple(tuple(row) for row in rows[:MOST_ROWS]))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 file", "2 series"."""
    return f"{number:,} {noun if number == 1 or noun.endswith('s') else noun + 's'}"
