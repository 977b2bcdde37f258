"""Groups of patients by sex, age or the maker of their scanner, in public bins: to tell a model's metrics for each.

A patient is in one group of each trait, so the groups of a trait are disjoint: with differential privacy one Gaussian
mechanism serves all of them (parallel composition). Without, a group of fewer patients than the policy's smallest count
is withheld; and as it could be found by subtracting the others from the whole, so are the smallest others until at
least so many patients are withheld together. Nor do two groups of different traits leave, one of which has all but a
few of the other's patients, or of those that are not in the other (secondary suppression; Hundepool et al.,
"Statistical Disclosure Control", 2012). Sums of more groups than two are not looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from client.catalog import FileRecord
from common import bins

Groups = Mapping[str, npt.NDArray[np.int64]]
"""By trait, each patient's bin: (patients,) int64."""


def traits_of(record: FileRecord) -> dict[str, int]:
    """Return the bin of a file in each of `bins.TRAITS`."""
    how = record.acquired
    return {
        "sex": index(("F", "M", "O"), how.sex, 3),
        "age": len(bins.DECADES) if how.age is None else how.age // 10,
        "maker": _maker(how.manufacturer),
    }


def groups_of(records: Iterable[FileRecord], patients: Sequence[str], traits: Iterable[str]) -> Groups:
    """Return the bin of each of `patients` by trait: that of most of the patient's files, and the first of a tie.

    A patient whose files are gone meanwhile is in the last bin: not said.
    """
    found: dict[str, list[dict[str, int]]] = defaultdict(list)
    for record in records:
        if not record.reason:
            found[record.patient].append(traits_of(record))
    return {
        trait: np.array(
            [
                _usual((one[trait] for one in found[patient]), len(bins.HISTOGRAMS[trait].bins) - 1)
                for patient in patients
            ],
            dtype=np.int64,
        )
        for trait in traits
    }


def released(groups: Groups, least: int) -> list[tuple[str, int]]:
    """Return the groups, trait and bin, whose exact metrics may be told."""
    banned: set[tuple[str, int]] = set()
    while True:
        kept = [
            (trait, place)
            for trait, places in groups.items()
            for place in shown(places, least, {one for name, one in banned if name == trait})
        ]
        if (telling := _telling(groups, kept, least)) is None:
            return kept
        banned.add(telling)


def _telling(groups: Groups, kept: Sequence[tuple[str, int]], least: int) -> tuple[str, int] | None:
    """The smaller of two groups whose difference is of fewer patients than `least`; None where no two are so."""
    inside = {one: groups[one[0]] == one[1] for one in kept}
    for first, second in combinations(kept, 2):
        if first[0] == second[0]:
            continue
        for one, other in product((inside[first], ~inside[first]), (inside[second], ~inside[second])):
            apart = int((one != other).sum())
            if 0 < apart < least and (not (one & ~other).any() or not (other & ~one).any()):
                return min(first, second, key=lambda group: (int(inside[group].sum()), group))
    return None


def shown(places: npt.NDArray[np.int64], least: int, banned: Collection[int] = ()) -> list[int]:
    """Return the bins of a trait that may be told: those of `least` patients or more, if the rest can't be found."""
    counts = Counter(places.tolist())
    kept = sorted(
        (place for place in counts if counts[place] >= least and place not in banned),
        key=lambda place: (counts[place], place),
    )
    hidden = sum(counts.values()) - sum(counts[place] for place in kept)
    while kept and 0 < hidden < least:
        hidden += counts[kept.pop(0)]
    return sorted(kept)


def index(known: Sequence[str], value: str, otherwise: int) -> int:
    """Return the place of `value` in `known`, or `otherwise`."""
    return known.index(value) if value in known else otherwise


def _usual(places: Iterable[int], otherwise: int) -> int:
    counts = Counter(places)
    return min(counts, key=lambda place: (-counts[place], place), default=otherwise)


def _maker(text: str) -> int:
    said = f"{text.casefold()} "
    for at, words in enumerate(bins.MAKERS.values()):
        if any(said.startswith(word) or f" {word}" in said for word in words):
            return at
    return len(bins.MAKERS) + (not text)
