"""Runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import Query, Request
from markupsafe import Markup
from nicegui import ui

from common.errors import UsageError
from common.release import QUALITIES
from common.web import charts, tables, words
from common.web.charts import Line
from common.web.forms import html
from common.web.frame import Piece, follow, sheet
from common.web.tables import Column, Heading, badge
from server.dashboard.pages.desk import PATIENCE, Desk
from server.readmodel import ReadModel
from server.views import RunView

MOST = 8


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/compare")
    async def compare(request: Request, runs: Annotated[list[str], Query(max_length=100)] = []) -> None:  # noqa: B006
        names = list(dict.fromkeys(" ".join(runs).replace(",", " ").split()))
        with desk.page(request, "Compare runs", "/runs"):
            html(_form(desk.read, names))
            if len(names) > MOST:
                raise UsageError(f"at most {MOST} runs are shown side by side: {len(names)} were named")
            if not names:
                return
            pieces = await desk.pieces(("compare", *names), lambda: pieces_of(desk.read, names)).load(PATIENCE)
            for title, part in (("Results", "table"), ("Over the rounds", "chart"), ("Jobs", "jobs")):
                with sheet(title):
                    pieces.put(part)
            follow(desk.feed, pieces.refresh)


def pieces_of(read: ReadModel, names: Sequence[str]) -> Mapping[str, Piece]:
    """Return the page's pieces."""
    views = [read.run(name) for name in names]
    return {"table": _table(views), "chart": _chart(views), "jobs": _jobs(read, names)}


def _table(views: Sequence[RunView]) -> Markup:
    named = {name: None for view in views for one in view.rounds for name in one.metrics}
    metrics = [name for name in QUALITIES if name in named]  # a label's own are on the runs' pages
    rows: list[Sequence[object]] = [
        ("Status", *(badge(view.line.status) for view in views)),
        ("Rounds", *(f"{view.line.done} of {view.line.rounds}" for view in views)),
        ("Sites", *(view.line.sites for view in views)),
        ("Strategy", *(view.line.strategy for view in views)),
        ("Largest epsilon at a site", *(_largest(view) for view in views)),
        ("Seconds a round (mean)", *(words.seconds(_mean_seconds(view)) for view in views)),
        ("Sent and received", *(words.size(view.sent + view.received) for view in views)),
        *(
            (f"{split} {name}", *(_last(view, split, name) for view in views))
            for split in ("validation", "test")
            for name in metrics
        ),
    ]
    heads: list[Heading] = ["What", *(view.line.name for view in views)]
    return tables.table("The runs side by side", heads, rows)


def _chart(views: Sequence[RunView]) -> Piece:
    name = views[0].job.aggregation.criterion
    every = (
        Line(
            view.line.name,
            [(one.model_round, one.metrics[name].value) for one in view.rounds
             if one.kind in ("train", "validation") and name in one.metrics],
        )
        for view in views
    )  # fmt: skip
    drawn = [line for line in every if line.points]
    if not drawn:
        return Markup('<p class="soft">None of these runs has metrics yet.</p>')
    return charts.lines(f"Validation {name} of all sites", "model after round", name, drawn)


def _jobs(read: ReadModel, names: Sequence[str]) -> Markup:
    found = Markup("")
    for other in names[1:]:
        heads: list[Heading] = ["Key", Column(f"In {names[0]}", long=True), Column(f"In {other}", long=True)]
        found += tables.table(
            f"Keys in which {names[0]} and {other} differ",
            heads,
            read.diff(names[0], other),
            empty="The two jobs are the same.",
        )
    return found or Markup('<p class="soft">Name a second run to see how their jobs differ.</p>')


def _largest(view: RunView) -> str | None:
    return f"{max(spend.epsilon for spend in view.spends):.2f}" if view.spends else None


def _mean_seconds(view: RunView) -> float | None:
    seconds = [one.seconds for one in view.rounds if one.kind == "train"]
    return sum(seconds) / len(seconds) if seconds else None


def _last(view: RunView, split: str, name: str) -> str | None:
    kinds = ("train", "validation") if split == "validation" else (split,)
    found = [one.metrics[name] for one in view.rounds if one.kind in kinds and name in one.metrics]
    return words.interval(found[-1].value, found[-1].low, found[-1].high) if found else None


def _form(read: ReadModel, names: Sequence[str]) -> Markup:
    known = Markup("").join(Markup('<option value="{}">').format(line.name) for line in read.runs(limit=50).items)
    return Markup(
        '<form class="form sheet" method="get" action="/compare"><label class="field wide">'
        "<span>Runs, with blanks between them</span>"
        '<input class="box" name="runs" value="{}" list="known-runs"></label>'
        '<datalist id="known-runs">{}</datalist><div><button class="button" type="submit">Compare</button></div></form>'
    ).format(" ".join(names), known)
