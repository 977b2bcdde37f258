"""Studies come from a PACS: what the query finds and is not here yet is received, and then imported as a folder is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.intake.importer import ImportOptions, import_folder, require_name
from client.intake.report import ImportReport
from client.pacs.archive import Archive
from client.pacs.query import Query, Series, find_series
from client.pacs.store import BrokenObjectError, Store, open_store
from client.record import note_import, site_log
from common.errors import DataError

Watch = Callable[[int, int, int], None]
"""Called with (objects here, objects in all, bytes received)."""


@dataclass(frozen=True)
class Fetched:
    """What came from a PACS: objects that were found, had been here before, and were received; and bytes.

    `problems` says why objects did not come, and of how many that is so.
    """

    found: int
    before: int
    received: int
    bytes: int
    problems: dict[str, int]

    @property
    def missing(self) -> int:
        """How many objects did not come."""
        return self.found - self.before - self.received


def import_from_pacs(
    kit_folder: Path,
    collection: str,
    archive: Archive,
    query: Query,
    labels: Path | None = None,
    *,
    options: ImportOptions | None = None,
    watch: Watch | None = None,
) -> tuple[Fetched, ImportReport]:
    """Receive what the query finds into the kit, and import all that was ever received there into `collection`.

    Guarantees: an object that was received stays, whatever stops this; the next call gets only what is missing. What is
    asked for is in the audit log before the first object comes.

    Raises
    ------
    UsageError
        The collection's name or an option is wrong.
    DataError
        The PACS has nothing of the kind, or as `import_folder` and `open_store` say.
    LinkError
        The PACS can't be reached, refuses, or goes away: nothing was imported.
    """
    require_name(collection)
    log = site_log(kit_folder)
    with open_store(kit_folder, collection) as store:
        listed = list(find_series(archive.find, query))
        if not listed:
            raise DataError(f"{archive.name}: the PACS has no series of this kind: ask for more, or for others")
        origin = {"from": archive.name, "query": query.as_asked()}
        found = sum(len(series.instances) for series in listed)
        log.append("fetch", {"collection": collection, **origin, "series": len(listed), "objects": found})
        fetched = fetch(archive, listed, store, watch)
        if store.is_empty():
            why = "; ".join(fetched.problems) or "it gave no reason"
            raise DataError(f"{archive.name}: none of the {found} objects that the PACS has came: {why}")
        report = import_folder(kit_folder, collection, store.objects, labels, options=options)
        note_import(log, report, {**origin, "received": fetched.received, "missing": fetched.missing})
    return fetched, report


def fetch(archive: Archive, listed: Sequence[Series], store: Store, watch: Watch | None = None) -> Fetched:
    """Receive the objects of these series that are not in the store yet. Raises LinkError, and OSError of the disk."""
    missing = {
        series: [one for one in series.instances if not store.has(series.study, series.uid, one.uid)]
        for series in listed
    }
    found = sum(len(series.instances) for series in listed)
    before = found - sum(map(len, missing.values()))
    delivery = _Delivery(store, found, before, watch)
    problems: Counter[str] = Counter()
    for series, wanted in missing.items():
        if not wanted:
            continue
        delivery.wanted = {one.uid for one in wanted}
        reason = archive.retrieve(series, wanted, delivery)
        if delivery.wanted:
            problems[reason or "the PACS did not send it"] += len(delivery.wanted)
    return Fetched(found, before, delivery.received, delivery.size, dict(problems))


@dataclass
class _Delivery:
    """Takes the objects that were asked for, and no others, and counts them."""

    store: Store
    found: int
    before: int
    watch: Watch | None
    wanted: set[str] = field(default_factory=set)
    received: int = 0
    size: int = 0

    def __call__(self, content: bytes, uid: str | None) -> None:
        if uid not in self.wanted:
            raise BrokenObjectError("it was not asked for")
        self.store.put(content, uid)
        self.wanted.remove(uid)
        self.received += 1
        self.size += len(content)
        if self.watch is not None:
            self.watch(self.before + self.received, self.found, self.size)
