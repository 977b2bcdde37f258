"""A receiver that feeds a collection: whoever sends it objects has them imported when the sending has ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client.intake.importer import ImportOptions, import_folder, require_name
from client.pacs.address import Tls, is_loopback
from client.pacs.receiver import receiving
from client.pacs.store import BrokenObjectError, Store, open_store
from client.record import note_import, site_log
from common.errors import DataError, UsageError

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.events import Event

log = logging.getLogger("wardround.pacs")

SETTLE_SECONDS = 2.0
"""An import waits until nothing was sent for so long: a study often comes in several associations, one by one."""
LONGEST_WAIT_SECONDS = 300.0
"""... but no longer than this, while somebody sends without end; also the longest pause after an import that failed."""
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Listening:
    """Where and as whom the receiver listens, and who may send: AE titles in `calling` (none: anybody)."""

    ae_title: str
    host: str
    port: int
    calling: tuple[str, ...] = ()
    tls: Tls | None = None

    def __post_init__(self) -> None:
        """Raise UsageError when other machines could send without being named."""
        if not is_loopback(self.host) and not self.calling:
            raise UsageError(
                f"--host {self.host}: a receiver that other machines reach must say who may send: --from AE, repeatable"
            )


@dataclass
class Tally:
    """What a receiver did: objects kept (new or other than before), seen again, refused; associations; imports."""

    kept: int = 0
    again: int = 0
    refused: int = 0
    associations: int = 0
    imports: int = 0

    def line(self) -> str:
        """Return it in words."""
        return (
            f"received {self.kept} objects in {self.associations} associations, {self.again} once more, "
            f"refused {self.refused}; {self.imports} imports"
        )


def listen(
    kit_folder: Path,
    collection: str,
    where: Listening,
    stop: threading.Event,
    labels: Path | None = None,
    *,
    options: ImportOptions | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> Tally:
    """Receive objects for a collection until `stop` is set, and import them, one import at a time; return the tally.

    `on_ready` is called with the port once it listens. What an earlier receiver kept and did not import any more is
    imported at the start.

    Guarantees: a sender is told of success when its object is whole and on the disk. An import sees whole objects only.

    Raises
    ------
    UsageError
        The collection's name is wrong, or the port can't be had.
    DataError
        Another receiver, or an import from a PACS, is at work on the collection.
    """
    require_name(collection)
    audit = site_log(kit_folder)
    with open_store(kit_folder, collection) as store:
        feed = _Feed(kit_folder, collection, store, labels, options or ImportOptions())
        context = where.tls.to_listen() if where.tls else None
        body = {"collection": collection, "ae_title": where.ae_title}
        with receiving(
            where.ae_title, where.host, where.port, feed.take, tls=context, calling=where.calling, on_end=feed.ended
        ) as (entity, port):
            audit.append("listen", {**body, "address": f"{where.host}:{port}", "from": list(where.calling)})
            if on_ready is not None:
                on_ready(port)
            feed.run(entity, stop)
        feed.finish()
        audit.append("listen", {**body, "ended": asdict(feed.tally)})
    return feed.tally


@dataclass
class _Feed:
    """Keeps what comes, in the associations' threads, and imports it in the thread that runs `run`."""

    kit_folder: Path
    collection: str
    store: Store
    labels: Path | None
    options: ImportOptions
    tally: Tally = field(default_factory=Tally)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting_since: float | None = None
    _last: float = field(default_factory=time.monotonic)
    _pause: float = 0.0

    def __post_init__(self) -> None:
        if not self.store.is_empty():
            self._waiting_since = time.monotonic() - SETTLE_SECONDS

    def take(self, content: bytes, uid: str | None) -> None:
        """Keep one object."""
        try:
            received = self.store.put(content, uid)
        except (BrokenObjectError, OSError):
            with self._lock:
                self.tally.refused += 1
            raise
        with self._lock:
            self.tally.kept += received.changed
            self.tally.again += not received.changed
            self._last = time.monotonic()
            if received.changed and self._waiting_since is None:
                self._waiting_since, self._pause = self._last, 0.0

    def ended(self, event: Event) -> None:
        """Count an association that has ended."""
        with self._lock:
            self.tally.associations += event.assoc.is_released or event.assoc.is_aborted
            self._last = time.monotonic()

    def run(self, entity: ApplicationEntity, stop: threading.Event) -> None:
        """Import whenever something has come and the sending has ended, until `stop` is set."""
        while not stop.wait(_LOOK_SECONDS):
            if self._is_due(active=bool(entity.active_associations)):
                self._import()

    def finish(self) -> None:
        """Import what has come and is not imported yet; what can't be, is imported at the next start."""
        if self._waiting_since is not None:
            self._import()

    def _is_due(self, *, active: bool) -> bool:
        with self._lock:
            now = time.monotonic()
            if self._waiting_since is None or now - self._waiting_since < self._pause:
                return False
            return (not active and now - self._last >= SETTLE_SECONDS) or (
                now - self._waiting_since >= max(LONGEST_WAIT_SECONDS, self._pause)
            )

    def _import(self) -> None:
        """Import the store; after a failure, wait longer each time: a label file may be mended, another import end."""
        with self._lock:
            self._waiting_since = None
        try:
            report = import_folder(
                self.kit_folder, self.collection, self.store.objects, self.labels, options=self.options
            )
            note_import(site_log(self.kit_folder), report, {"from": "C-STORE"})
        except (DataError, UsageError) as error:
            log.error("not imported yet: %s", error)
            with self._lock:
                self._waiting_since = time.monotonic()
                self._pause = min(LONGEST_WAIT_SECONDS, 2 * self._pause + SETTLE_SECONDS)
            return
        self.tally.imports, self._pause = self.tally.imports + 1, 0.0
        there = f"{report.summary.images} images of {report.summary.patients} patients" if report.summary else "empty"
        log.info("imported: %d new, %d refused; the collection: %s", report.indexed, len(report.refused), there)
        for reason, count in list(report.reasons.items())[:3]:
            log.warning("refused %d: %s", count, reason)
