"""What is asked of a PACS, and what it says it has: studies, their series, and the series' instances.

The same for DIMSE and DICOMweb: both are asked level by level, with the standard's keywords (PS3.4 C.6.2.1). What comes
back is held against the query once more, because a PACS may ignore a key that it does not know.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.errors import UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Level = Literal["STUDY", "SERIES", "IMAGE"]
Find = Callable[[Level, dict[str, str]], "list[Dataset]"]
"""Asks one level with matching and return keys, by keyword (an empty value matches all), and gives the answers."""
_DATES = re.compile(r"(\d{8})?(-)?(\d{8})?", re.ASCII)


@dataclass(frozen=True)
class Query:
    """Which series are wanted. Every part that is given must match; `dates` is a range as DICOM writes it.

    Raises UsageError for dates that are none, or when nothing is given: a whole PACS is nobody's collection.
    """

    modalities: tuple[str, ...] = ()
    body_part: str = ""
    dates: str = ""
    patient_id: str = ""
    study: str = ""

    def __post_init__(self) -> None:
        """Check the parts."""
        if not (self.modalities or self.body_part or self.dates or self.patient_id or self.study):
            raise UsageError("say which studies: by --modality, --body-part, --dates, --patient-id or --study")
        for part in (*self.modalities, self.body_part, self.patient_id, self.study):
            if "\\" in part or not part.isprintable():
                raise UsageError(f'"{part}" can\'t be asked for: a backslash or control character is in it')
        for name in ("modalities", "body_part"):  # code strings have no small letters (PS3.5 6.2, CS)
            value = getattr(self, name)
            large = value.upper() if isinstance(value, str) else tuple(part.upper() for part in value)
            object.__setattr__(self, name, large)
        self.first_and_last()

    def first_and_last(self) -> tuple[str, str]:
        """Return the first and last day of the dates, YYYYMMDD; "" where it is open."""
        match = _DATES.fullmatch(self.dates)
        first, dash, last = match.groups(default="") if match else ("", "", "")
        try:
            for day in filter(None, (first, last)):
                datetime.datetime.strptime(day, "%Y%m%d")
        except ValueError:
            match = None
        last = last if dash else first
        if self.dates and (match is None or not (first or last) or (first and last and first > last)):
            raise UsageError(f'"{self.dates}" are no dates: write 20200101-20201231, 20200101- or one day')
        return first, last

    def admits(self, study: Dataset, series: Dataset) -> bool:
        """Whether a series is wanted, by what the PACS tells of it. What it does not tell is not taken for granted."""
        first, last = self.first_and_last()
        date = _text(study, "StudyDate")
        if self.dates and not (date and (not first or first <= date) and (not last or date <= last)):
            return False
        if self.modalities and _text(series, "Modality").upper() not in self.modalities:
            return False
        if self.body_part and not _matches(self.body_part, _text(series, "BodyPartExamined")):
            return False
        return not self.study or _text(study, "StudyInstanceUID") == self.study

    def as_asked(self) -> dict[str, str]:
        """Return what was asked, by DICOM's keywords, without what tells who a patient is."""
        asked = {"Modality": "\\".join(self.modalities), "BodyPartExamined": self.body_part, "StudyDate": self.dates}
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class Instance:
    """One SOP instance: its UID and its SOP class ("" where the PACS does not tell)."""

    uid: str
    sop_class: str = ""


@dataclass(frozen=True)
class Series:
    """One series of a PACS: its UIDs, its modality, and its instances."""

    study: str
    uid: str
    modality: str
    instances: tuple[Instance, ...] = ()


def find_series(find: Find, query: Query) -> Iterator[Series]:
    """Ask for every series that the query admits, with its instances."""
    keys = {"StudyInstanceUID": query.study, "StudyDate": query.dates, "PatientID": query.patient_id}
    if len(query.modalities) == 1:  # ModalitiesInStudy takes one value where a PACS supports it at all
        keys["ModalitiesInStudy"] = query.modalities[0]
    # Not every PACS takes a wild card here (one reads "%2A" as text): `admits` does it.
    body_part = "" if set(query.body_part) & set("*?") else query.body_part
    for study in find("STUDY", keys):
        uid = _text(study, "StudyInstanceUID")
        modality = query.modalities[0] if len(query.modalities) == 1 else ""
        asked = {"StudyInstanceUID": uid, "SeriesInstanceUID": "", "Modality": modality, "BodyPartExamined": body_part}
        for series in find("SERIES", asked):
            if uid and (name := _text(series, "SeriesInstanceUID")) and query.admits(study, series):
                yield Series(uid, name, _text(series, "Modality"), tuple(_instances(find, uid, name)))


def _instances(find: Find, study: str, series: str) -> Sequence[Instance]:
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": "", "SOPClassUID": ""}
    found = {_text(answer, "SOPInstanceUID"): _text(answer, "SOPClassUID") for answer in find("IMAGE", keys)}
    return [Instance(uid, sop_class) for uid, sop_class in sorted(found.items()) if uid]


def _matches(pattern: str, value: str) -> bool:
    """Wild card matching (PS3.4 C.2.2.2.4): "*" is any text, "?" any one character; case does not count."""
    parts = (".*" if mark == "*" else "." if mark == "?" else re.escape(mark) for mark in pattern)
    return re.fullmatch("".join(parts), value, re.IGNORECASE | re.DOTALL) is not None


def _text(answer: Dataset, keyword: str) -> str:
    value = answer.get(keyword)
    return "" if value is None else str(value).strip("\0 ")
