"""The models that runs have left, with their stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.web import tables, words
from common.web.forms import html
from common.web.frame import follow, sheet
from common.web.tables import Column, Heading, badge
from server.dashboard.pages.desk import Desk
from server.records import Stage
from server.views import ModelLine

LIMIT = 50


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/models")
    async def models(request: Request, text: str = "", stage: str = "", offset: int = 0) -> None:
        first = max(0, min(offset, 10**9))
        with desk.page(request, "Models", "/models"):
            html(_filter(text, stage))

            def listed() -> Markup:
                found = desk.read.models(text=text[:200], stage=stage[:20], offset=first, limit=LIMIT)
                empty = (
                    "No model is like this." if text or stage else "No run has ended yet: its models come here then."
                )
                more = tables.pages("/models", first, LIMIT, found.total, text=text, stage=stage)
                return model_rows(found.items, empty) + more

            pieces = await desk.pieces(("models", text, stage, first), lambda: {"models": listed()}).load()
            with sheet():
                pieces.put("models")
            follow(desk.feed, pieces.refresh)


def model_rows(models: Sequence[ModelLine], empty: str) -> Markup:
    """Return a table of models."""
    heads: list[Heading] = ["Model", "Stage", Column("Decided", long=True), "Run", Column("After round", number=True),
             Column("Validation score", number=True), Column("Size", number=True), "Made", "SHA-256"]  # fmt: skip
    return tables.table("Models", heads, [_row(model) for model in models], empty=empty)


def _row(model: ModelLine) -> Sequence[object]:
    change = model.changes[0] if model.changes else None
    decided = Markup("by {}, {}").format(change.by, words.when(change.at)) if change else "nobody yet"
    score = f"{model.criterion} {words.number(model.score)}" if model.score is not None else None
    return (
        tables.link(f"{model.job_name}, {model.kind}", "models", model.id), badge(model.stage), decided,
        tables.link(model.run, "runs", model.run), model.round, score, words.size(model.bytes),
        words.when(model.created),
        Markup("<code>{}</code>").format(model.sha256[:12]),
    )  # fmt: skip


def _filter(text: str, stage: str) -> Markup:
    options = Markup("").join(
        Markup('<option value="{}"{}>{}</option>').format(
            name, Markup(" selected") if name == stage else Markup(""), name or "any stage"
        )
        for name in ("", *get_args(Stage))
    )
    return Markup(
        '<form class="form sheet" method="get" action="/models" role="search">'
        '<label class="field"><span>Find in run, job or SHA-256</span>'
        '<input class="box" type="search" name="text" value="{}" maxlength="200"></label>'
        '<label class="field"><span>Stage</span><select class="box" name="stage">{}</select></label>'
        '<div><button class="button" type="submit">Find</button></div></form>'
    ).format(text, options)
