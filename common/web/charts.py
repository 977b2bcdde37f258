"""Charts as options for Apache ECharts, which NiceGUI brings along, and the same numbers as a table beside each.

Pure functions: plain values in, plain dictionaries out. Colours hold in both themes; the style sheet has the text's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from common.web import tables, words

COLOURS = ("#2f7fd1", "#c2570c", "#22915b", "#a349c4", "#b8860b", "#d03a63", "#0f9aa8", "#7a7f1a", "#6b6ee0", "#97694f")
STATES = {
    "aggregated": "#22915b", "evaluated": "#22915b", "agreed": "#22915b", "trained": "#7fb85f", "working": "#2f7fd1",
    "waiting": "#c79a1b", "late": "#d9791f", "unreached": "#8a95a1", "excluded": "#b06a8f", "refused": "#c23a68",
    "failed": "#cc3d3d", "rejected": "#8e1f1f",
}  # fmt: skip
"""The colours of what a site did in a round."""
GREY, SOFT_LINE = "#76818d", "#8a95a155"
CANVAS_FROM = 4000
"""Cells from which a map is drawn on a canvas: a browser is slow with more elements."""


@dataclass(frozen=True)
class Line:
    """A line's name and points (x, y); y None where there is none. `low` and `high` make a band around it."""

    name: str
    points: Sequence[tuple[float, float | None]]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Chart:
    """ECharts' options, and the same numbers as a table for those who can't see it or want to copy them."""

    title: str
    options: dict[str, Any]
    data: Markup
    canvas: bool = False
    size: str = ""


def lines(title: str, x: str, y: str, drawn: Sequence[Line], *, limit: float | None = None) -> Chart:
    """Return lines over whole numbers `x`; `limit` is a dashed line across, such as a budget."""
    series: list[dict[str, Any]] = []
    for place, line in enumerate(drawn):
        colour = COLOURS[place % len(COLOURS)]
        series += _band(line, colour) if line.low and line.high else []
        series.append(
            {
                "type": "line", "name": line.name, "symbolSize": 5, "showSymbol": len(line.points) < 60,
                "data": [[at, _plain(value)] for at, value in line.points],
                "lineStyle": {"width": 2}, "itemStyle": {"color": colour}, "emphasis": {"focus": "series"},
                **({"markLine": _limit(limit)} if limit is not None and place == 0 else {}),
            }
        )  # fmt: skip
    options = _frame(y, legend=[line.name for line in drawn]) | {
        "xAxis": _axis(x, type="value", minInterval=1, min="dataMin", max="dataMax"),
        "yAxis": _axis("", scale=True) if limit is None else _up_to(_above(limit, drawn)),
        "dataZoom": [{"type": "inside", "filterMode": "none"}],
        "series": series,
    }
    return Chart(title, options, _points(title, x, drawn))


def moments(title: str, y: str, drawn: Sequence[Line], *, limit: float | None = None) -> Chart:
    """Return steps over time: `points` are (seconds since 1970, value), each holding until the next."""
    chart = lines(title, "time", y, drawn, limit=limit)
    series = [
        one | {"step": "end", "data": [[round(at * 1000), value] for at, value in one["data"]]}
        for one in chart.options["series"]
    ]
    rows = [(words.when(at), line.name, words.number(value)) for line in drawn for at, value in line.points]
    table = tables.table(title, ["When", "What", tables.Column(y, number=True)], rows, tall=True)
    grid = chart.options["grid"] | {"right": 44}  # the last moment's label is centred below it
    return Chart(title, chart.options | {"xAxis": _axis("", type="time"), "series": series, "grid": grid}, table)


def bars(title: str, x: str, y: str, names: Sequence[object], parts: Mapping[str, Sequence[float | None]]) -> Chart:
    """Return stacked bars: one for each of `names`, of the `parts` with a value each."""
    series = [
        {"type": "bar", "stack": "all", "name": name, "data": [_plain(value) for value in values],
         "itemStyle": {"color": COLOURS[place % len(COLOURS)]}, "barMaxWidth": 28}
        for place, (name, values) in enumerate(parts.items())
    ]  # fmt: skip
    options = _frame(y, legend=list(parts)) | {
        "xAxis": _axis(x, type="category", data=[str(name) for name in names]),
        "yAxis": _axis(""),
        "dataZoom": [{"type": "inside"}],
        "series": series,
    }
    rows = [(name, *(words.number(values[place]) for values in parts.values())) for place, name in enumerate(names)]
    heads: tuple[str | tables.Column, ...] = (x, *(tables.Column(name, number=True) for name in parts))
    return Chart(title, options, tables.table(f"{title}, {y}", heads, rows, tall=True))


@dataclass(frozen=True)
class Cell:
    """What was done in a column and row (by place): the state, how long it took (s), and why, where that is known."""

    x: int
    y: int
    state: str
    seconds: float
    more: str = ""


def state_map(title: str, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Cell], data: Markup) -> Chart:
    """Return a map of states, such as of rounds (columns) by sites (rows). `data` is its table."""
    states = list(dict.fromkeys(cell.state for cell in cells))
    names = f"const [x, y, states] = {json.dumps([list(columns), list(rows), states]).replace('<', chr(92) + 'u003c')};"
    escaped = "replace(/[&<>\"']/g, (c) => '&#' + c.charCodeAt(0) + ';')"
    told = (
        "(p) => { " + names + " const d = p.data; const lines = [y[d[1]] + ', ' + x[d[0]], states[d[2]] + (d[3] ? ', ' "
        "+ d[3] + ' s' : '')].concat(d[4] ? [d[4]] : []); return lines.map((s) => s." + escaped + ").join('<br>'); }"
    )
    grid = {"left": 8, "right": 12, "top": 34, "bottom": 8, "containLabel": True}
    pieces = [{"value": place, "label": state, "color": STATES.get(state, GREY)} for place, state in enumerate(states)]
    options = {
        "aria": {"enabled": True},
        "animation": False,
        "grid": grid,
        "tooltip": _tooltip() | {":formatter": told},
        "xAxis": _axis("", type="category", data=list(columns)) | {"splitLine": {"show": False}},
        "yAxis": _axis("", type="category", data=list(rows), inverse=True) | {"splitLine": {"show": False}},
        "visualMap": {
            "type": "piecewise",
            "dimension": 2,
            "orient": "horizontal",
            "top": 0,
            "left": 0,
            "itemWidth": 14,
            "textStyle": {"color": GREY},
            "hoverLink": False,
            "pieces": pieces,
        },
        "series": [
            {
                "type": "heatmap",
                "data": [_cell(cell, states) for cell in cells],
                "itemStyle": {"borderWidth": 1 if len(cells) < CANVAS_FROM else 0, "borderColor": "#8884"},
            }
        ],
    }
    size = "low" if len(rows) <= 6 else "high" if len(rows) > 14 else ""
    return Chart(title, options, data, canvas=len(cells) >= CANVAS_FROM, size=size)


def _cell(cell: Cell, states: Sequence[str]) -> list[object]:
    found: list[object] = [cell.x, cell.y, states.index(cell.state), round(cell.seconds, 1)]
    return [*found, cell.more] if cell.more else found


def _frame(y: str, legend: Sequence[str]) -> dict[str, Any]:
    return {
        "aria": {"enabled": True},
        "animation": False,
        "color": list(COLOURS),
        "grid": {"left": 8, "right": 20, "top": 42, "bottom": 26, "containLabel": True},
        "title": {"text": y, "left": 0, "top": 0, "textStyle": {"fontSize": 12, "fontWeight": "normal", "color": GREY}},
        "legend": {
            "type": "scroll",
            "right": 0,
            "left": 88,
            "top": 0,
            "data": list(legend),
            "textStyle": {"color": GREY},
        },
        "tooltip": _tooltip() | {"trigger": "axis", "confine": True},
    }


def _tooltip() -> dict[str, Any]:
    return {
        "backgroundColor": "#1b2430",
        "borderWidth": 0,
        "textStyle": {"color": "#ffffff", "fontSize": 13},
        "confine": True,
    }


def _axis(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "nameLocation": "middle", "nameGap": 24, "nameTextStyle": {"color": GREY},
        "axisLabel": {"color": GREY, "hideOverlap": True}, "axisLine": {"lineStyle": {"color": GREY}},
        "splitLine": {"lineStyle": {"color": SOFT_LINE}}, **more,
    }  # fmt: skip


def _band(line: Line, colour: str) -> list[dict[str, Any]]:
    """Two stacked lines that are not seen, with the area between them: ECharts has no band of its own."""
    xs = [at for at, _ in line.points]
    quiet = {"type": "line", "stack": f"{line.name} band", "symbol": "none", "lineStyle": {"opacity": 0},
             "tooltip": {"show": False}, "silent": True, "stackStrategy": "all"}  # fmt: skip
    low = [[at, _plain(value)] for at, value in zip(xs, line.low, strict=True)]
    width = [
        [at, None if a is None or b is None else _plain(b - a)]
        for at, a, b in zip(xs, line.low, line.high, strict=True)
    ]
    area = {"color": colour, "opacity": 0.18}
    return [quiet | {"data": low}, quiet | {"data": width, "areaStyle": area}]


def _above(limit: float, drawn: Sequence[Line]) -> float:
    """The top of an axis on which the limit is seen, however little of it is used."""
    values = (value for line in drawn for _, value in line.points if value is not None and math.isfinite(value))
    return float(f"{1.1 * max(limit, 0.0, *values):.3g}")


def _up_to(top: float) -> dict[str, Any]:
    """An axis from 0 on; its end is not labelled, as that would stand upon the limit's own label."""
    axis = _axis("", min=0, max=top)
    return axis | {"axisLabel": axis["axisLabel"] | {"showMaxLabel": False}}


def _limit(at: float) -> dict[str, Any]:
    return {"silent": True, "symbol": "none", "lineStyle": {"type": "dashed", "color": "#cc3d3d"},
            "label": {"formatter": f"{at:g}", "color": GREY}, "data": [{"yAxis": at}]}  # fmt: skip


def _points(title: str, x: str, drawn: Sequence[Line]) -> Markup:
    at = sorted({place for line in drawn for place, _ in line.points})
    values = [dict(line.points) for line in drawn]
    rows = [(f"{place:g}", *(words.number(found.get(place)) for found in values)) for place in at]
    heads: tuple[str | tables.Column, ...] = (x, *(tables.Column(line.name, number=True) for line in drawn))
    return tables.table(title, heads, rows, tall=True)


def _plain(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
