"""The report for a hospital's data protection officer: its content as data, and its writing as HTML and Markdown.

Everything in it is read from the audit log, the ledger, the policy and the kit, or computed from them. It names no
patient and no file, because none of these does.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from client.budget import evenly
from client.catalog import CATALOG_FILE, Catalog
from client.privacy.ledger import counts_for_life
from client.privacy.rows import Row
from client.releases import KIND, Release, release_of
from client.rules import Rule, read_rules
from client.verification import Verdict, verify_site
from common.audit import Entry, Head
from common.errors import DataError, UsageError, WardroundError
from common.files import write_atomically
from common.kit import Kit
from common.privacy import epsilon_of
from common.release import meaning_of

MOST_POINTS = 24
"""Most points of a curve of the budget over time: each takes the accountant a moment."""
TEXTS = {
    "site": "the site's name",
    "job": "the job's digest, by which the coordinator knows what is answered",
    "number": "the round",
    "status": "whether the site did what was asked",
    "reason": "why it did not, in words that name no patient, file or count",
    "examples": "the update's weight: images in the training split, or, with privacy, the released count",
    "update/tensors": "the network's parameters after training; with privacy, clipped and with noise",
    "version": "the version of the site's software",
    "device": "what it trains on: the name of its GPU, or CPU",
    "basis/train": 'on what basis the numbers on training leave: "noised", "declared" or "exact"',
    "basis/stat": 'on what basis statistics leave: "noised", or "declared": exactly',
    "basis/eval": 'on what basis the numbers on evaluation leave: "noised", "declared" or "exact"',
}


@dataclass(frozen=True)
class Point:
    """What a collection's split had spent at a moment: epsilon, at the budget's delta."""

    at: str
    epsilon: float


@dataclass(frozen=True)
class Budget:
    """A split of a collection: what all runs together have spent of what the policy allows for life, and when.

    What was spent on collections that have patients in common with it (`sharing`) is in it.
    """

    collection: str
    split: str
    sharing: tuple[str, ...]
    epsilon: float
    delta: float
    limit: float | None
    units: tuple[str, ...]
    runs: int
    points: tuple[Point, ...]

    @property
    def left(self) -> float | None:
        """What is left for life at least, or None where the policy says nothing: composed, a little more fits."""
        return None if self.limit is None else max(0.0, self.limit - self.epsilon)


@dataclass(frozen=True)
class Cost:
    """What a run has spent on a split of a collection."""

    collection: str
    split: str
    epsilon: float
    delta: float
    unit: str
    purposes: tuple[str, ...]
    rounds: int


@dataclass(frozen=True)
class Run:
    """One run: its messages, and what it cost. "" is what belongs to no run: introductions, unreadable requests."""

    name: str
    jobs: tuple[str, ...]
    messages: tuple[Release, ...]
    costs: tuple[Cost, ...]

    @property
    def bytes(self) -> int:
        """How many bytes left in all."""
        return sum(message.bytes for message in self.messages)

    @property
    def receivers(self) -> tuple[str, ...]:
        """To whom they left."""
        return tuple(sorted({message.to for message in self.messages if message.to}))


@dataclass(frozen=True)
class Field:
    """A field that has left: what it is, and in how many messages."""

    name: str
    meaning: str
    messages: int


@dataclass(frozen=True)
class Report:
    """All that the report says."""

    kit: Kit
    made_at: str
    verdict: Verdict
    rules: tuple[Rule, ...]
    no_policy: str
    policies: tuple[Entry, ...]
    decisions: tuple[Entry, ...]
    imports: tuple[Entry, ...]
    budgets: tuple[Budget, ...]
    runs: tuple[Run, ...]
    fields: tuple[Field, ...]

    @property
    def messages(self) -> int:
        """How many messages have left."""
        return sum(len(run.messages) for run in self.runs)

    @property
    def bytes(self) -> int:
        """How many bytes of content have left."""
        return sum(run.bytes for run in self.runs)

    @property
    def factor(self) -> str:
        """e to the largest epsilon spent, rounded up: by how much a conclusion can become more likely, at most."""
        worst = max((budget.epsilon for budget in self.budgets), default=0.0)
        return f"{math.ceil(math.exp(worst) * 10) / 10:,.1f}" if worst < 20 else "more than 480 million"

    @property
    def worst(self) -> float:
        """The largest epsilon that a split has spent for life."""
        return max((budget.epsilon for budget in self.budgets), default=0.0)


def make_report(kit: Kit, witnesses: Sequence[Head] = ()) -> Report:
    """Gather the report of the site whose kit this is.

    Raises DataError when the log can't be read, or KitError when its key is damaged. Faults of the log are part of the
    report, not errors.
    """
    verdict = verify_site(kit.folder, witnesses)
    releases = tuple(_releases(verdict.entries))
    policy, rules, no_policy = read_rules(kit.folder)
    limit = policy.max_epsilon_for_life if policy else None
    return Report(
        kit=kit,
        made_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        verdict=verdict,
        rules=rules,
        no_policy=no_policy,
        policies=_of_kind(verdict.entries, "policy"),
        decisions=_of_kind(verdict.entries, "decision"),
        imports=_of_kind(verdict.entries, "import"),
        budgets=tuple(_budgets(verdict.rows, limit, Catalog(kit.folder / CATALOG_FILE))),
        runs=tuple(_runs(releases, verdict.rows)),
        fields=_fields(releases),
    )


def write_report(kit: Kit, out: Path, witnesses: Sequence[Head] = ()) -> list[Path]:
    """Write the report to `out`: a folder, or one file that ends in .html or .md. Returns what was written.

    In a folder there is also head.json: the log's head, to be kept, and given to `wardround audit verify --witness`.

    Raises UsageError when `out` can't be written, and what `make_report` raises.
    """
    from client.rendering import render

    if out.suffix.lower() == ".pdf":
        raise UsageError(f"{out}: a report is .html or .md: write report.html, and print that as PDF in a browser")
    report = make_report(kit, witnesses)
    if out.suffix in (".html", ".md"):
        contents = {out: render(report, out.suffix[1:])}
    else:
        contents = {out / f"report.{kind}": render(report, kind) for kind in ("html", "md")}
        if report.verdict.head:
            contents[out / "head.json"] = report.verdict.head.to_json() + "\n"
    try:
        for path, text in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode("utf-8"), mode=0o600)
    except OSError as error:
        raise UsageError(f"{out}: the report can't be written: {error.strerror}: name another place") from error
    return list(contents)


def _of_kind(entries: Iterable[Entry], kind: str) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.kind == kind)


def _releases(entries: Iterable[Entry]) -> Iterator[Release]:
    for entry in entries:
        if entry.kind == KIND:
            try:
                yield release_of(entry)
            except DataError:
                continue  # the verdict counts it; another version wrote it


def _budgets(rows: Sequence[Row], limit: float | None, catalog: Catalog) -> Iterator[Budget]:
    for collection, split in sorted({(row.entry.collection, row.entry.split) for row in rows}):
        sharing = _sharing(catalog, collection)
        counted = [row for row in rows if counts_for_life(row.entry, collection, split, sharing)]
        delta = min(row.entry.delta for row in counted)  # of several, the one with the largest epsilon
        ends = evenly(len(counted), MOST_POINTS)
        points = tuple(Point(counted[end].at, _epsilon(counted[: end + 1], delta)) for end in ends)
        units = tuple(sorted({row.entry.unit for row in counted}))
        runs = len({row.entry.run for row in counted})
        yield Budget(collection, split, sharing, points[-1].epsilon, delta, limit, units, runs, points)


def _sharing(catalog: Catalog, collection: str) -> tuple[str, ...]:
    try:
        return catalog.sharing(collection)
    except DataError:
        return ()  # a damaged catalog stops the site, not this report: the ledger is whole without it


def _epsilon(rows: Iterable[Row], delta: float) -> float:
    try:
        return epsilon_of([row.entry.spending for row in rows], delta)
    except WardroundError:
        return math.inf  # more steps than can be accounted


def _runs(releases: Sequence[Release], rows: Sequence[Row]) -> Iterator[Run]:
    names = dict.fromkeys([release.run for release in releases] + [row.entry.run for row in rows])
    for name in sorted(names, key=lambda name: name == ""):  # in the order of their first message; no run comes last
        messages = tuple(release for release in releases if release.run == name)
        jobs = tuple(dict.fromkeys(release.job_digest for release in messages if release.job_digest))
        yield Run(name, jobs, messages, tuple(_costs([row for row in rows if row.entry.run == name])))


def _costs(rows: Sequence[Row]) -> Iterator[Cost]:
    def place(row: Row) -> tuple[str, str]:
        return row.entry.collection, row.entry.split

    for (collection, split), found in groupby(sorted(rows, key=place), key=place):
        of_split = list(found)
        delta = min(row.entry.delta for row in of_split)
        yield Cost(
            collection,
            split,
            _epsilon(of_split, delta),
            delta,
            " and ".join(sorted({row.entry.unit for row in of_split})),
            tuple(sorted({row.entry.purpose for row in of_split})),
            len({row.entry.round for row in of_split}),
        )


def _fields(releases: Iterable[Release]) -> tuple[Field, ...]:
    counts: dict[str, int] = {}
    for release in releases:
        for name in release.fields:
            counts[name] = counts.get(name, 0) + 1
    unknown = "not known to this version"
    return tuple(Field(name, TEXTS.get(name) or meaning_of(name) or unknown, counts[name]) for name in sorted(counts))
