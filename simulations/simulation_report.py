"""A scenario's results for people: a table on the terminal and in summary.md, and one HTML file with all figures."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from common.files import write_atomically
from simulations.comparison import Line, caution, compare
from simulations.plots import SCOPES, draw_all, metric_name
from simulations.results import Result, write_tables
from simulations.scenario import ScenarioFile

HEADINGS = {
    "learning-curves": ("Learning curves", "Mean over seeds; the band is one standard deviation."),
    "communication-utility": ("Communication and utility", "The same, by what had gone over the wire by then."),
    "hospitals": ("Hospitals", "The final model at each hospital; whiskers are one standard deviation over seeds."),
    "privacy-utility": ("Privacy and utility", "The final model by epsilon; whiskers are one standard deviation."),
}
PLOTS = "plots"


@dataclass(frozen=True)
class Figure:
    """A figure of the report."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Report:
    """All that the HTML file says."""

    name: str
    description: str
    expected: str
    judged: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caution: str
    failures: tuple[str, ...]
    figures: tuple[Figure, ...]
    made: str
    scenario: str


def write_results(folder: Path, file: ScenarioFile, results: Sequence[Result]) -> list[Line]:
    """Write tables, figures, summary.md and report.html of these results; return what the summary says."""
    judge = file.scenario.judge
    lines = compare(results, judge.scope, judge.metric, file.scenario.arms[0].name)
    write_tables(folder, results)
    pictures = draw_all(folder / PLOTS, results, lines, judge.scope, judge.metric)
    report = _report(file, results, lines, pictures)
    environment = Environment(
        loader=PackageLoader("simulations", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("simulation.html.jinja").render(report=report)
    write_atomically(folder / "report.html", page.encode())
    write_atomically(folder / "summary.md", _markdown(report).encode())
    return lines


def summary_table(file: ScenarioFile, lines: Sequence[Line]) -> Table:
    """Return the summary for a terminal."""
    heading, *rows = _cells(file, lines)
    # What fits 80 columns; the report has the rest.
    shown = [
        place for place, name in enumerate(heading) if place < 2 or name in ("difference", "p (t)", "epsilon", "MB")
    ]
    table = Table(box=None)
    for place in shown:
        table.add_column(heading[place], justify="right" if place else "left", no_wrap=bool(place), overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    return table


def _report(file: ScenarioFile, results: Sequence[Result], lines: Sequence[Line], pictures: Sequence[Path]) -> Report:
    scenario, judge = file.scenario, file.scenario.judge
    heading, *rows = _cells(file, lines)
    seeds = ", ".join(map(str, dict.fromkeys(result.cell.seed for result in results)))
    return Report(
        scenario.name, scenario.description, scenario.expected,
        f"{metric_name(judge.metric)} on {SCOPES[judge.scope]}, of the {judge.model} model; seeds {seeds}. "
        f"Differences and p values (paired over seeds, adjusted by Holm) are to {scenario.arms[0].name}.",
        heading, tuple(rows), caution(lines), failures(results),
        tuple(_figure(path) for path in pictures),
        f"Ward Round {metadata.version('wardround')}, torch {torch.__version__}, {platform.machine()}, "
        f"{len(results)} runs, {sum(result.outcome.seconds for result in results):,.0f} s of training in all.",
        file.text,
    )  # fmt: skip


def failures(results: Sequence[Result]) -> tuple[str, ...]:
    """Return a line for each run that failed."""
    return tuple(
        f"{result.cell.title}, seed {result.cell.seed}: {result.outcome.reason}"
        for result in results
        if not result.completed
    )


def _cells(file: ScenarioFile, lines: Sequence[Line]) -> list[tuple[str, ...]]:
    judge = file.scenario.judge
    shown = f"{judge.scope}.{judge.metric}"
    others = [f"mean.{judge.metric}", f"worst.{judge.metric}", f"unseen.{judge.metric}", f"pooled.{judge.metric}"]
    more = [name for name in others if name != shown and any(name in line.others for line in lines)]
    private = any(line.epsilon is not None for line in lines)
    heading = ("", f"{judge.scope} {metric_name(judge.metric)}", "seeds", *(name.replace(".", " ") for name in more))
    heading += ("difference", "p (t)", "p (W)", *(("epsilon",) if private else ()), "MB", "s")
    rows = [heading]
    for line in lines:
        deviation = f" ± {line.deviation:.3f}" if line.deviation is not None else ""
        seeds = f"{len(line.values)}" + (f", {line.failed} failed" if line.failed else "")
        cells = [line.title, f"{line.mean:.3f}{deviation}" if line.mean is not None else "-", seeds]
        cells += [_number(line.others.get(name)) for name in more]
        cells += [_number(line.difference, "+.3f"), _number(line.t), _number(line.wilcoxon)]
        cells += [_number(line.epsilon, ".2f")] if private else []
        rows.append((*cells, f"{line.megabytes:,.1f}" if line.kind == "federated" else "-", f"{line.seconds:,.1f}"))
    return rows


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _markdown(report: Report) -> str:
    text = [f"# {report.name}", report.description]
    text += [f"Expected: {report.expected}"] if report.expected else []
    table = ["|" + "|".join(f" {cell} " for cell in row) + "|" for row in (report.heading, *report.rows)]
    table.insert(1, "|---" * len(report.heading) + "|")
    text += [report.judged, "\n".join(table), report.caution]
    if report.failures:
        text.append("Runs that failed:\n\n" + "\n".join(f"- {line}" for line in report.failures))
    text.append(report.made)
    return "\n\n".join(part for part in text if part) + "\n"


def _figure(path: Path) -> Figure:
    title, caption = HEADINGS.get(path.stem, (f"By {path.stem.removeprefix('by-')}", "The final model; whiskers are one standard deviation."))  # fmt: skip  # noqa: E501
    svg = path.read_text(encoding="utf-8")
    # Inline in one page: no XML heading, and names that are no other figure's.
    inside = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
    inside = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{re.sub(r'[^A-Za-z0-9]', '-', path.stem)}-", inside)
    return Figure(title, caption, Markup(inside))  # noqa: S704 - matplotlib escapes the texts it draws
