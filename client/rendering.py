"""The report as HTML and Markdown: templates filled by Jinja2, and the curve of the budget as an inline SVG."""

from __future__ import annotations

import datetime
import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from client.papers import Budget, Point, Report

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 680, 260, 56, 16, 16, 40


def render(report: Report, kind: str) -> str:
    """Return the report as "html" or "md". Whatever comes from outside is escaped in both."""
    environment = Environment(
        loader=PackageLoader("client", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "number": number, "when": when, "curve": curve}
    return environment.get_template(f"report.{kind}.jinja").render(report=report)


def cell(value: Any) -> Markup:
    """Return text for Markdown, also in a cell of a table: on one line, and nothing in it is markup or HTML."""
    text = " ".join(str(value).split())
    for letter in "\\`*[]|":
        text = text.replace(letter, f"\\{letter}")
    for letter, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(letter, name)
    return Markup(text)  # noqa: S704 - escaped above


def number(value: float | None) -> str:
    """Return an epsilon or delta for people."""
    if value is None:
        return "no limit"
    if math.isinf(value):
        return "unbounded"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.0e}"


def when(at: str) -> str:
    """Return a moment without its fraction of a second."""
    return at[:19].replace("T", " ")


def curve(budget: Budget) -> Markup:
    """Return the budget over time as an SVG: a step up at each spending, and the policy's limit as a dashed line.

    Time runs to the right from the first spending to the last, epsilon upwards from 0. Coordinates are in pixels.
    """
    times = [_seconds(point) for point in budget.points]
    highest = max([point.epsilon for point in budget.points if math.isfinite(point.epsilon)] + [budget.limit or 0.0])
    top = highest * 1.08 or 1.0
    span = (times[-1] - times[0]) or 1.0

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (seconds - times[0]) / span

    def y(epsilon: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(epsilon, top) / top)

    path = [f"M{LEFT:.1f},{y(0):.1f}"]
    for seconds, point in zip(times, budget.points, strict=True):
        path += [f"H{x(seconds):.1f}", f"V{y(point.epsilon):.1f}"]
    path.append(f"H{WIDTH - RIGHT:.1f}")
    ticks = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in _ticks(top)
    )
    limit = ""
    if budget.limit is not None:
        limit = (
            f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(budget.limit):.1f}" '
            f'y2="{y(budget.limit):.1f}"/><text class="limit" x="{WIDTH - RIGHT}" y="{y(budget.limit) - 5:.1f}" '
            f'text-anchor="end">allowed for life: {budget.limit:g}</text>'
        )
    title = escape(f"Epsilon spent on the {budget.split} split of {budget.collection}, over time")
    return Markup(  # noqa: S704 - numbers, and what was escaped
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>{ticks}{limit}'
        f'<path class="curve" d="{" ".join(path)}"/>'
        f'<text x="{LEFT}" y="{HEIGHT - 12}">{escape(when(budget.points[0].at))}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{escape(when(budget.points[-1].at))}</text>'
        f'<text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">epsilon</text></svg>'
    )


def _seconds(point: Point) -> float:
    return datetime.datetime.fromisoformat(point.at).timestamp()


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, at most six."""
    step = 10.0 ** math.floor(math.log10(top))
    step = next(size for size in (step / 5, step / 2, step, 2 * step, 5 * step) if top / size <= 5)
    return [round(step * count, 10) for count in range(math.floor(top / step) + 1)]
