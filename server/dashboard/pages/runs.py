"""All runs: found by text and status, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.web import tables, words
from common.web.forms import html
from common.web.frame import Piece, follow, sheet
from common.web.tables import Column, badge
from server.dashboard.pages.desk import Desk
from server.records import RunStatus
from server.views import Listing, RunLine

LIMIT = 50


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/runs")
    async def runs(request: Request, text: str = "", status: str = "", offset: int = 0) -> None:
        first = max(0, min(offset, 10**9))
        with desk.page(request, "Runs", "/runs"):
            html(_filter(text, status))
            pieces = await desk.pieces(
                ("runs", text, status, first),
                lambda: pieces_of(
                    desk.read.runs(text=text[:200], status=status[:20], offset=first, limit=LIMIT), text, status
                ),
            ).load()
            with sheet():
                pieces.put("runs")
            follow(desk.feed, pieces.refresh)


def pieces_of(found: Listing[RunLine], text: str, status: str) -> Mapping[str, Piece]:
    """Return the page's pieces."""
    wanted = bool(text or status)
    empty = (
        Markup('No run is like this. <a href="/runs">Show all runs</a>')
        if wanted
        else Markup(
            'No run yet. <a href="/new">Write a job</a>, or on the command line: <code>wardround run job.toml</code>'
        )
    )
    listed = tables.table(
        f"{found.total:,} runs{' found' if wanted else ''}, the newest first",
        ["Run", "Compare", "Status", "Rounds", Column("Sites", number=True), "Strategy", "Privacy", "Asked for",
         Column("Took", number=True), Column("Why", long=True)],
        [row(run) for run in found.items], empty=empty,
    )  # fmt: skip
    if found.total > 1:
        listed = Markup(
            '<form method="get" action="/compare">{}<div class="pages">'
            '<button class="button plain small" type="submit">Compare the ticked runs</button></div></form>'
        ).format(listed)
    return {"runs": listed + tables.pages("/runs", found.offset, found.limit, found.total, text=text, status=status)}


def row(run: RunLine) -> Sequence[object]:
    """Return a run's cells."""
    took = run.finished - run.started if run.finished and run.started else None
    return (
        tables.link(run.name, "runs", run.name),
        Markup('<input type="checkbox" name="runs" value="{0}" aria-label="Compare {0}">').format(run.name),
        badge(run.status), tables.bar(run.done, run.rounds, f"{run.done} of {run.rounds}"), run.sites, run.strategy,
        "none" if run.mechanism == "none" else run.mechanism, words.when(run.created), words.seconds(took), run.reason,
    )  # fmt: skip


def _filter(text: str, status: str) -> Markup:
    options = Markup("").join(
        Markup('<option value="{}"{}>{}</option>').format(
            name, Markup(" selected") if name == status else Markup(""), name or "any status"
        )
        for name in ("", *get_args(RunStatus))
    )
    return Markup(
        '<form class="form sheet" method="get" action="/runs" role="search">'
        '<label class="field"><span>Find in name, job or strategy</span>'
        '<input class="box" type="search" name="text" value="{}" maxlength="200"></label>'
        '<label class="field"><span>Status</span><select class="box" name="status">{}</select></label>'
        '<div><button class="button" type="submit">Find</button></div></form>'
    ).format(text, options)
