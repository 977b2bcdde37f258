"""A scenario's results as figures, PNG and SVG: learning curves, hospitals, and what privacy and bytes buy.

Colours are Okabe and Ito's, which people with any kind of colour vision tell apart; lines differ in their marks, too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_atomically
from simulations.arms import point, shown
from simulations.comparison import Line
from simulations.results import Result, varied_keys

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKS = "os^Dv<>P*X"
MOST_LINES, MOST_HOSPITALS, MOST_NUMBERS = 16, 24, 48
"""More lines than this are not told apart; more hospitals are shown as a distribution."""
ABBREVIATED = {"auc": "AUC", "ece": "ECE", "hd95": "HD95", "psnr": "PSNR", "ssim": "SSIM", "nmse": "NMSE", "froc": "FROC", "dice": "Dice", "surface_dice": "surface Dice"}  # fmt: skip  # noqa: E501
UNBOUNDED = frozenset({"loss", "hd95", "psnr"})
"""Metrics that are not shares of one."""
SCOPES = {"pooled": "all hospitals' patients", "mean": "mean over hospitals", "unseen": "unseen patients", "worst": "worst hospital"}  # fmt: skip  # noqa: E501
Key = tuple[str, str]
"""An arm, and the point of the grid in words."""


def metric_name(metric: str) -> str:
    """Return a metric's name as people write it."""
    return ABBREVIATED.get(metric, metric.replace("_", " "))


def draw_all(folder: Path, results: Sequence[Result], lines: Sequence[Line], scope: str, metric: str) -> list[Path]:
    """Draw every figure that these results have something for; return the SVG files' paths, PNG beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    label = f"{metric_name(metric)} ({SCOPES[scope]})"
    wanted: dict[str, Callable[[Any], bool]] = {
        "learning-curves": lambda figure: _curves(figure, results, scope, metric, label, by_bytes=False),
        "communication-utility": lambda figure: _curves(figure, results, scope, metric, label, by_bytes=True),
        "hospitals": lambda figure: _hospitals(figure, results, metric),
    }
    for key in varied_keys(results):
        name = "privacy-utility" if key.endswith("privacy.epsilon") else f"by-{key}"
        wanted[name] = partial(_along, lines=lines, key=key, label=label)
    paths = [folder / f"{name}.svg" for name, draw in wanted.items() if _drawn(folder / name, draw)]
    for old in folder.glob("*.*"):  # of a scenario that had more to show
        if old.with_suffix(".svg") not in paths:
            old.unlink()
    return paths


def _drawn(stem: Path, draw: Callable[[Any], bool]) -> bool:
    """Draw a figure to `stem`.svg and .png; the same results give the same bytes. False where there is nothing."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": stem.name, "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):  # fmt: skip  # noqa: E501
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        if not draw(figure):
            return False
        for ending, settings in (("svg", {"metadata": {"Date": None, "Creator": None}}), ("png", {"dpi": 150})):
            picture = io.BytesIO()
            figure.savefig(picture, format=ending, **settings)
            write_atomically(stem.with_name(f"{stem.name}.{ending}"), picture.getvalue())
    return True


def _curves(figure: Any, results: Sequence[Result], scope: str, metric: str, label: str, *, by_bytes: bool) -> bool:
    """Metric by round, or by what had gone over the wire by then: mean over seeds, and one deviation as a band."""
    found: dict[Key, dict[int, list[tuple[float, float]]]] = {}
    for result in results:
        if by_bytes and (result.cell.kind != "federated" or not result.bytes):
            continue
        gone = dict(zip((row.number for row in result.outcome.rounds), _running(result), strict=True))
        for row in result.outcome.rows:
            if row.scope == scope and row.metric == metric and row.round in gone:
                place = gone[row.round] / 1e6 if by_bytes else float(row.round)
                by_round = found.setdefault(_key(result), {}).setdefault(row.round, [])
                by_round.append((place, row.value))
    drawn = {key: points for key, points in found.items() if len(points) > 1}
    if not drawn:
        return False
    panel = figure.subplots()
    for number, (key, points) in enumerate(list(drawn.items())[:MOST_LINES]):
        rounds = sorted(points)
        at = [float(np.mean([place for place, _ in points[number_]])) for number_ in rounds]
        values = [np.array([value for _, value in points[number_]]) for number_ in rounds]
        mean, deviation = np.array([one.mean() for one in values]), np.array([_deviation(one) for one in values])
        panel.plot(at, mean, label=_words(key), markersize=4, linewidth=1.4, **_look(number))
        panel.fill_between(
            at, mean - deviation, mean + deviation, color=_look(number)["color"], alpha=0.15, linewidth=0
        )
    if by_bytes:
        panel.set_xscale("log")
    else:
        panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("MB over the wire, both ways, all hospitals" if by_bytes else "round")
    _finish(figure, panel, label)
    return True


def _hospitals(figure: Any, results: Sequence[Result], metric: str) -> bool:
    """Final metric at each hospital: bars and one deviation over seeds; of many hospitals, their distribution."""
    found: dict[Key, dict[str, list[float]]] = {}
    for result in results:
        for row in result.outcome.rows:
            if row.final and row.scope == "site" and row.metric == metric:
                found.setdefault(_key(result), {}).setdefault(row.site, []).append(row.value)
    if not found:
        return False
    chosen = dict(list(found.items())[:MOST_LINES])
    sites = sorted({site for by_site in chosen.values() for site in by_site})
    panel = figure.subplots()
    if len(sites) > MOST_HOSPITALS:
        for number, (key, by_site) in enumerate(chosen.items()):
            means = np.sort([np.mean(values) for values in by_site.values()])
            panel.plot(
                np.linspace(0, 100, len(means)), means, label=_words(key), linewidth=1.4, **_look(number, mark=False)
            )
        panel.set_xlabel("hospitals, from worst to best (%)")
    else:
        width = 0.84 / len(chosen)
        for number, (key, by_site) in enumerate(chosen.items()):
            values = [np.array(by_site.get(site, [np.nan])) for site in sites]
            at = np.arange(len(sites)) + width * (number - (len(chosen) - 1) / 2)
            bars = panel.bar(
                at, [one.mean() for one in values], width * 0.92, yerr=[_deviation(one) for one in values],
                color=COLOURS[number % len(COLOURS)], hatch="" if number < len(COLOURS) else "//", label=_words(key),
                error_kw={"linewidth": 0.8, "ecolor": "#444444"},
            )  # fmt: skip
            if len(sites) * len(chosen) <= MOST_NUMBERS:
                panel.bar_label(bars, fmt="%.2f", fontsize=7, label_type="center", rotation=90, color="white")
        many = sum(map(len, sites)) > 60
        panel.set_xticks(range(len(sites)), sites, rotation=30 if many else 0, ha="right" if many else "center")
        if metric not in UNBOUNDED:
            panel.set_ylim(0, 1.05)
    _finish(figure, panel, f"{metric_name(metric)} on the hospital's own patients")
    return True


def _along(figure: Any, lines: Sequence[Line], key: str, label: str) -> bool:
    """Final metric along one key of the grid, a line for each arm and point of the other keys."""
    found: dict[Key, list[tuple[Any, Line]]] = {}
    for line in lines:
        if key in line.varied and line.values:
            others = {name: value for name, value in line.varied.items() if name != key}
            found.setdefault((line.arm, point(others)), []).append((line.varied[key], line))
    values = list(dict.fromkeys(shown(value) for points in found.values() for value, _ in points))
    if len(values) < 2:
        return False
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for p in found.values() for value, _ in p)  # fmt: skip  # noqa: E501
    panel = figure.subplots()
    for number, (arm, points) in enumerate(list(found.items())[:MOST_LINES]):
        ordered = sorted(points, key=lambda point: point[0]) if numbers else points
        at = [value if numbers else values.index(shown(value)) for value, _ in ordered]
        panel.errorbar(
            at, [line.mean for _, line in ordered], [line.deviation or 0.0 for _, line in ordered],
            label=_words(arm), markersize=5, linewidth=1.4, capsize=3, **_look(number),
        )  # fmt: skip
    if numbers:
        _number_axis(panel, [float(value) for points in found.values() for value, _ in points])
    else:
        panel.set_xticks(range(len(values)), values)
    panel.set_xlabel(
        "epsilon of a patient, whole run (smaller: more private)" if key.endswith("privacy.epsilon") else key
    )
    _finish(figure, panel, label)
    return True


def _number_axis(panel: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    places = sorted(set(values))
    if min(places) > 0 and max(places) / min(places) >= 8:
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xticks(places, [f"{place:g}" for place in places])


def _finish(figure: Any, panel: Any, label: str) -> None:
    panel.set_ylabel(label)
    panel.grid(axis="y", linewidth=0.3)
    panel.set_axisbelow(True)
    handles, names = panel.get_legend_handles_labels()
    columns = max(1, min(4, len(names), 96 // (8 + max(map(len, names)))))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _running(result: Result) -> list[float]:
    return np.cumsum([row.sent + row.received for row in result.outcome.rounds]).tolist()  # type: ignore[no-any-return]


def _key(result: Result) -> Key:
    return result.cell.arm, point(result.cell.varied)


def _words(key: Key) -> str:
    return ", ".join(part for part in key if part)


def _look(number: int, *, mark: bool = True) -> Mapping[str, Any]:
    look: dict[str, Any] = {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": "-" if number < len(COLOURS) else "--",
    }
    return look | ({"marker": MARKS[number % len(MARKS)]} if mark else {})


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
