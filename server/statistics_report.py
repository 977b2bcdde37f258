"""Federated statistics for people and scripts: a table, JSON, and a folder with a page, its figures and Markdown."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from common import bins
from common.errors import UsageError
from common.files import write_atomically
from server.records import RunDetail
from server.shifts import Shift, SiteStatistics, mean_and_deviation, shifts, statistics_in

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b", "#8c6d31")
"""Okabe and Ito's, which people with any kind of colour vision tell apart."""
MOST_DRAWN = len(COLOURS)
"""More sites than these are not drawn: the table has them all."""
SEEN = 3.0
"""A bin is shown when some site's weight is over so many deviations of its noise."""


@dataclass(frozen=True)
class Block:
    """A histogram as it is shown: a row for each bin that has something, a cell for each site."""

    name: str
    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Statistics:
    """The statistics of a run, with what they say of shifts. `missing` are the sites without, each with the reason."""

    run: str
    collection: str
    labels: tuple[str, ...]
    sites: tuple[SiteStatistics, ...]
    shifts: tuple[Shift, ...]
    missing: tuple[str, ...]

    @property
    def told(self) -> tuple[Shift, ...]:
        """The shifts that are beyond chance and noise."""
        return tuple(shift for shift in self.shifts if shift.told)

    @property
    def basis(self) -> str:
        """On what basis the counts are, in words."""
        noisy = [site for site in self.sites if site.deviation]
        if not noisy:
            return "exact, as each site's policy declares; bins of few patients are left empty"
        low, high = (f(site.deviation for site in noisy) for f in (min, max))
        spread = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        return f"with noise of standard deviation {spread} patients on each number (differential privacy, by patient)"

    def blocks(self) -> list[Block]:
        """Return the histograms with what there is to see in them."""
        return [block for name in (bins.LABEL, *bins.HISTOGRAMS) if (block := self._block(name)).rows]

    def _block(self, name: str) -> Block:
        counted = bins.histogram(name, self.labels)
        rows = []
        for at, text in enumerate(counted.bins):
            weights = [site.histograms[name][at] for site in self.sites]
            if any(weight > max(SEEN * site.deviation, 0.5) for weight, site in zip(weights, self.sites, strict=True)):
                rows.append((text, tuple(_cell(site, name, at) for site in self.sites)))
        if rows and counted.values:
            found = [mean_and_deviation(site.histograms[name], counted.values) for site in self.sites]
            rows.append(("mean and deviation", tuple(_spread(one, name) for one in found)))
        return Block(name, f"Patients by {counted.title}", tuple(rows))


def statistics_of_run(detail: RunDetail) -> Statistics:
    """Return the statistics of a run. Raises RunError when it has none."""
    sites, labels = statistics_in(detail), detail.job.task.labels
    there = {site.site for site in sites}
    said = {row.site: row for record in detail.rounds for row in record.sites}
    missing = tuple(
        f"{name}: {said[name].status}: {said[name].reason}" if name in said else name
        for name in detail.job.sites
        if name not in there
    )
    return Statistics(
        detail.summary.name, detail.job.data.collection, labels, tuple(sites), tuple(shifts(sites, labels)), missing
    )


def as_data(found: Statistics) -> dict[str, Any]:
    """Return everything as plain values, for JSON."""
    return {
        "run": found.run,
        "collection": found.collection,
        "basis": found.basis,
        "missing": list(found.missing),
        "bins": {name: list(bins.histogram(name, found.labels).bins) for name in (bins.LABEL, *bins.HISTOGRAMS)},
        "sites": {
            site.site: {
                "patients": site.patients,
                "patients_deviation": site.patients_deviation,
                "deviation": site.deviation,
                "epsilon": site.epsilon,
                "histograms": {name: weights.tolist() for name, weights in site.histograms.items()},
            }
            for site in found.sites
        },
        "shifts": [asdict(shift) for shift in found.shifts],
    }


def for_terminal(found: Statistics) -> Group:
    """Return the statistics as tables for a terminal."""
    table = Table(f"{found.collection}", *(site.site for site in found.sites), box=None)
    table.add_row("patients", *(_patients(site) for site in found.sites), style="bold")
    table.add_row("epsilon spent", *("-" if s.epsilon is None else f"{s.epsilon:.2f}" for s in found.sites))
    for block in found.blocks():
        table.add_section()
        table.add_row(Text(block.title, style="bold cyan"))
        for text, cells in block.rows:
            table.add_row(f"  {text}", *cells)
    parts: list[RenderableType] = [table, Text(f"Counts are {found.basis}.", style="dim")]
    parts += [Text(f"! {line}", style="yellow") for line in warnings(found)]
    if not found.told and len(found.sites) > 1:
        parts.append(Text("No shift between sites that chance and noise would not make, too."))
    return Group(*parts)


def warnings(found: Statistics) -> list[str]:
    """Return a line for each site that is missing, and for each shift."""
    lines = [f"missing: {text}" for text in found.missing]
    for shift in found.told:
        title = bins.histogram(shift.histogram, found.labels).title
        lines.append(
            f"{shift.kind} shift at {shift.site}, by {title}: {shift.says}; distance {shift.distance:.2f} "
            f"({shift.low:.2f} to {shift.high:.2f}), chance and noise make up to {shift.floor:.2f}"
        )
    return lines


def write_folder(found: Statistics, folder: Path) -> Path:
    """Write report.html, report.md, statistics.json and figures to a folder; return the page. Raises UsageError."""
    figures = {block.name: _figure(found, block.name) for block in found.blocks()} if found.sites else {}
    environment = Environment(
        loader=PackageLoader("server", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shown = {
        "found": found, "blocks": found.blocks(), "warnings": warnings(found),
        "patients": [_patients(site) for site in found.sites],
        "figures": {name: base64.b64encode(data).decode() for name, data in figures.items()},
        "titles": {name: bins.histogram(name, found.labels).title for name in (bins.LABEL, *bins.HISTOGRAMS)},
    }  # fmt: skip
    page = folder / "report.html"
    contents = {
        page: environment.get_template("statistics.html.jinja").render(shown).encode(),
        folder / "report.md": _markdown(found).encode(),
        folder / "statistics.json": json.dumps(as_data(found), indent=1).encode(),
        **{folder / f"{name}.png": data for name, data in figures.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"{folder}: the report can't be written: {error.strerror}: name another folder") from error
    return page


def _markdown(found: Statistics) -> str:
    lines = [f"# Statistics of “{found.collection}”", "", f"Run `{found.run}`. Counts are {found.basis}.", ""]
    lines += [f"- **{line}**" for line in warnings(found)] or ["No shift beyond chance and noise."]
    heads = [site.site for site in found.sites]
    lines += ["", _row("", heads), _row("---", ["---"] * len(heads)), _row("patients", map(_patients, found.sites))]
    for block in found.blocks():
        lines += ["", f"## {block.title}", "", f"![{block.title}]({block.name}.png)", "", _row("", heads)]
        lines += [_row("---", ["---"] * len(heads)), *(_row(text, cells) for text, cells in block.rows)]
    return "\n".join(lines) + "\n"


def _row(first: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in (first, *cells))} |"


def _figure(found: Statistics, name: str) -> bytes:
    """A histogram of all sites as PNG: shares, with the noise's deviation as whiskers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counted, sites = bins.histogram(name, found.labels), found.sites[:MOST_DRAWN]
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places, width = np.arange(len(counted.bins)), 0.8 / len(sites)
    for number, site in enumerate(sites):
        total = max(site.patients, 1.0)
        axes.bar(
            places + (number - (len(sites) - 1) / 2) * width, np.clip(site.histograms[name], 0, None) / total, width,
            label=site.site, color=COLOURS[number], yerr=site.deviation / total if site.deviation else None,
            error_kw={"linewidth": 0.8, "ecolor": "#444444"},
        )  # fmt: skip
    axes.set_xticks(places, counted.bins, rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("share of patients")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _cell(site: SiteStatistics, name: str, at: int) -> str:
    weight, total = float(site.histograms[name][at]), site.patients
    share = f"{min(max(weight, 0.0) / total, 1.0):.0%}" if total > 0 else "-"
    return f"{share} ({max(weight, 0.0):,.0f})"


def _spread(found: tuple[float, float] | None, name: str) -> str:
    if found is None:
        return "-"
    return f"{found[0]:.2f}, {found[1]:.2f}" if name == "intensity" else f"{found[0]:.0f}, {found[1]:.0f}"


def _patients(site: SiteStatistics) -> str:
    return f"{site.patients:,.0f}" + (f" ± {1.96 * site.patients_deviation:,.0f}" if site.deviation else "")
