"""What an import did, for the steward: one screen of text, and JSON with every file."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from client.catalog import Summary
from client.intake.deidentification.treatment import Deidentified
from client.intake.folder import shown
from client.intake.quality.problem import Finding
from common.errors import DataError
from common.files import write_atomically

REPORTS = "reports"
TABLES = (".csv", ".tsv")
"""How the names of tables end."""
_REASONS_ON_SCREEN = 12
_FINDINGS_ON_SCREEN = 5


class Refusal(NamedTuple):
    """A file (its path relative to the folder) that was not indexed, and why."""

    path: str
    reason: str


class Flag(NamedTuple):
    """A file that identifies a person or has text in its pixels, and by what (attributes' names, never values)."""

    path: str
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class ImportReport:
    """What one import did.

    Counts are files, or a table's rows: `indexed` are new or changed, `removed` were indexed and are no longer, and
    `drawings` are objects (SEG, RTSTRUCT, SR) of which masks or boxes were taken.
    `summary` is the whole collection after the import, or None when it is empty; `quality` is what is amiss in it, and
    `page` the path of the quality report, which shows it. `deidentified` is what was done to the copies. No value of
    any attribute that tells people apart is in a report: names of files and attributes, modalities, sizes, distances
    and labels are all there is.
    """

    collection: str
    folder: str
    at: str
    seconds: float
    indexed: int
    unchanged: int
    removed: int
    refused: tuple[Refusal, ...]
    flags: tuple[Flag, ...]
    warnings: tuple[str, ...]
    summary: Summary | None
    quality: tuple[Finding, ...] = ()
    page: str = ""
    deidentified: Deidentified | None = None
    drawings: int = 0

    @property
    def files(self) -> int:
        """How many files (and unreadable folders) the folder has: each is indexed, unchanged, drawn from or refused."""
        return self.indexed + self.unchanged + self.drawings + len(self.refused)

    @property
    def of_rows(self) -> bool:
        """Whether a table was imported: then counts are rows."""
        return Path(self.folder).suffix.lower() in TABLES

    @property
    def reasons(self) -> dict[str, int]:
        """How many were refused for each kind of reason (its words before a colon), the most frequent first."""
        return dict(Counter(reason.split(":")[0] for _, reason in self.refused).most_common())

    def lines(self) -> list[str]:
        """Return the report as one screen of text."""
        what = "rows" if self.of_rows else "files"
        head = [
            f'Import of {shown(self.folder)} into "{self.collection}", {self.at}, {self.seconds:.1f} s',
            f"  {what} {self.files}: indexed {self.indexed}, unchanged {self.unchanged}, refused {len(self.refused)}"
            + (f", taken as masks or boxes {self.drawings}" if self.drawings else "")
            + (f"; no longer there or no longer accepted {self.removed}" if self.removed else ""),
        ]
        copies = self.deidentified.lines() if self.deidentified is not None else []
        return [
            *head, *self._collection_lines(), *self._refusal_lines(), *copies, *self._warning_lines(),
            *self._quality_lines(),
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        values = {**asdict(self), "files": self.files, "reasons": self.reasons, "folder": shown(self.folder)}
        values["refused"] = [{"path": shown(path), "reason": reason} for path, reason in self.refused]
        values["flags"] = [{"path": shown(path), "attributes": list(names)} for path, names in self.flags]
        return values

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.as_dict(), indent=1)

    def _collection_lines(self) -> list[str]:
        if self.summary is None:
            return ["  the collection is empty: there is nothing to train on"]
        nouns = "rows" if self.of_rows else "images"
        modalities = ", ".join(f"{name} {count}" for name, count in self.summary.modalities.items())
        lines = [
            f"The collection now: {self.summary.images} {nouns} of {self.summary.patients} patients ({modalities})",
            f"  {'split':<12}{nouns:>8}{'patients':>10}  labels",
        ]
        for name, split in self.summary.splits.items():
            labels = ", ".join(f"{label or '(none)'} {count}" for label, count in split.labels.items())
            lines.append(f"  {name:<12}{split.images:>8}{split.patients:>10}  {labels}")
        return lines

    def _refusal_lines(self) -> list[str]:
        if not self.refused:
            return []
        lines = ["Refused, by reason"]
        for kind, count in list(self.reasons.items())[:_REASONS_ON_SCREEN]:
            example = next(item for item in self.refused if item.reason.split(":")[0] == kind)
            lines.append(f"  {count:>6}  {_cut(example.reason if count == 1 else kind)} ({shown(example.path) or '.'})")
        rest = sum(list(self.reasons.values())[_REASONS_ON_SCREEN:])
        return [*lines, *([f"  {rest:>6}  for other reasons: see the JSON report"] if rest else [])]

    def _warning_lines(self) -> list[str]:
        return ["Warnings", *(f"  {warning}" for warning in self.warnings)] if self.warnings else []

    def _quality_lines(self) -> list[str]:
        """The gravest findings, and where all of them are, with pictures."""
        if not self.page:
            return []
        ends = {True: "!", False: " "}
        lines = [f"  {ends[one.grave]} {one.kind}: {_cut(one.says, 110)}" for one in self.quality[:_FINDINGS_ON_SCREEN]]
        found = f"{len(self.quality)} to look at" if self.quality else "nothing was found amiss"
        grave = sum(one.grave for one in self.quality)
        return [
            f"Quality of the collection: {found}{f', {grave} of them grave (!)' if grave else ''}",
            *lines,
            f"  with pictures: {shown(self.page)}",
        ]


def _cut(text: str, limit: int = 90) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def write_report(kit_folder: Path, report: ImportReport, page: str = "") -> tuple[ImportReport, tuple[Path, ...]]:
    """Write the report as text and JSON (0600) under the kit's reports/, and the quality `page` where there is one.

    Returns the report with the page's path (without a page, that of the collection's newest), and what was written.

    Raises
    ------
    DataError
        They can't be written; none is left behind.
    """
    folder = kit_folder / REPORTS
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
    place = folder / f"quality-{report.collection}-{stamp}.html" if page else newest_page(kit_folder, report.collection)
    report = replace(report, page=str(place or ""))
    texts = {
        folder / f"import-{report.collection}-{stamp}.txt": "\n".join(report.lines()) + "\n",
        folder / f"import-{report.collection}-{stamp}.json": report.to_json() + "\n",
        **({place: page} if page and place else {}),
    }
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
        for path, text in texts.items():
            write_atomically(path, text.encode("utf-8", "replace"), mode=0o600)
    except OSError as error:
        for path in texts:
            with contextlib.suppress(OSError):
                path.unlink()
        raise DataError(
            f"{folder}: the import's report can't be written: {error.strerror}: nothing was imported"
        ) from error
    return report, tuple(texts)


def pages(kit_folder: Path, collection: str) -> list[Path]:
    """Return the quality reports of a collection, oldest first."""
    name = re.compile(rf"quality-{re.escape(collection)}-\d{{8}}T\d+Z\.html")
    folder = kit_folder / REPORTS
    return sorted(path for path in folder.glob("quality-*.html") if name.fullmatch(path.name))


def newest_page(kit_folder: Path, collection: str) -> Path | None:
    """Return the newest quality report of a collection, or None."""
    return next(reversed(pages(kit_folder, collection)), None)


def forget_pages(kit_folder: Path, collection: str) -> None:
    """Remove all but the newest quality report of a collection: pictures of patients are not piled up."""
    for path in pages(kit_folder, collection)[:-1]:
        path.unlink(missing_ok=True)
