"""The attributes of a data set, treated by the profile: in place, at any depth, private ones too.

Guarantees: afterwards no text stands in the data set but what the profile keeps, what `profile.TEXTS` lists and codes
(VR CS of the form that PS3.5 6.2 gives them); none of these holds a word or number that names somebody in this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from client.intake.deidentification.descriptors import cleaned, is_clean
from client.intake.deidentification.known import Known, known_in
from client.intake.deidentification.profile import ARRAYS, CLASSES, TEXTS, Action, Rule, rules
from client.intake.deidentification.safe_private import NUMBERS, SAFE_PRIVATE
from client.intake.deidentification.substitutes import Substitutes
from client.intake.deidentification.treatment import Treatment

DUMMY = "REMOVED"
OVERLAYS, CURVES = range(0x6000, 0x6100), range(0x5000, 0x5100)
_TEXT = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_ARRAY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_FORMS = {
    "CS": re.compile(r"[A-Z0-9 _]{0,16}"),
    "AS": re.compile(r"\d{3}[DWMY]"),
    "DS": re.compile(r" *[-+0-9.eE]{0,16} *"),
    "IS": re.compile(r" *[-+0-9]{0,12} *"),
}  # PS3.5 6.2
_PLAIN_NUMBERS = re.compile(rb"[-+0-9.eE \\]*")
_LONGEST_NUMBER = 5
_OLDEST = 89
_CLASS = "SOPClassUID"
_GONE_GROUPS = frozenset({0x0000, 0x0002, 0x0004, 0x0400, 0xFFFA, 0xFFFC})
"""Commands, file meta, directories, signatures and encrypted attributes, paddings."""


def treat(dataset: Dataset, substitutes: Substitutes, treatment: Treatment) -> None:
    """De-identify `dataset` in place, and note in `treatment` what was done."""
    _Walk(substitutes, known_in(dataset), treatment).level(dataset)


class _Walk:
    """The way through one file's attributes."""

    def __init__(self, substitutes: Substitutes, known: Known, treatment: Treatment) -> None:
        self._substitutes, self._known, self._treatment = substitutes, known, treatment
        self._values: dict[Action, Callable[[DataElement, Rule, Dataset], list[str] | None]] = {
            Action.UID: self._uids, Action.CLEAN: self._words, Action.KEEP: self._kept,
            Action.DUMMY: self._dummies,
        }  # fmt: skip

    def level(self, dataset: Dataset, *, everything: bool = False) -> None:
        """Treat one level of nesting; with `everything` all texts become dummies."""
        clocks = _clocks(dataset)
        for tag in list(dataset.keys()):
            if tag.is_private:
                continue
            raw = dataset.get_item(tag)
            vr = str(raw.VR or _dictionary_vr(tag))
            rule = self._rule(tag, vr, everything)
            if rule.action is Action.KEEP and not rule.option and self._stays_undecoded(raw.value, vr):
                continue
            self._treat(dataset, tag, rule, clocks)
        self._private(dataset)

    def _stays_undecoded(self, value: Any, vr: str) -> bool:
        """Whether a value that may stay is sure to: numbers and arrays. Long lists of numbers cost time to decode."""
        if vr in {"DS", "IS"} and isinstance(value, bytes):
            plain = _PLAIN_NUMBERS.fullmatch(value) is not None
            return plain and self._known.words.isdisjoint(value.decode("ascii").replace(" ", "").split("\\"))
        return vr in NUMBERS - {"DS", "IS"} or vr in _ARRAY

    def _rule(self, tag: BaseTag, vr: str, everything: bool) -> Rule:
        """The rule for an attribute: the table's, or what holds for its kind."""
        if tag.group in _GONE_GROUPS or tag.group in OVERLAYS or tag.group in CURVES or tag.element == 0:
            return Rule(Action.REMOVE)
        if (rule := rules().get(int(tag))) is not None:
            return rule
        keyword = keyword_for_tag(tag)
        if not dictionary_has_tag(tag) or (vr in _ARRAY and keyword not in ARRAYS):
            return Rule(Action.REMOVE)
        if vr in {"DA", "DT", "TM"}:
            return Rule(Action.SHIFT)
        if vr == "SQ":
            return Rule(Action.ENTER)
        if vr == "UI" and not (keyword.endswith(_CLASS) or keyword in CLASSES):
            return Rule(Action.UID)
        if vr in _TEXT and keyword not in TEXTS:
            return Rule(Action.DUMMY if everything else Action.EMPTY)
        return Rule(Action.KEEP, Action.DUMMY if everything else Action.EMPTY)

    def _treat(self, dataset: Dataset, tag: BaseTag, rule: Rule, clocks: dict[str, str]) -> None:
        keyword = keyword_for_tag(tag) or str(tag)
        try:
            element = dataset[tag]
            element.value  # noqa: B018 - decodes it
        except Exception:  # a value that can't be read may say anything
            rule, element = Rule(Action.REMOVE), None
        done = self._done(dataset, element, rule, clocks) if element is not None else Action.REMOVE
        if done is Action.REMOVE:
            del dataset[tag]
        if done is None or (done is Action.KEEP and not rule.option):
            return
        by = f" by option {rule.option}" if rule.option and done is not Action.REMOVE else ""
        self._treatment.note(f"{done}{by}", keyword)

    def _done(self, dataset: Dataset, element: DataElement, rule: Rule, clocks: dict[str, str]) -> Action | None:
        """Do to an element what the rule says, and return what was done, if anything."""
        action = rule.action
        if element.VR == "SQ":
            return self._sequence(element, action)
        if action in {Action.REMOVE, Action.ENTER} or (element.VR in {"UN", "OB"} and action is not Action.KEEP):
            return Action.REMOVE
        if not _texts(element) and element.VR not in NUMBERS:
            return None  # empty as it is
        if action is Action.EMPTY:
            element.clear()
            return Action.EMPTY
        shifts = action is Action.SHIFT
        found = self._shifted(element, clocks) if shifts else self._values[action](element, rule, dataset)
        if found is None:
            return Action.KEEP
        return self._put(dataset, element, found, rule)

    def _put(self, dataset: Dataset, element: DataElement, values: list[str], rule: Rule) -> Action:
        """Give an element its new values; where nothing is left over, do what the rule says then."""
        if any(values):
            element.value = values if len(values) > 1 else (values or [""])[0]
            return rule.action
        otherwise = rule.otherwise if rule.action is not Action.SHIFT or rule.option else Action.EMPTY
        if otherwise in {Action.DUMMY, Action.UID} and (dummies := self._dummies(element, rule, dataset)):
            element.value = dummies[0]
            return Action.DUMMY
        if otherwise is Action.REMOVE:
            return Action.REMOVE
        element.clear()
        return Action.EMPTY

    def _sequence(self, element: DataElement, action: Action) -> Action:
        if action in {Action.REMOVE, Action.CLEAN}:
            return Action.REMOVE
        if action is Action.EMPTY:
            element.value = []
            return Action.EMPTY
        for item in element.value:
            self.level(item, everything=action is Action.DUMMY)
        return Action.DUMMY if action is Action.DUMMY else Action.KEEP

    def _uids(self, element: DataElement, rule: Rule, dataset: Dataset) -> list[str]:
        return [self._substitutes.uid(value.strip()) for value in _texts(element)]

    def _words(self, element: DataElement, rule: Rule, dataset: Dataset) -> list[str]:
        words = [cleaned(value, self._known) for value in _texts(element)]
        if element.keyword != "ROIName":
            return words
        return [  # told apart by their names: those that lost words need others
            word if is_clean(value, self._known) else f"{word or 'ROI'} {self._substitutes.token(value)}"
            for word, value in zip(words, _texts(element), strict=True)
        ]

    def _dummies(self, element: DataElement, rule: Rule, dataset: Dataset) -> list[str]:
        if element.VR == "UI":
            return self._uids(element, rule, dataset)
        if element.VR in {"DA", "DT", "TM"}:
            return [""]
        if element.keyword in {"PatientID", "PatientName"}:
            return [self._substitutes.patient]
        return [{"DS": "0", "IS": "0", "AS": "000Y"}.get(element.VR, DUMMY)]

    def _shifted(self, element: DataElement, clocks: dict[str, str]) -> list[str]:
        shift = self._substitutes.shift
        if element.VR == "DA":
            clock = clocks.get(element.keyword.replace("Date", "Time"), "")
            return [shift.date(value, clock) for value in _texts(element)]
        if element.VR in {"DT", "TM"}:
            move = shift.time if element.VR == "TM" else shift.datetime
            return [move(value) for value in _texts(element)]
        return []

    def _kept(self, element: DataElement, rule: Rule, dataset: Dataset) -> list[str] | None:
        """The values of an element that stays, where they are of their form and name nobody; None when all are."""
        texts = _texts(element)
        if element.VR in NUMBERS - {"DS", "IS"} or element.VR in _ARRAY:
            return None
        kept = [_young(value) if element.VR == "AS" else value for value in texts]
        if any(not self._may_stay(value, element.VR) for value in kept):
            return [""] * len(kept)
        return None if kept == texts else kept

    def _may_stay(self, value: str, vr: str) -> bool:
        if value and vr in _FORMS and not _FORMS[vr].fullmatch(value):
            return False
        if vr in {"DS", "IS"}:
            return len(value) < _LONGEST_NUMBER or value.strip() not in self._known.words
        return vr == "UI" or not self._known.named_in(value)

    def _private(self, dataset: Dataset) -> None:
        """Remove private attributes but safe ones, and the creators of blocks in which nothing is left."""
        kept: set[int] = set()
        tags = [tag for tag in list(dataset.keys()) if tag.is_private]
        creators = {tag: _text_of(dataset, tag) for tag in tags if tag.is_private_creator}
        for tag in tags:
            if tag.is_private_creator:
                continue
            block = BaseTag(tag.group << 16 | tag.element >> 8)
            if self._is_safe(dataset, tag, creators.get(block, "")):
                kept.add(block)
                self._treatment.private_kept += 1
            else:
                del dataset[tag]
                self._treatment.private_removed += 1
        for tag in creators:
            if tag not in kept:
                del dataset[tag]

    def _is_safe(self, dataset: Dataset, tag: BaseTag, creator: str) -> bool:
        if (tag.group, tag.element & 0xFF) not in SAFE_PRIVATE.get(creator, set()):
            return False
        try:
            element = dataset[tag]
            texts = _texts(element)
        except Exception:
            return False
        forms = _FORMS.get(element.VR)
        whole = forms is None or all(forms.fullmatch(value) for value in texts)
        return element.VR in NUMBERS and whole and all(self._may_stay(value, element.VR) for value in texts)


def _clocks(dataset: Dataset) -> dict[str, str]:
    """The times of a level, by keyword, as they are before they are moved."""
    found = {}
    for tag in dataset.keys():  # noqa: SIM118 - iterating a Dataset would convert every element
        if not tag.is_private and (dataset.get_item(tag).VR or _dictionary_vr(tag)) == "TM":
            found[keyword_for_tag(tag)] = _text_of(dataset, tag)
    return found


def _text_of(dataset: Dataset, tag: BaseTag) -> str:
    try:
        return (_texts(dataset[tag]) or [""])[0]
    except Exception:  # a broken value is no value
        return ""


def _texts(element: DataElement) -> list[str]:
    """An element's values as text."""
    value: Any = element.value
    if value is None or value == "":
        return []
    if element.VR in {"DS", "IS"} or element.VM > 1:
        several = value if element.VM > 1 else [value]
        return [str(getattr(one, "original_string", one)) for one in several]
    return [str(value)]


def _young(age: str) -> str:
    """An age that is not rarer than 90: those above are given as 90."""
    return "090Y" if age.endswith("Y") and age[:-1].isdigit() and int(age[:-1]) > _OLDEST else age


def _dictionary_vr(tag: BaseTag) -> str:
    return dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
