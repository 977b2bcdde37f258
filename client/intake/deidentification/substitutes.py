"""What stands in the place of identities: keyed with the site's secret, the same wherever the same identity stood."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from functools import cached_property

from client.intake.deidentification.dates import Shift
from client.intake.identity import Pseudonyms

_REGISTERED = "1.2.840.10008."
_DAYS = 3652
"""Dates are moved back by up to ten years."""


@dataclass(frozen=True)
class Substitutes:
    """The substitutes for what stands in the files of one patient.

    `patient` is the patient's pseudonym, as in the catalog. UIDs do not depend on the patient: a reference from one
    file to another holds wherever both stand.
    """

    pseudonyms: Pseudonyms
    patient: str

    def uid(self, original: str) -> str:
        """Return the keyed UID (PS3.5 B.2, from a UUID) for a UID; one that DICOM itself has given out stays."""
        if not original or original.startswith(_REGISTERED):
            return original
        number = int(self.pseudonyms.of("uid", original), 16)
        return f"2.25.{_as_uuid(number).int}"

    @cached_property
    def shift(self) -> Shift:
        """How this patient's dates are moved."""
        number = int(self.pseudonyms.of("dates of", self.patient), 16)
        return Shift(datetime.timedelta(days=1 + number % _DAYS, seconds=number // _DAYS % 86_400))

    def token(self, text: str) -> str:
        """Return eight hexadecimal digits that stand for a text: the same for the same text."""
        return self.pseudonyms.of("text", text)[:8]


def _as_uuid(number: int) -> uuid.UUID:
    """A UUID of version 8 (made by a rule of one's own, RFC 9562) of 128 bits."""
    number = number & ~(0xF << 76) | (8 << 76)
    return uuid.UUID(int=number & ~(0x3 << 62) | (0x2 << 62))
