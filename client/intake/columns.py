"""What the columns of a table are: features, or such that are never read, because they name a person or hold text.

A column is a feature if each of its values is a number or one of a few short words, and its name is not one of those by
which people are told apart. So a table can be imported as it is, and what the hospital's records need stays out of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.intake import confidentiality
from common.errors import UsageError

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null"})
"""Cells without a value, in any case."""
MOST_WORDS, LONGEST_WORD = 20, 40
"""A column of more different words, or of longer ones, holds free text."""
LARGEST = 3.4e38
"""Larger numbers are none in float32."""
_PEOPLE = frozenset([
    "name", "firstname", "givenname", "forename", "lastname", "familyname", "surname", "middlename", "maidenname",
    "fullname", "initials", "birthday", "birthdate", "dateofbirth", "dob", "birthname", "address", "street",
    "housenumber", "zip", "zipcode", "postcode", "postalcode", "city", "phone", "phonenumber", "telephone",
    "telephonenumber", "mobile", "fax", "email", "mail", "emailaddress", "ssn", "socialsecuritynumber", "insurance",
    "insurancenumber", "healthcardnumber", "nhsnumber", "mrn", "medicalrecordnumber", "recordnumber", "casenumber",
    "accessionnumber", "id", "caseid", "recordid", "visitid", "encounterid", "passport", "passportnumber", "photo",
    "vorname", "nachname", "geburtsname", "geburtsdatum", "adresse", "telefon", "versichertennummer", "nom",
    "prenom", "datedenaissance", "nombre", "apellido", "apellidos", "fechadenacimiento", "cognome", "datadinascita",
])  # fmt: skip
"""Names of columns by which people are told apart: small letters and digits only."""
_DICOM = frozenset(keyword.casefold() for keyword in (*confidentiality.PATIENT, *confidentiality.PEOPLE))
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b")


@dataclass(frozen=True)
class Columns:
    """The places of the features in a row, and for each column that is left out its name and why."""

    taken: tuple[int, ...]
    left_out: tuple[tuple[str, str], ...]


def choose(names: Sequence[str], rows: Sequence[Sequence[str]], known: Iterable[int], wanted: Sequence[str]) -> Columns:
    """Return which columns are features: those `wanted`, or all that can be. `known` are places that have a use.

    Raises
    ------
    UsageError
        A wanted column is not there, has another use, names a person or holds text.
    """
    used = set(known)
    for name in wanted:
        if name not in names:
            raise UsageError(f'there is no column "{name}": there are {", ".join(names)}')
        if names.index(name) in used:
            raise UsageError(f'the column "{name}" is that of the label, the patient or the split, and no feature')
    taken, left_out = [], []
    for at, name in enumerate(names):
        if at in used:
            continue
        why = "not asked for" if wanted and name not in wanted else objection(name, [row[at] for row in rows])
        if why and name in wanted:
            raise UsageError(f'the column "{name}" {why}: it is never imported')
        if why:
            left_out.append((name, why))
        else:
            taken.append(at)
    return Columns(tuple(taken), tuple(left_out))


def objection(name: str, values: Iterable[str]) -> str:
    """Return why a column can't be a feature, or nothing."""
    if names_a_person(name):
        return "tells people apart"
    words = {value for value in values if value.casefold() not in MISSING and number(value) is None}
    if any(_DATE.match(word) for word in words):
        return "holds dates"
    if len(words) > MOST_WORDS or any(len(word) > LONGEST_WORD for word in words):
        return f"holds text (more than {MOST_WORDS} different words, or long ones)"
    return ""


def names_a_person(name: str) -> bool:
    """Return whether a column of this name tells people apart: in any case, with any signs between its words."""
    plain = "".join(sign for sign in name.casefold() if sign.isalnum())
    return plain in _DICOM or plain in _PEOPLE or re.sub("^patient(en|s)?", "", plain) in _PEOPLE


def number(text: str) -> float | None:
    """Return a cell as a number that float32 holds, or None."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) and abs(found) <= LARGEST else None
