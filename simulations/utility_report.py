"""The study of privacy's cost as a table and a figure: mean and standard deviation over seeds, by data and arm."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import write_atomically
from simulations.utility import Result

Group = tuple[str, str]
"""Data and arm."""
COLOURS = ("#1f6f8b", "#c8553d", "#6a994e", "#7b5ea7")
MARKS = ("o", "s", "^", "D")
START, END = "<!-- results -->", "<!-- end of results -->"
WIDTH = 0.06
"""How far apart, in places of the axis, arms stand that have the same epsilon, so that their bars don't hide."""


def groups(results: Sequence[Result]) -> list[Group]:
    """Return each pair of data and arm once, in the order in which they come."""
    return list(dict.fromkeys((result.data, result.arm) for result in results))


def levels(results: Sequence[Result]) -> list[float]:
    """Return the epsilons that there are, ascending; infinity, which is no privacy, last."""
    return sorted({result.epsilon for result in results})


def aucs(results: Sequence[Result], group: Group, epsilon: float) -> np.ndarray:
    """Return the AUC of each seed, in the order of the seeds: empty where there is no such cell."""
    chosen = [result for result in results if (result.data, result.arm) == group and result.epsilon == epsilon]
    return np.array([result.auc for result in sorted(chosen, key=lambda result: result.seed)])


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table: a row for data and arm, a column an epsilon, AUC as mean ± standard deviation."""
    columns = levels(results)
    lines = ["| | | " + " | ".join(map(named, columns)) + " |", "|---" * (2 + len(columns)) + "|"]
    for data, arm in groups(results):
        cells = [_spread(aucs(results, (data, arm), epsilon)) for epsilon in columns]
        lines.append(f"| {data} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def named(epsilon: float) -> str:
    """Return a column's or tick's name."""
    return f"ε = {epsilon:g}" if math.isfinite(epsilon) else "no privacy"


def draw(results: Sequence[Result], path: Path) -> None:
    """Write an SVG figure: a panel for each set of data, AUC over epsilon, bars of one standard deviation over seeds.

    The same results give the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    data_sets, columns = list(dict.fromkeys(result.data for result in results)), levels(results)
    with mpl.rc_context({"svg.hashsalt": "privacy-utility", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4 * len(data_sets), 3.2), layout="constrained")
        panels = figure.subplots(1, len(data_sets), squeeze=False)[0]
        for panel, data in zip(panels, data_sets, strict=True):
            arms = [arm for of, arm in groups(results) if of == data]
            for number, arm in enumerate(arms):
                at = np.arange(len(columns)) + WIDTH * (number - (len(arms) - 1) / 2)
                values = [aucs(results, (data, arm), epsilon) for epsilon in columns]
                known = [place for place, value in enumerate(values) if len(value)]
                panel.errorbar(
                    at[known],
                    [values[place].mean() for place in known],
                    [_deviation(values[place]) for place in known],
                    color=COLOURS[number % len(COLOURS)], marker=MARKS[number % len(MARKS)],
                    markersize=4, linewidth=1, capsize=3, label=arm,
                )  # fmt: skip
            panel.set_xticks(range(len(columns)), [named(epsilon) for epsilon in columns])
            panel.set_title(data, fontsize=10)
            panel.set_ylabel("AUC on unseen images" if panel is panels[0] else "")
            panel.grid(axis="y", linewidth=0.3)
            panel.legend(frameon=False, loc="lower right")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, picture.getvalue())


def fill(page: Path, text: str) -> None:
    """Put `text` between the page's two marks, in place of what is there. Raises DataError when they are not there."""
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise DataError(f"{page}: it has no place for the results: put the lines {START} and {END} into it")
    write_atomically(page, f"{before}{start}\n{text}\n{end}{after}".encode())


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    return f"{values.mean():.3f}" + (f" ± {_deviation(values):.3f}" if len(values) > 1 else "")


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
