"""Whether the slices of a series are all there, evenly spaced, and lie as its headers say (PS3.3 C.7.6.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from client.catalog import FileRecord
from client.intake.quality.problem import Problem, Shot, counted, problem

FEWEST = 3
"""Of fewer places nobody can say that one is missing."""
GAP = 1.5
"""A step of more than this many usual ones is a gap: the bound by which a volume is refused for training, too."""
UNEVEN, CONTRADICTION = 0.1, 0.1
"""Shares of the usual step."""
SAME = 0.01
"""Two places nearer than this many mm are one; sizes that differ by less than this share are the same."""
TURNED = 0.02
"""Direction cosines of one series differ by less."""
LARGEST_SPACING = 20.0
"""In mm: no image of a patient has larger pixels."""
_LOCALIZERS = frozenset(["localizer", "localiser", "scout", "survey", "topogram"])
_MEASURED = frozenset(["CT", "MR", "PT"])
"""Modalities whose images always have a spacing (PS3.3: type 1 in the Image Plane module)."""


@dataclass(frozen=True)
class Series:
    """Files of one series in the order of their slices; or one file of many frames, or of one image."""

    records: tuple[FileRecord, ...]

    @property
    def name(self) -> str:
        """The path by which a person finds it: that of its first file."""
        return self.records[0].path

    @property
    def places(self) -> list[float]:
        """The distinct places along the normal, in mm; none when some slice says nothing."""
        if any(len(record.acquired.places) != record.frames for record in self.records):
            return []
        every = sorted(place for record in self.records for place in record.acquired.places)
        return [place for at, place in enumerate(every) if at == 0 or place - every[at - 1] > SAME]

    @property
    def turned(self) -> bool:
        """Whether its slices point in different directions."""
        found = [record.acquired.orientation for record in self.records if record.acquired.places]
        if any(not one for one in found):
            return True
        return len(set(found)) > 1 and bool((np.ptp(np.array(found), axis=0) > TURNED).any())

    @property
    def localizer(self) -> bool:
        """Whether it only shows where the others lie: then its slices may point anywhere."""
        return not _LOCALIZERS.isdisjoint(self.records[0].acquired.protocol.split())

    def shots(self) -> tuple[Shot, ...]:
        """The first, middle and last slice."""
        at = dict.fromkeys((0, len(self.records) // 2, len(self.records) - 1))
        return tuple(Shot(self.records[index], self.records[index].path) for index in at)


def series_of(records: Iterable[FileRecord]) -> list[Series]:
    """Return the series of indexed records."""
    groups: dict[tuple[str, str], list[FileRecord]] = defaultdict(list)
    for record in records:
        alone = record.frames > 1 or not record.series
        groups[(record.series, f"{record.root}/{record.path}" if alone else "")].append(record)
    return [Series(tuple(sorted(found, key=_order))) for found in groups.values()]


def problems(every: Sequence[Series]) -> Iterator[Problem]:
    """Yield what is amiss with series."""
    told: tuple[tuple[str, bool, str, Callable[[Series], str]], ...] = (
        ("missing slices", True, "{}: a volume is not made of {them}, and a training on volumes stops", _missing),
        ("inconsistent orientation", True, "slices point in different directions in {}", _turned),
        ("mixed spacing", True, "pixels of different sizes in {}", _mixed),
        ("mixed sizes", True, "images of different rows and columns in {}", _sizes),
        ("wrong spacing", True, "the header contradicts the slices' positions, or can't be, in {}", _wrong),
        ("uneven distances", False, "distances between slices vary by over 10 % in {}", _uneven),
        ("incomplete positions", False, "some places have fewer images than others in {}", _incomplete),
        ("no spacing", False, "the header has no pixel spacing, which its modality needs, in {}", _silent),
    )
    for kind, grave, says, look in told:
        found = [(one, text) for one in every if (text := look(one))]
        if found:
            places = [f"{one.name}: {text}" for one, text in found]
            number = counted(len(found), "series")
            text = f"slices are missing in {number}" if kind == "missing slices" else says.format(number)
            yield problem(kind, text, places, [one.shots() for one, _ in found], grave=grave)


def _missing(one: Series) -> str:
    places = one.places
    if len(places) < FEWEST or one.turned or one.localizer:
        return ""
    steps = np.diff(places)
    usual = float(np.median(steps))
    gaps = [(place, step) for place, step in zip(places, steps, strict=False) if step > GAP * usual]
    if not gaps:
        return ""
    number = sum(round(step / usual) - 1 for _, step in gaps)
    where = ", ".join(f"{place + usual:.1f}" for place, _ in gaps[:3])
    return f"{counted(max(number, 1), 'slice')} missing of {len(places) + number}, at {where} mm"


def _uneven(one: Series) -> str:
    places = one.places
    if len(places) < FEWEST or one.turned or one.localizer or _missing(one):
        return ""
    steps = np.diff(places)
    low, usual, high = float(steps.min()), float(np.median(steps)), float(steps.max())
    return f"{low:.2f} to {high:.2f} mm" if max(high - usual, usual - low) > UNEVEN * usual else ""


def _incomplete(one: Series) -> str:
    places = one.places
    images = sum(record.frames for record in one.records)
    if len(places) < FEWEST or one.turned or images % len(places) == 0:
        return ""
    return f"{counted(images, 'image')} at {len(places)} places"


def _turned(one: Series) -> str:
    return "" if one.localizer or not one.turned else f"{counted(len(one.records), 'file')}"


def _mixed(one: Series) -> str:
    found = [record.acquired.spacing for record in one.records if record.acquired.spacing]
    if len(found) < 2 or one.localizer:
        return ""
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    return f"{low.min():.3f} to {high.max():.3f} mm" if (high - low > SAME * np.abs(high)).any() else ""


def _sizes(one: Series) -> str:
    found = {(record.rows, record.columns) for record in one.records}
    return (
        "" if len(found) < 2 or one.localizer else ", ".join(f"{rows} x {columns}" for rows, columns in sorted(found))
    )


def _wrong(one: Series) -> str:
    how = one.records[0].acquired
    if any(not 0 < size <= LARGEST_SPACING for size in how.spacing):
        return f"pixels of {how.spacing[0]:g} x {how.spacing[1]:g} mm"
    if one.records[0].format == "nifti" and how.between is not None and how.between <= 0:
        return f"slices {how.between:g} mm apart"
    places = one.places
    if not how.between or len(places) < FEWEST or one.turned or one.localizer:
        return ""
    usual = float(np.median(np.diff(places)))
    contradicts = abs(usual - abs(how.between)) > CONTRADICTION * usual
    return f"slices are {usual:.2f} mm apart, the header says {how.between:.2f}" if contradicts else ""


def _silent(one: Series) -> str:
    silent = [record for record in one.records if record.modality in _MEASURED and not record.acquired.spacing]
    return counted(len(silent), "file") if silent else ""


def _order(record: FileRecord) -> tuple[float, str]:
    return (record.acquired.places[0] if record.acquired.places else 0.0, record.path)
