"""The quality report: what is known of a collection after an import, and its page, which needs nothing but itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from client.catalog import FileRecord
from client.intake.folder import shown
from client.intake.quality import copies, counts, intensity, series
from client.intake.quality.pictures import MOST_LABELS, Pictures, sample
from client.intake.quality.problem import Finding, Problem, Shot
from client.intake.report import ImportReport

_REFUSED_SHOWN = 6


@dataclass(frozen=True)
class Quality:
    """What is known of a collection: its indexed records, its patients' splits; what is amiss, the gravest first."""

    records: tuple[FileRecord, ...]
    splits: Mapping[str, str]
    problems: tuple[Problem, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is amiss, in words."""
        return tuple(one.finding for one in self.problems)


def examine(records: Sequence[FileRecord], splits: Mapping[str, str]) -> Quality:
    """Look for what is amiss in a collection. `records` are all of its files; those left out are not looked at."""
    taken = tuple(record for record in records if not record.reason)
    groups = series.series_of(record for record in taken if record.format != "table")
    found = [*copies.problems(taken, splits), *series.problems(groups), *intensity.problems(groups)]
    return Quality(taken, splits, tuple(sorted(found, key=lambda one: not one.finding.grave)))


def render(quality: Quality, report: ImportReport, refused: Sequence[FileRecord]) -> str:
    """Return the page as HTML. `refused` are this import's files that were left out."""
    environment = Environment(
        loader=PackageLoader("client", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "bars": bars}
    return environment.get_template("quality.html.jinja").render(
        quality=quality,
        report=report,
        tables=list(counts.tables(quality.records, quality.splits)),
        each=counts.images_each(quality.records),
        histograms=counts.histograms(quality.records),
        sheets=_sheets(quality),
        refused=_refused(refused),
        picture=Pictures().of,
    )


def bars(shares: Sequence[float]) -> Markup:
    """Return a histogram as an inline SVG."""
    top = max(*shares, 1e-9)
    width = 240 / len(shares)
    drawn = Markup("").join(
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            at * width + 1, 60 - 56 * share / top, width - 2, 56 * share / top
        )
        for at, share in enumerate(shares)
    )
    return Markup('<svg viewBox="0 0 240 62" role="img" aria-label="histogram of intensities">{}</svg>').format(drawn)


def _sheets(quality: Quality) -> list[tuple[str, int, list[Shot]]]:
    """A contact sheet of each label: its name, how many files it has, and a sample."""
    groups: dict[str, list[FileRecord]] = defaultdict(list)
    for record in quality.records:
        groups["no label" if record.label is None else record.label].append(record)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_LABELS]
    return [
        (name, len(found), [Shot(one, quality.splits[one.patient]) for one in sample(found)]) for name, found in ordered
    ]


def _refused(records: Sequence[FileRecord]) -> list[tuple[str, int, list[Shot]]]:
    """For each kind of reason its name, how many files, and what can be shown of them."""
    groups: dict[str, list[FileRecord]] = defaultdict(list)
    for record in records:
        groups[record.reason.split(":")[0]].append(record)
    return [
        (reason, len(found), [Shot(one, one.path) for one in sample([r for r in found if r.seen.copy], _REFUSED_SHOWN)])
        for reason, found in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
