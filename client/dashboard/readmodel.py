"""What the hospital's page shows, read from the site's own files: catalog, audit log, ledger, policy. Reads only.

Guarantees: no pseudonym is shown; of file names only those of files that were left out, as the import's report has
them. What has not changed is not read again.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from certs.checks import kit_warnings
from client.approvals import AskedJob, asked_jobs
from client.budget import Budget, budgets
from client.catalog import CATALOG_FILE, Catalog, Summary
from client.intake.report import newest_page
from client.policy import FILE_NAME, Policy, check_job, read_policy
from client.privacy.ledger import LEDGER_FILE, Ledger
from client.record import LOG_FILE, site_log
from client.releases import KIND, Release, release_of
from client.summary import in_plain_words
from common.audit import Entry
from common.errors import NotFoundError, WardroundError
from common.kit import Kit

T = TypeVar("T")
WATCHED = (LOG_FILE, LEDGER_FILE, f"{LEDGER_FILE}-wal", CATALOG_FILE, f"{CATALOG_FILE}-wal", FILE_NAME)


@dataclass(frozen=True)
class Overview:
    """The site in a few lines. `warnings` are of the kit; `contact` is when a message last left (ISO 8601, UTC)."""

    site: str
    federation: str
    coordinator: str
    running: bool
    started: str
    contact: str
    waiting: int
    releases: int
    entries: int
    collections: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CollectionView:
    """A collection: its counts, and for which reasons files were left out."""

    summary: Summary
    reasons: dict[str, int]
    sharing: tuple[str, ...]


@dataclass(frozen=True)
class JobView:
    """A job that a person was asked about: in plain words, what it may cost, and whether the policy says no anyway."""

    asked: AskedJob
    words: tuple[str, ...]
    cost: str
    refusal: str


class SiteReadModel:
    """What can be read of the site whose kit this is. Safe to use from several threads."""

    def __init__(self, kit: Kit) -> None:
        """Raises nothing: what is damaged is told by the page that shows it."""
        self.kit = kit
        self._log = site_log(kit.folder)
        self._lock = threading.RLock()
        self._seen: tuple[object, ...] = ()
        self._version = 0
        self._cache: dict[object, Any] = {}

    def version(self) -> int:
        """Return a number that grows whenever a file that is shown has changed, or the service has begun or ended."""
        with self._lock:
            seen = (*(_stamp(self.kit, name) for name in WATCHED), self._running())
            if seen != self._seen:
                self._seen = seen
                self._version += 1
                self._cache.clear()
            return self._version

    def overview(self) -> Overview:
        """Return the site in a few lines. Raises DataError for a damaged audit log."""
        entries, left = self.entries(), self.releases()
        starts = [entry.at for entry in entries if entry.kind == "started"]
        return Overview(
            self.kit.name,
            self.kit.federation,
            self.kit.address,
            self._running(),
            starts[-1] if starts else "",
            left[0].at if left else "",
            sum(job.asked.state == "waiting" for job in self.jobs()),
            len(left),
            len(entries),
            tuple(Catalog(self.kit.folder / CATALOG_FILE).collections()),
            tuple(kit_warnings(self.kit)),
        )

    def entries(self) -> tuple[Entry, ...]:
        """Return the audit log, oldest first. Raises DataError when it is damaged."""
        return self._kept("entries", lambda: tuple(self._log.entries()) if self._log.path.exists() else ())

    def releases(self) -> tuple[Release, ...]:
        """Return everything that left, the newest first."""

        def read() -> tuple[Release, ...]:
            return tuple(release_of(entry) for entry in reversed(self.entries()) if entry.kind == KIND)

        return self._kept("releases", read)

    def collections(self) -> tuple[CollectionView, ...]:
        """Return the collections with their counts. Raises DataError."""

        def read() -> tuple[CollectionView, ...]:
            catalog = Catalog(self.kit.folder / CATALOG_FILE)
            return tuple(
                CollectionView(catalog.summary(name), catalog.reasons(name), catalog.sharing(name))
                for name in catalog.collections()
            )

        return self._kept("collections", read)

    def refused(self, collection: str, *, offset: int, limit: int) -> list[tuple[str, str]]:
        """Return files that were left out, with the reasons."""
        return Catalog(self.kit.folder / CATALOG_FILE).refused(collection, offset=offset, limit=limit)

    def quality(self, collection: str) -> str:
        """Return the newest quality report of a collection, as HTML. Raises NotFoundError when there is none."""
        known = collection in Catalog(self.kit.folder / CATALOG_FILE).collections()
        page = newest_page(self.kit.folder, collection) if known else None
        if page is None:
            raise NotFoundError(f'"{collection}" has no quality report: import it again, and one is made')
        return page.read_text(encoding="utf-8")

    def jobs(self) -> tuple[JobView, ...]:
        """Return the jobs that people were asked about: those that wait first, then the newest."""

        def read() -> tuple[JobView, ...]:
            found = [self._job(asked) for asked in asked_jobs(self._log)]
            found.reverse()
            return tuple(sorted(found, key=lambda job: job.asked.state != "waiting"))

        return self._kept("jobs", read)

    def job(self, digest: str) -> JobView | None:
        """Return one of them by its digest."""
        return next((job for job in self.jobs() if job.asked.job.digest == digest), None)

    def budgets(self) -> tuple[Budget, ...]:
        """Return the privacy budget of each split that was spent on. The accountant takes a moment for it."""

        def read() -> tuple[Budget, ...]:
            ledger = Ledger(self.kit.folder / LEDGER_FILE, self._log)
            sharing = Catalog(self.kit.folder / CATALOG_FILE).sharing
            return tuple(budgets(ledger, self.policy().max_epsilon_for_life, sharing))

        return self._kept("budgets", read)

    def policy(self) -> Policy:
        """Return the policy. Raises RefusedError (there is none) or UsageError."""
        return self._kept("policy", lambda: read_policy(self.kit.folder))

    def policy_since(self) -> str:
        """Return since when the policy is as it is (ISO 8601), "" when no message has come since it was written."""
        found = [entry.at for entry in self.entries() if entry.kind == "policy"]
        return found[-1] if found else ""

    def _job(self, asked: AskedJob) -> JobView:
        try:
            check_job(self.policy(), asked.job)
            refusal = ""
        except WardroundError as error:
            refusal = str(error)
        return JobView(asked, tuple(in_plain_words(asked.job)), self._cost(asked), refusal)

    def _cost(self, asked: AskedJob) -> str:
        job = asked.job
        if job.privacy.mechanism != "dp-sgd":
            return "It would not draw on this site's privacy budget."
        spent = [one for one in self.budgets() if one.collection == job.data.collection and one.split == "train"]
        if not spent:
            return f"It may spend epsilon {job.privacy.epsilon:g}; nothing has been spent on this collection yet."
        one = spent[0]
        room = f"one more run of up to {one.fits:.2f} fits" if one.fits > 0 else "no further run fits"
        return (
            f"It may spend epsilon {job.privacy.epsilon:g}; of {one.limit:g} for life {one.spent:.2f} is spent, {room}."
        )

    def _running(self) -> bool:
        """Whether the site's service holds its lock."""
        try:
            with (self.kit.folder / "service.lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def _kept(self, key: object, read: Callable[[], T]) -> T:
        with self._lock:
            self.version()
            if key not in self._cache:
                self._cache[key] = read()
            kept: T = self._cache[key]
            return kept


def page_of(items: Sequence[T], offset: int, limit: int) -> Sequence[T]:
    """Return a page of what is there."""
    return items[offset : offset + limit]


def _stamp(kit: Kit, name: str) -> tuple[int, int]:
    try:
        found = (kit.folder / name).stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_size, found.st_mtime_ns)
