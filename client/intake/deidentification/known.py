"""Who is named in a header: words and numbers that must not stand anywhere else in it either.

A name is often copied to where no name belongs: a protocol, a manufacturer's field, a comment. What the attributes of
persons and identifiers say is looked for in every text that would stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from client.intake.acquisition import WORDS
from client.intake.confidentiality import DUMMY_WORDS

_NUMBERS = frozenset(tag_for_keyword(keyword) for keyword in (
    "PatientID", "OtherPatientIDs", "AccessionNumber", "AdmissionID", "StudyID", "MedicalRecordLocator",
    "PatientBirthDate", "PatientTelephoneNumbers", "FillerOrderNumberImagingServiceRequest",
    "PlacerOrderNumberImagingServiceRequest", "RequestedProcedureID", "ScheduledProcedureStepID",
    "ClinicalTrialSubjectID", "IssuerOfPatientID",
))  # fmt: skip
_PHRASES = frozenset(tag_for_keyword(keyword) for keyword in (
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "PatientAddress", "PatientBirthName",
    "PatientMotherBirthName", "ResponsibleOrganization", "PatientComments",
))  # fmt: skip
_SHORTEST_WORD, _SHORTEST_NUMBER, _SHORTEST_PART = 3, 4, 5


@dataclass(frozen=True)
class Known:
    """The words and numbers that name somebody in one file, in lower case without punctuation."""

    words: frozenset[str]
    parts: tuple[str, ...]

    def named_in(self, text: str) -> bool:
        """Whether a text holds one of them: as a word, or, of five characters and more, as a part of one."""
        if not self.words:
            return False
        found = _words(text)
        joined = "".join(found)
        return not self.words.isdisjoint(found) or any(part in joined for part in self.parts)


def known_in(dataset: Dataset) -> Known:
    """Return who is named in a data set, at any depth."""
    found: set[str] = set()
    for tag, vr, value in _values(dataset):
        text = str(value)
        if vr == "PN":
            found.update(word for word in _words(text) if _tells(word))
        elif (
            (number := "".join(_words(text)))
            and len(number) >= _SHORTEST_NUMBER
            and (tag in _PHRASES or any(character.isdigit() for character in number))
        ):
            found.add(number)
    return Known(frozenset(found), tuple(word for word in sorted(found) if len(word) >= _SHORTEST_PART))


def _tells(word: str) -> bool:
    return len(word) >= _SHORTEST_WORD and word not in WORDS and word not in DUMMY_WORDS


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _values(dataset: Dataset) -> Iterator[tuple[int, str, Any]]:
    """Every value of an attribute of persons or identifiers, at any depth; one that can't be read is left out."""
    for tag in list(dataset.keys()):
        listed = int(tag) in _NUMBERS or int(tag) in _PHRASES
        vr = dataset.get_item(tag).VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
        if not listed and vr not in {"PN", "SQ", "UN"}:
            continue
        try:
            element = dataset[tag]
        except Exception:  # noqa: S112 - pydicom raises many kinds for broken values, which do not stay either
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _values(item)
        elif listed or element.VR == "PN":
            several = isinstance(element.value, list | tuple) or element.VM > 1
            yield from ((int(tag), element.VR, value) for value in (element.value if several else [element.value]))
