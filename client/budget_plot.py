"""The budgets over time as a picture."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from client.budget import Budget
from common.errors import UsageError

KINDS = (".svg", ".png", ".pdf")


def draw(budgets: Sequence[Budget], path: Path) -> None:
    """Draw the epsilon spent for life over time, a step line for each budget, with the limits.

    Raises
    ------
    UsageError
        The file's ending is none of `KINDS`, or it can't be written.
    """
    from matplotlib.dates import date2num
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    if path.suffix.lower() not in KINDS:
        raise UsageError(f"{path}: a plot is {', '.join(KINDS)}")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for one in budgets:
        times = date2num([datetime.datetime.fromisoformat(at) for at, _ in one.history])  # type: ignore[no-untyped-call]
        spent = [epsilon for _, epsilon in one.history]
        axes.step(times, spent, where="post", marker="o", markersize=3, label=f"{one.collection}, {one.split}")
    for limit in sorted({one.limit for one in budgets}):
        axes.axhline(limit, linestyle="--", color="0.4", label=f"limit for life, {limit:g}")
    axes.set_ylabel("epsilon spent, all runs together")
    axes.set_xlabel("time (UTC)")
    axes.set_ylim(bottom=0)
    axes.xaxis_date()
    figure.autofmt_xdate()
    if budgets:
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UsageError(f"{path}: the plot can't be written: {error.strerror}") from error
