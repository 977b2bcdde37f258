"""Whether a DICOM header identifies a person: PS3.15 Annex E, Basic Application Level Confidentiality Profile.

Table E.1-1 lists what de-identification must deal with. The attributes below are those of its entries that *name or
locate* a person by themselves: names, addresses, telephone, birth dates, other identifiers, and the people and
institutions around the patient. Each has the table's action for the basic profile:

    X   must be removed
    Z   must be empty, or hold a dummy value
    D   must hold a dummy value

What counts as identifying:

- An empty or dummy value ("Anonymous", "^^^^", "xxx", 19000101) does not.
- With Patient Identity Removed = YES the file declares that values under Z and D are dummies: believed. A value under X
  contradicts that declaration, and is flagged all the same.
- Institutions are passed when the file says so by code 113112, Retain Institution Identity Option.

What does not count here, and why: Patient ID, accession and order numbers, UIDs and dates mean nothing without the
hospital's own records; from the numbers and UIDs only keyed pseudonyms are kept, dates are not read at all. Age, sex,
size and weight, and descriptions of study and protocol, describe but don't name: the decade of the age, the sex and
known words of the series' description are kept (see acquisition.py), for the quality report and for statistics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset

PATIENT = {
    "PatientName": "Z", "PatientBirthDate": "Z", "PatientBirthTime": "X", "PatientBirthName": "X",
    "PatientBirthDateInAlternativeCalendar": "X", "PatientDeathDateInAlternativeCalendar": "X",
    "PatientMotherBirthName": "X", "OtherPatientIDs": "X", "OtherPatientIDsSequence": "X", "OtherPatientNames": "X",
    "PatientAddress": "X", "PatientTelephoneNumbers": "X", "PatientTelecomInformation": "X",
    "PatientInstitutionResidence": "X", "CountryOfResidence": "X", "RegionOfResidence": "X",
    "CurrentPatientLocation": "X", "MilitaryRank": "X", "BranchOfService": "X", "PatientReligiousPreference": "X",
    "MedicalRecordLocator": "X", "InsurancePlanIdentification": "X", "PatientInsurancePlanCodeSequence": "X",
    "ReferencedPatientPhotoSequence": "X", "PatientComments": "X", "AdditionalPatientHistory": "X",
    "ResponsiblePerson": "X", "ResponsibleOrganization": "X", "PersonName": "D", "PersonAddress": "X",
    "PersonTelephoneNumbers": "X", "PersonTelecomInformation": "X",
}  # fmt: skip
PEOPLE = {
    "ReferringPhysicianName": "Z", "ReferringPhysicianAddress": "X", "ReferringPhysicianTelephoneNumbers": "X",
    "ReferringPhysicianIdentificationSequence": "X", "ConsultingPhysicianName": "Z", "PhysiciansOfRecord": "X",
    "ConsultingPhysicianIdentificationSequence": "X", "PhysiciansOfRecordIdentificationSequence": "X",
    "PerformingPhysicianName": "X", "PerformingPhysicianIdentificationSequence": "X",
    "NameOfPhysiciansReadingStudy": "X", "PhysiciansReadingStudyIdentificationSequence": "X",
    "RequestingPhysician": "X", "RequestingPhysicianIdentificationSequence": "X", "OperatorsName": "Z",
    "OperatorIdentificationSequence": "X", "ScheduledPerformingPhysicianName": "X",
    "ScheduledPerformingPhysicianIdentificationSequence": "X", "HumanPerformerName": "X",
    "ActualHumanPerformersSequence": "X", "NamesOfIntendedRecipientsOfResults": "X", "OrderEnteredBy": "X",
    "OrderCallbackPhoneNumber": "X", "OrderCallbackTelecomInformation": "X", "ContentCreatorName": "Z",
    "ContentCreatorIdentificationCodeSequence": "X", "VerifyingObserverName": "D", "ReviewerName": "X",
    "PhysicianApprovingInterpretation": "X", "InterpretationAuthor": "X", "InterpretationRecorder": "X",
    "InterpretationTranscriber": "X", "DistributionName": "X", "DistributionAddress": "X",
}  # fmt: skip
INSTITUTION = {
    "InstitutionName": "Z", "InstitutionAddress": "X", "InstitutionCodeSequence": "X",
    "InstitutionalDepartmentName": "X", "HumanPerformerOrganization": "X", "VerifyingOrganization": "X",
    "CustodialOrganizationSequence": "X",
}  # fmt: skip
ACTIONS = {tag_for_keyword(keyword): action for keyword, action in {**PATIENT, **PEOPLE, **INSTITUTION}.items()}
_INSTITUTION_TAGS = {tag_for_keyword(keyword) for keyword in INSTITUTION}
_RETAIN_INSTITUTION = "113112"

DUMMY_WORDS = frozenset(
    {
        "anon", "anonym", "anonymous", "anonymised", "anonymized", "anonymisiert", "deidentified", "de-identified",
        "removed", "redacted", "none", "null", "unknown", "unnamed", "unspecified", "na", "n/a", "nil", "not-available",
        "dummy", "phantom", "patient", "physician", "operator", "institution", "institute", "hospital", "noname",
        "no-name", "test", "19000101", "18000101",
    }
)  # fmt: skip


def identifying_keywords(header: Dataset) -> tuple[str, ...]:
    """Return the keywords of the attributes in `header` (also inside sequences) that identify a person, sorted.

    An attribute of the table whose value can't be read counts as identifying: nobody knows what it says.
    """
    declared = str(_value(header, "PatientIdentityRemoved") or "").strip().upper() == "YES"
    keep_institution = declared and _retains_institution(header)
    patient_id = str(_value(header, "PatientID") or "")
    found = set()
    for tag, value in _listed_values(header):
        action = ACTIONS.get(tag, "X")  # a name that the table does not know is a name all the same
        if declared and (action in "ZD" or (keep_institution and tag in _INSTITUTION_TAGS)):
            continue
        if not _is_dummy(value, patient_id):
            found.add(keyword_for_tag(tag) or "a private attribute with a person's name")
    return tuple(sorted(found))


def burned_in_annotation(header: Dataset) -> bool | None:
    """Return what Burned In Annotation (0028,0301) says: True for YES, False for NO, None when it does not say."""
    return {"YES": True, "NO": False}.get(str(_value(header, "BurnedInAnnotation") or "").strip().upper())


def _listed_values(dataset: Dataset) -> Iterator[tuple[int, Any]]:
    """Every value of an attribute of the table or of VR PN, depth first; None for one that can't be read."""
    for tag in dataset.keys():  # noqa: SIM118 - iterating a Dataset would convert every element, broken ones too
        vr = dataset.get_item(tag).VR or _dictionary_vr(tag)
        listed = int(tag) in ACTIONS or vr == "PN"
        if not listed and vr not in {"SQ", "UN"}:
            continue
        try:
            element = dataset[tag]
        except Exception:  # pydicom raises many kinds for broken values
            if listed:
                yield int(tag), None
            continue
        if listed:
            yield int(tag), element.value
        elif element.VR == "SQ":
            for item in element.value:
                yield from _listed_values(item)


def _is_dummy(value: Any, patient_id: str) -> bool:
    if value is None:
        return False
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__") or hasattr(value, "family_name"):
        return _is_dummy_text(str(value), patient_id)
    if isinstance(value, Dataset):
        return False
    return all(not isinstance(item, Dataset) and _is_dummy_text(str(item), patient_id) for item in value)


def is_dummy_text(text: str) -> bool:
    """Whether a text that should name somebody names nobody: it is empty, or says only that it was removed."""
    return _is_dummy_text(text, "")


def _is_dummy_text(text: str, patient_id: str) -> bool:
    if not text.strip():
        return True
    if text.strip("^ ") == patient_id.strip() and any(character.isdigit() for character in text):
        return True  # the study code again, where a name was
    words = re.split(r"[\s^=,_]+", text.casefold().strip("^=, "))
    if not DUMMY_WORDS.isdisjoint(words):  # a short number beside a dummy word ("Anonymous 17") adds nothing
        words = [word for word in words if not (word.isdigit() and len(word) <= 4)]
    return all(word in DUMMY_WORDS or _is_filler(word) for word in words)


def _is_filler(word: str) -> bool:
    """One character again and again: "xxx", "----", "00000000"; but not an initial."""
    return len(set(word)) <= 1 and (len(word) >= 3 or word in {"", "x", "xx", "-", "--", ".", "*", "?", "0", "00"})


def _retains_institution(header: Dataset) -> bool:
    codes = _value(header, "DeidentificationMethodCodeSequence") or ()
    return any(str(_value(item, "CodeValue")) == _RETAIN_INSTITUTION for item in codes)


def _value(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception:  # a broken value is no value
        return None


def _dictionary_vr(tag: Any) -> str:
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return ""
