"""What was done to a file, or to many: counts by attribute, and never a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from client.intake.deidentification.profile import EDITION

OPTIONS = {
    "113100": "Basic Application Confidentiality Profile",
    "113101": "Clean Pixel Data Option",
    "113102": "Clean Recognizable Visual Features Option",
    "113104": "Clean Structured Content Option",
    "113105": "Clean Descriptors Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113109": "Retain Device Identity Option",
    "113111": "Retain Safe Private Option",
}
"""Codes of PS3.16 CID 7050 that can be recorded in a copy, with their meanings."""
_MOST = 8


@dataclass
class Treatment:
    """What was done to one file. `attributes` counts by what was done, then by the attribute's keyword.

    `regions` is how many regions with text were blanked, `faces` whether a face was removed.
    """

    attributes: dict[str, Counter[str]] = field(default_factory=dict)
    private_removed: int = 0
    private_kept: int = 0
    regions: int = 0
    face: bool = False

    def note(self, done: str, keyword: str) -> None:
        """Count that something was done to an attribute."""
        self.attributes.setdefault(done, Counter())[keyword] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        attributes = {done: dict(sorted(counts.items())) for done, counts in sorted(self.attributes.items())}
        return {
            "attributes": attributes, "private_removed": self.private_removed, "private_kept": self.private_kept,
            "regions": self.regions, "face": self.face,
        }  # fmt: skip


@dataclass(frozen=True)
class Deidentified:
    """What was done to the files of an import: counts of files, attributes, private attributes and regions.

    `attributes` counts files by what was done, then by the attribute's keyword. `profile` says by which rules.
    """

    files: int
    attributes: dict[str, dict[str, int]]
    private_removed: int
    private_kept: int
    cleaned_files: int
    regions: int
    faces: int
    profile: str = f"DICOM PS3.15 {EDITION}, Basic Application Confidentiality Profile"

    def lines(self) -> list[str]:
        """Return it as text."""
        lines = [f"De-identified copies: {self.files} ({self.profile})"]
        for done, counts in self.attributes.items():
            most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            names = ", ".join(f"{name} {count}" for name, count in most[:_MOST])
            rest = f", and {len(most) - _MOST} more" if len(most) > _MOST else ""
            lines.append(f"  {done}: {len(most)} attributes, in so many files: {names}{rest}")
        lines.append(f"  private attributes: removed {self.private_removed}, kept as safe {self.private_kept}")
        lines.append(
            f"  pixels: {self.regions} regions with text blanked in {self.cleaned_files} files; "
            f"faces removed in {self.faces} files"
        )
        return lines

    def counts(self) -> dict[str, Any]:
        """Return what the audit log keeps: totals, without the attributes' names."""
        done = {name: sum(counts.values()) for name, counts in self.attributes.items()}
        return {
            "profile": self.profile, "files": self.files, "attributes": done, "private_removed": self.private_removed,
            "private_kept": self.private_kept, "regions": self.regions, "faces": self.faces,
        }  # fmt: skip


def deidentified(treatments: Iterable[Mapping[str, Any]]) -> Deidentified | None:
    """Add up the treatments of files, as `Treatment.as_dict` gives them; None when there is none."""
    attributes: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    for treatment in treatments:
        totals["files"] += 1
        for done, counts in treatment["attributes"].items():
            attributes.setdefault(done, Counter()).update(counts.keys())
        for name in ("private_removed", "private_kept", "regions"):
            totals[name] += treatment[name]
        totals["cleaned"] += treatment["regions"] > 0
        totals["faces"] += bool(treatment["face"])
    if not totals:
        return None
    return Deidentified(
        files=totals["files"],
        attributes={done: dict(sorted(counts.items())) for done, counts in sorted(attributes.items())},
        private_removed=totals["private_removed"], private_kept=totals["private_kept"],
        cleaned_files=totals["cleaned"], regions=totals["regions"], faces=totals["faces"],
    )  # fmt: skip
