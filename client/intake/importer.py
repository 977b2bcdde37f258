"""A folder becomes part of a collection: every file is indexed, or refused with its reason, in one transaction.

An import has two steps. *Reading* makes a record of every file that is new or changed (by size and time, then SHA-256):
slow, and kept. *Deciding* follows from all records, the labels and the options: quick, and done anew each time. So a
second import of an unchanged folder opens no file, and new labels or options take effect without reading again.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from client.annotations import forget_others as forget_drawings
from client.catalog import CATALOG_FILE, Catalog, FileRecord, Settings, Summary
from client.intake.annotation.annotate import Drawn, annotate
from client.intake.decisions import Rules, decide
from client.intake.deidentification import copies
from client.intake.deidentification.copies import Copies
from client.intake.deidentification.deidentifier import Deidentifier, Method, survey
from client.intake.deidentification.treatment import deidentified
from client.intake.findings import findings, of_columns
from client.intake.folder import Listing, list_folder
from client.intake.identity import Pseudonyms, open_pseudonyms
from client.intake.labels import Labels, file_key, read_labels
from client.intake.options import DEFAULT_FRACTIONS, DEFAULT_SEED, ImportOptions
from client.intake.quality.page import Quality, examine, render
from client.intake.readers import read_files
from client.intake.reading import unchanged
from client.intake.report import Flag, ImportReport, Refusal, forget_pages, newest_page, write_report
from client.intake.sheet import TakenApart, folder_of, forget_others, is_table, take_apart
from client.intake.splits import splits_of
from client.intake.told import labels_of_reports, labels_of_tag
from client.policy import faces_policy
from common.errors import DataError, UsageError

__all__ = ["ImportOptions", "Progress", "import_folder", "require_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Progress = Callable[[int, int], None]


def import_folder(
    kit_folder: Path,
    collection: str,
    folder: Path,
    labels: Path | None = None,
    *,
    options: ImportOptions | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Import `folder` and all below it, or one table, into `collection`; return the report (also under reports/).

    The collection then holds, of this folder, exactly what the report says; of other folders, what it held. Without
    `labels`, files that are already in keep theirs. `progress` is called with (files done, files in all).

    Guarantees: all or nothing. Whatever stops it, the catalog is as it was before.

    Raises
    ------
    UsageError
        The collection's name or an option is wrong.
    DataError
        The folder, label file or catalog can't be used, no label matches, or another import is under way.
    """
    require_name(collection)
    options = options or ImportOptions()
    with _alone(kit_folder):
        if is_table(folder):
            return _import_table(kit_folder, collection, folder, labels, options, progress)
        try:
            intake = _prepare(kit_folder, collection, folder, labels, options)
            return intake.commit(intake.decided(intake.read(progress)))
        finally:  # copies of files that are gone, or of an import that failed
            if copies.has_copies(kit_folder, collection):
                records = Catalog(kit_folder / CATALOG_FILE).records(collection)
                copies.forget_others(kit_folder, collection, {str(record.image) for record in records})


def require_name(collection: str) -> None:
    """Raise UsageError for what is no name of a collection."""
    if not _NAME.fullmatch(collection):
        raise UsageError(f'"{collection}" is no name for a collection: letters, digits, ".", "_" and "-", at most 64')


def _import_table(
    kit_folder: Path,
    collection: str,
    table: Path,
    labels: Path | None,
    options: ImportOptions,
    progress: Progress | None,
) -> ImportReport:
    """Take a table apart, import its rows, and remove the records that the catalog does not know."""
    if labels is not None and os.path.realpath(labels) != os.path.realpath(table):
        raise UsageError(f"{labels}: a table has its labels in a column of its own: leave --labels out")
    pseudonyms = open_pseudonyms(kit_folder)
    place = folder_of(kit_folder, collection, table, pseudonyms)
    try:
        parts = take_apart(table, place, pseudonyms, label_column=options.label_column, columns=options.columns)
        intake = _prepare(kit_folder, collection, place, parts.labels, options, parts=parts)
        return intake.commit(intake.decided(intake.read(progress)))
    finally:  # of rows that are gone, or of an import that failed
        root = os.path.realpath(place)
        records = Catalog(kit_folder / CATALOG_FILE).records(collection)
        forget_others(place, {record.path for record in records if record.root == root})


@dataclass(frozen=True)
class _Intake:
    """One import under way: what it reads from, and what was known before."""

    kit_folder: Path
    collection: str
    folder: Path
    catalog: Catalog
    settings: Settings
    rules: Rules
    listing: Listing
    before: dict[str, FileRecord]
    elsewhere: list[FileRecord]
    started: float
    parts: TakenApart | None = None

    @property
    def root(self) -> str:
        return os.path.realpath(self.folder)

    def read(self, progress: Progress | None) -> list[FileRecord]:
        """Return a record of every file, from the catalog where the file has not changed; not decided yet."""
        options, kept = self.rules.options, self._copies()
        return read_files(
            self.root, self.listing.files, self.before, self.rules.pseudonyms, kept, options.workers, progress
        )

    def _copies(self) -> Copies | None:
        """What makes de-identified copies, if they are asked for; faces to be removed are looked for first."""
        options = self.rules.options
        if not options.deidentify or self.parts is not None:
            return None
        method = Method(options.clean_pixels, options.allow_burned_in, faces_policy(self.kit_folder))
        made = Copies(self.kit_folder, self.collection, Deidentifier(method, self.rules.pseudonyms))
        if method.faces != "remove":
            return made
        if all(unchanged(found, self.before.get(found.path), made) for found in self.listing.files):
            return made
        planes = survey([Path(self.root) / found.path for found in self.listing.files])
        return replace(made, deidentifier=replace(made.deidentifier, planes=planes))

    def decided(self, records: Sequence[FileRecord]) -> list[FileRecord]:
        """Return the records decided, with those kept that stand under a folder which can't be listed now."""
        labels = self.rules.labels
        closed = tuple(f"{path}/" for path in self.listing.closed)
        kept = [record for path, record in self.before.items() if path.startswith(closed)] if closed else []
        result = decide(records, self.before, [*self.elsewhere, *kept], self.rules)
        images = sum(not record.unreadable for record in records)
        if labels is not None and images and not labels.used:
            raise labels.no_match(images)
        return sorted([*result, *kept], key=lambda record: record.path)

    def commit(self, records: list[FileRecord]) -> ImportReport:
        """Write records and report, both or neither, and return the report."""
        drawn = annotate(self.kit_folder, records, self.before, self.rules.options, self.rules.pseudonyms)
        records = drawn.records
        splits = splits_of(records, self.rules, self.settings, self.catalog.splits(self.collection))
        quality = examine([*records, *self.elsewhere], self.catalog.splits(self.collection) | splits)
        if records == sorted(self.before.values(), key=lambda record: record.path):
            known = self.collection in self.catalog.collections()
            summary = self.catalog.summary(self.collection) if known else None
            report = replace(self._report(drawn, summary), quality=quality.findings)
            there = newest_page(self.kit_folder, self.collection) is not None
            return write_report(self.kit_folder, report, "" if there else self._page(quality, report, records))[0]
        written: tuple[Path, ...] = ()
        try:
            with self.catalog.replacing(self.collection, self.root, self.settings, records, splits) as summary:
                report = replace(self._report(drawn, summary), quality=quality.findings)
                report, written = write_report(self.kit_folder, report, self._page(quality, report, records))
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        forget_pages(self.kit_folder, self.collection)
        forget_drawings(self.kit_folder, self.catalog.annotations())
        return report

    def _page(self, quality: Quality, report: ImportReport, records: Sequence[FileRecord]) -> str:
        return render(quality, report, [record for record in records if record.reason])

    def _report(self, drawn: Drawn, summary: Summary | None) -> ImportReport:
        now = {record.path: record for record in drawn.records}
        found = [now[file.path] for file in self.listing.files]
        taken = [record for record in found if not record.reason]
        same = sum(_same(record, self.before.get(record.path)) for record in taken)
        gone = [path for path, record in self.before.items() if not record.reason]
        summary = summary if summary is not None and summary.images else None
        refused = [
            Refusal(self._place(record), record.reason)
            for record in found
            if record.reason and record.path not in drawn.drawings
        ]
        refused += [Refusal(*item) for item in self.listing.refused]
        flags = [Flag(record.path, _flags(record)) for record in found if not record.unreadable and _flags(record)]
        return ImportReport(
            collection=self.collection,
            folder=str(self.parts.labels.source if self.parts else self.folder),
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self.started, 3),
            indexed=len(taken) - same,
            unchanged=same,
            drawings=sum(file.path in drawn.drawings for file in self.listing.files),
            removed=sum(path not in now or bool(now[path].reason) for path in gone),
            refused=tuple(sorted(refused)),
            flags=tuple(flags),
            warnings=(
                *(of_columns(self.parts.left_out, refused) if self.parts else ()),
                *findings(found, summary, self.rules.labels, closed_folders=len(self.listing.closed)),
                *drawn.findings,
            ),
            summary=summary,
            deidentified=deidentified(record.copy.treatment for record in found if record.copy and record.copy.path),
        )

    def _place(self, record: FileRecord) -> str:
        return self.parts.place(record.path) if self.parts else record.path


def _prepare(
    kit_folder: Path,
    collection: str,
    folder: Path,
    labels: Path | Labels | None,
    options: ImportOptions,
    *,
    parts: TakenApart | None = None,
) -> _Intake:
    started = time.monotonic()
    catalog = Catalog(kit_folder / CATALOG_FILE)
    catalog.check()
    listing = list_folder(folder)
    if parts is not None:  # what else is there are rows that the table no longer has
        listing = replace(listing, files=[file for file in listing.files if file.path in parts.labels.rows])
    if not listing.files and not listing.refused:
        raise DataError(f"{folder}: the folder has no file: is it the right one, and is it mounted?")
    pseudonyms = open_pseudonyms(kit_folder)
    settings = _settings(catalog, collection, options, pseudonyms)
    known, root = catalog.records(collection), os.path.realpath(folder)
    table = labels if isinstance(labels, Labels) else _labels(labels, folder, options, pseudonyms, listing)
    inside = os.path.relpath(os.path.realpath(labels), root) if isinstance(labels, Path) else ""
    labelled = any(record.label is not None for record in known)
    return _Intake(
        kit_folder, collection, folder, catalog, settings,
        Rules(options, pseudonyms, table, inside, labelled),
        listing,
        {record.path: record for record in known if record.root == root},
        [record for record in known if record.root != root],
        started,
        parts,
    )  # fmt: skip


def _settings(catalog: Catalog, collection: str, options: ImportOptions, pseudonyms: Pseudonyms) -> Settings:
    """The collection's settings: those it has once it has patients, else the options'."""
    if catalog.secret() not in (None, pseudonyms.fingerprint):
        raise DataError(
            f"{catalog.path}: the catalog was made with another pseudonym.key: restore that one from a backup, "
            "or move the catalog away and import the folders again"
        )
    has = catalog.settings(collection)
    if has is None or not catalog.splits(collection):
        seed = DEFAULT_SEED if options.seed is None else options.seed
        return Settings(seed, options.fractions or DEFAULT_FRACTIONS, pseudonyms.fingerprint)
    if (options.seed is not None and options.seed != has.seed) or (options.fractions not in (None, has.fractions)):
        parts = ", ".join(f"{part:g}" for part in has.fractions)
        raise UsageError(
            f'the collection "{collection}" was split with seed {has.seed} and fractions {parts}, and splits never '
            "change: leave these options out, or import into a new collection"
        )
    return has


def _labels(
    path: Path | None, folder: Path, options: ImportOptions, pseudonyms: Pseudonyms, listing: Listing
) -> Labels | None:
    """The labels of the one place that is named: a file, an attribute of the headers, or reports; None of none."""
    if sum((path is not None, bool(options.label_tag), options.label_reports)) > 1:
        raise UsageError("labels come from one place: --labels, --label-tag or --label-reports")
    if options.label_tag:
        return labels_of_tag(folder, listing.files, options.label_tag)
    if options.label_reports:
        return labels_of_reports(folder, listing.files, pseudonyms)
    if path is None:
        return None
    labels = read_labels(path, pseudonyms, key_column=options.key_column, label_column=options.label_column)
    labels.names.update(Counter(PurePosixPath(file_key(found.path)).name for found in listing.files))
    return labels


def _same(record: FileRecord, before: FileRecord | None) -> bool:
    """Whether a file was indexed before just as it is now."""
    return before is not None and not before.reason and replace(record, mtime_ns=before.mtime_ns) == before


def _flags(record: FileRecord) -> tuple[str, ...]:
    return (*record.identifiers, *(("BurnedInAnnotation",) if record.burned_in else ()))


@contextmanager
def _alone(kit_folder: Path) -> Iterator[None]:
    """Hold the kit's lock for imports. Raises DataError when another import holds it."""
    path = kit_folder / ".import.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(f"{kit_folder}: the kit's folder can't be written: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(f"{kit_folder}: another import into this kit is under way: wait for it to end") from error
    finally:
        os.close(handle)
