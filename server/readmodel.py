"""The one way in which pages and the API read the registry: views, kept as long as nothing has changed.

Guarantees: a page costs what has changed since it was last asked for, not what the registry holds. Committed rounds are
read once; at most `TURNS_KEPT` lines of sites in rounds are held, however many runs are looked at. Safe to use from
several threads.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from common.audit import AuditLog, Entry
from common.chain import Head
from common.job_file import differences, job_toml
from common.kit import Kit
from common.once import Once
from server.coordinator import known_sites
from server.model_card import model_card
from server.query import Query
from server.record import coordinator_log
from server.records import CoordinatorSeen, LogLine, RoundRecord, RunDetail, SiteSeen
from server.registry import Registry
from server.report import is_alive
from server.views import (
    Federation,
    Listing,
    ModelLine,
    ModelView,
    RoundLine,
    RunLine,
    RunView,
    SiteLine,
    SiteSpend,
    SiteState,
    by_group,
    round_line,
)

TURNS_KEPT = 150_000
VIEWS_KEPT = 50
NEWEST_RUNS = 50
"""In how many of the newest runs the sites' counts and states are looked for."""
T = TypeVar("T")


class ReadModel:
    """What can be read of the federation whose coordinator's kit and registry these are."""

    def __init__(self, registry: Registry, kit: Kit) -> None:
        self._registry, self._kit = registry, kit
        self._query = Query(registry.database)
        self._log = coordinator_log(kit)
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._version = 0
        self._once = Once(VIEWS_KEPT)
        self._coordinator: CoordinatorSeen | None = registry.coordinator()
        self._rounds: OrderedDict[str, tuple[int, tuple[RoundLine, ...]]] = OrderedDict()
        self._entries: tuple[int, tuple[Entry, ...]] = (-1, ())

    def version(self) -> int:
        """Return a number that grows whenever anything that is read has changed. Costs microseconds with SQLite."""
        with self._lock:
            alive = is_alive(self._coordinator)  # one that was killed changes nothing: it only falls silent
            seen = (self._query.change(), _size(self._log), alive, *_roster(self._kit))
            if seen != self._seen:
                self._seen = seen
                self._version += 1
                self._once.clear()
            return self._version

    def federation(self) -> Federation:
        """Return the federation with all sites on its roster. Raises KitError for a roster that can't be read."""
        return self._kept("federation", self._federation)

    def runs(self, *, text: str = "", status: str = "", offset: int = 0, limit: int = 50) -> Listing[RunLine]:
        """Return the runs whose name, job or strategy contains `text`, of one `status` ("" all), the newest first."""
        return self._kept(("runs", text, status, offset, limit), lambda: self._query.runs(text, status, offset, limit))

    def run(self, name: str) -> RunView:
        """Return everything of a run. Raises NotFoundError when there is none of this name."""
        return self._kept(("run", name), lambda: self._run(name))

    def line(self, name: str) -> RunLine:
        """Return a run in a line. Raises NotFoundError when there is none of this name."""
        return self._kept(("line", name), lambda: self._query.run(name)[0])

    def detail(self, name: str) -> RunDetail:
        """Return a run as the registry keeps it, read anew. Raises NotFoundError when there is none of this name."""
        return self._registry.run_detail(name)

    def participation(self, limit: int = 20) -> tuple[RoundLine, ...]:
        """Return the newest training rounds of all runs, the oldest of them first."""

        def read() -> tuple[RoundLine, ...]:
            return tuple(round_line(run, record) for run, record in self._query.newest_rounds(limit))

        return self._kept(("participation", limit), read)

    def log(self, run: str = "", *, after: int = 0, limit: int = 500) -> tuple[LogLine, ...]:
        """Return the newest lines of the log of a run (or of none) after line `after`, the oldest first."""
        return self._query.log(run, after, limit)

    def models(self, *, text: str = "", stage: str = "", offset: int = 0, limit: int = 50) -> Listing[ModelLine]:
        """Return the models of runs that have ended, the newest first; in `stage`, and with `text` in the run."""

        def read() -> Listing[ModelLine]:
            found = [
                model
                for model in self._kept("models", self._query.models)
                if stage in ("", model.stage) and text.lower() in f"{model.run} {model.job_name} {model.sha256}".lower()
            ]
            return Listing(tuple(found[offset : offset + limit]), len(found), offset, limit)

        return self._kept(("models", text, stage, offset, limit), read)

    def model(self, number: int) -> ModelView:
        """Return everything of the model with this id. Raises NotFoundError when there is none."""
        return self._kept(("model", number), lambda: self._model(number))

    def card(self, number: int) -> str:
        """Return the model card, in Markdown. Raises NotFoundError when there is no such model."""
        return model_card(self.model(number), self._kit.federation)

    def diff(self, one: str, other: str) -> tuple[tuple[str, str, str], ...]:
        """Return the keys in which two runs' jobs differ, each with both values. Raises NotFoundError."""
        return differences(self.run(one).job, self.run(other).job)

    def audit(self, *, offset: int = 0, limit: int = 100) -> Listing[Entry]:
        """Return entries of the coordinator's audit log, the newest first. Raises DataError for a damaged log."""
        with self._lock:
            size = _size(self._log)
            if self._entries[0] != size:
                self._entries = (size, tuple(reversed(self._log.entries())) if size else ())
            entries = self._entries[1]
        return Listing(entries[offset : offset + limit], len(entries), offset, limit)

    def _kept(self, key: Hashable, read: Callable[[], T]) -> T:
        return self._once.get(key, self.version(), read)

    def _federation(self) -> Federation:
        registry, coordinator = self._registry, self._registry.coordinator()
        self._coordinator = coordinator
        alive = is_alive(coordinator)
        latest, machines = self._query.latest_turns(NEWEST_RUNS), registry.machines()
        counts, progress = self._query.counts(NEWEST_RUNS), self._query.progress()
        lines = []
        for seen in known_sites(self._kit, registry):
            state, detail = site_state(seen, alive, progress, latest.get(seen.name))
            machine, head = machines.get(seen.name), registry.witness(seen.name)
            lines.append(
                SiteLine(
                    seen.name,
                    state,
                    detail,
                    seen.last_seen,
                    seen.certificate_ends,
                    machine.version if machine else "",
                    machine.device if machine else "",
                    counts.get(seen.name, {}),
                    Head.from_json(head).sequence if head else None,
                )
            )
        started, heartbeat = (coordinator.started, coordinator.heartbeat) if coordinator else (None, None)
        return Federation(self._kit.federation, alive, started, heartbeat, tuple(lines))

    def _run(self, name: str) -> RunView:
        line, job = self._query.run(name)
        rounds = self._rounds_of(name)
        spent = {turn.site: turn.epsilon for one in rounds for turn in one.turns if turn.epsilon is not None}
        if job.privacy.mechanism == "central":  # what the coordinator added protects all sites alike
            spent = dict.fromkeys(job.sites, max((one.epsilon for one in rounds if one.epsilon), default=0.0))
        return RunView(
            line=line,
            job=job,
            toml=job_toml(job),
            rounds=rounds,
            spends=tuple(
                SiteSpend(site, spent[site], job.privacy.epsilon, job.privacy.delta)
                for site in job.sites
                if site in spent
            ),
            models=tuple(model for model in self._kept("models", self._query.models) if model.run == name),
            warnings=tuple(f"{one.title}: {text}" for one in rounds for text in one.warnings),
            sent=sum(one.sent for one in rounds),
            received=sum(one.received for one in rounds),
        )

    def _rounds_of(self, name: str) -> tuple[RoundLine, ...]:
        """All rounds of a run: those read before, and what has come since. A committed round hardly ever changes."""
        with self._lock:
            newest, before = self._rounds.get(name, (0, ()))
        known = before[:-1]  # the newest is read again: an evaluation that is made again takes its place, and its id
        with no_collection():
            fresh, total = self._query.rounds(name, after=newest - 1)
            if total != len(known) + len(fresh):
                known, (fresh, _) = (), self._query.rounds(name)
            lines = (*known, *(round_line(name, record) for _, record in fresh))
        if lines == before:
            return before
        with self._lock:
            self._rounds[name] = (fresh[-1][0] if fresh else newest, lines)
            self._rounds.move_to_end(name)
            while len(self._rounds) > 1 and _turns(self._rounds) > TURNS_KEPT:
                self._rounds.popitem(last=False)
        return lines

    def _model(self, number: int) -> ModelView:
        line, path = self._query.model(number)
        run = self.run(line.run)
        judged_on, metrics, groups = "", {}, {}
        for split in ("test", "validation", "train"):
            found = [one for one in run.rounds if one.kind == split and one.model_round == line.round and one.metrics]
            if found:
                judged_on = "validation" if split == "train" else split
                metrics = {"": found[-1].metrics} | {
                    turn.site: turn.metrics for turn in found[-1].turns if turn.metrics
                }
                groups = by_group(found[-1].turns)
                break
        return ModelView(line, run, str(self._registry.folder / path), judged_on, metrics, groups)


@contextmanager
def no_collection() -> Iterator[None]:
    """Let the garbage collector rest: among many thousands of new values that all stay, it only costs time."""
    resting = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not resting:
            gc.enable()


def site_state(
    seen: SiteSeen,
    coordinator_alive: bool,
    progress: Mapping[str, Any] | None,
    latest: tuple[str, RoundRecord, int] | None,
) -> tuple[SiteState, str]:
    """Return a site's state and why it is in it: by the exchange under way, else by its newest turn in a run.

    `latest` is the run, the round and the site's place in it.
    """
    if seen.last_seen is None:
        return "never seen", "it has not connected since it was admitted"
    if not coordinator_alive:
        return "away", "the coordinator is not running"
    if not seen.online:
        return "away", "not connected"
    if progress and seen.name in progress.get("waiting", ()) and progress.get("kind") != "consent":
        return "training", f"{progress.get('kind')}, round {progress.get('number')}"
    if progress and progress.get("done", {}).get(seen.name) == "waiting":
        return "waiting", "a person must approve there, or the hour is wrong"
    if latest is None:
        return "online", ""
    run, record, place = latest
    row = record.sites[place]
    if row.status in ("refused", "excluded"):
        return "refused", f"{run}: {row.reason}"
    if row.status == "waiting":
        return "waiting", f"{run}: {row.reason}"
    if row.status == "late":
        return "late", f"{run}, {record.title}: {row.reason}"
    return "online", ""


def _turns(rounds: Mapping[str, tuple[int, tuple[RoundLine, ...]]]) -> int:
    return sum(len(one.turns) for _, lines in rounds.values() for one in lines)


def _size(log: AuditLog) -> int:
    try:
        return log.path.stat().st_size
    except FileNotFoundError:
        return 0


def _roster(kit: Kit) -> tuple[int, ...]:
    try:
        return ((kit.folder / "roster").stat().st_mtime_ns,)
    except FileNotFoundError:
        return ()
