"""One model: provenance, metrics by site, stages, download, card; and beside another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import get_args

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.errors import NotFoundError
from common.web import tables, words
from common.web.forms import Field, button, confirmed, html
from common.web.frame import Piece, follow, sheet
from common.web.tables import Column, Heading, badge
from server.dashboard.pages.desk import PATIENCE, Desk
from server.dashboard.pages.results import by_group, results
from server.readmodel import ReadModel
from server.records import Stage
from server.roles import Person
from server.views import Interval, ModelLine, ModelView

VERBS: Mapping[Stage, str] = {"candidate": "Make it a candidate again", "approved": "Approve", "retired": "Retire"}
EFFECTS: Mapping[Stage, str] = {
    "candidate": "It is then a model that nobody has decided on.",
    "approved": "People will take it as fit for what its card says.",
    "retired": "It should then not be used any more. It stays here, with its papers.",
}


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/models/{number}")
    async def model(request: Request, number: int, other: int = 0) -> None:
        with desk.page(request, f"Model {number}", "/models") as person:
            pieces = await desk.pieces(("model", number, other), lambda: pieces_of(desk.read, number, other)).load(
                PATIENCE
            )
            _decide(desk, person, number)
            for title, part in (
                ("Provenance", "provenance"), ("Results", "results"), ("Stages", "stages"),
                ("Beside another model", "beside"), ("Model card", "card"),
            ):  # fmt: skip
                with sheet(title):
                    pieces.put(part)
            follow(desk.feed, pieces.refresh)


def pieces_of(read: ReadModel, number: int, other: int) -> Mapping[str, Piece]:
    """Return the page's pieces."""
    view = read.model(number)
    return {
        "provenance": _provenance(view),
        "results": _results(view),
        "stages": _stages(view.line),
        "beside": _beside(read, view, other),
        "card": tables.more("Show the card (Markdown)", tables.code(read.card(number))),
    }


def _decide(desk: Desk, person: Person, number: int) -> None:
    with ui.element("div").classes("row-of fields"):
        if not person.may("models"):
            html(Markup('<p class="soft">Fetching models and deciding on them needs the role "coordinator".</p>'))
            return
        html(Markup('<a class="button" href="/api/v1/models/{}/file">Download</a>').format(number))
        html(Markup('<a class="button plain" href="/api/v1/models/{}/card">Download the card</a>').format(number))
        why = Field("Why", hint="kept with the decision", maxlength="2000", autocomplete="off")
        why.box.style("flex: 1 1 220px; max-width: 420px")

        async def decide(stage: Stage) -> None:
            if await confirmed(
                f"{VERBS[stage]}?", EFFECTS[stage], VERBS[stage], kind="bad" if stage == "retired" else ""
            ):
                await desk.act(
                    person, lambda who: desk.actions.stage(who, number, stage, why.value), f"It is {stage} now."
                )

        for stage in get_args(Stage):
            button(VERBS[stage], partial(decide, stage), kind="" if stage == "approved" else "plain")


def _provenance(view: ModelView) -> Markup:
    line, run = view.line, view.run
    told = tables.facts(
        [
            ("Study", line.job_name), ("Stage", badge(line.stage)), ("Kind", f"{line.kind} of its run"),
            ("Run", tables.link(line.run, "runs", line.run)),
            ("Run's end", badge(run.line.status)), ("After round", f"{line.round} of {run.line.rounds}"),
            ("Sites", len(run.job.sites)), ("Network", run.job.network.name), ("Strategy", run.line.strategy),
            ("Ward Round", line.code_version), ("Made", words.when(line.created)), ("Size", words.size(line.bytes)),
        ]
    )  # fmt: skip
    digests = tables.facts([("File's SHA-256", _code(line.sha256)), ("Job's digest", _code(line.digest))], wide=True)
    spends = [(spend.site, f"{spend.epsilon:.2f}", f"{spend.budget:g}", f"{spend.delta:g}") for spend in run.spends]
    heads: list[Heading] = [
        "Site",
        Column("Epsilon spent", number=True),
        Column("Epsilon allowed", number=True),
        Column("Delta", number=True),
    ]
    private = tables.table("Privacy spent by its run", heads, spends, empty="No differential privacy was used.")
    return told + digests + private


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def _results(view: ModelView) -> Markup:
    if not view.metrics:
        return Markup('<p class="soft">It was not evaluated: no site let metrics leave, or the run ended before.</p>')
    job = view.run.job
    whole = results(view.judged_on, "This model", view.metrics, job.task.labels)
    return whole + by_group("This model", view.groups, job.aggregation.criterion)


def _stages(line: ModelLine) -> Markup:
    rows = [(badge(change.stage), change.by, words.when(change.at), change.note) for change in line.changes]
    heads: list[Heading] = ["Stage", "By", "When", Column("Why", long=True)]
    return tables.table(
        "Decisions, the newest first", heads, rows, empty="Nobody has decided on it yet: it is a candidate."
    )


def _beside(read: ReadModel, view: ModelView, other: int) -> Markup:
    options = Markup("").join(
        Markup('<option value="{}"{}>{}</option>').format(
            line.id, Markup(" selected") if line.id == other else Markup(""), f"{line.id}: {line.run}, {line.kind}"
        )
        for line in read.models(limit=200).items
        if line.id != view.line.id
    )
    form = Markup(
        '<form class="form" method="get"><label class="field wide"><span>Compare with model</span>'
        '<select class="box" name="other">{}</select></label>'
        '<div><button class="button plain" type="submit">Compare</button></div></form>'
    ).format(options or Markup('<option value="0">there is no other</option>'))
    if not other:
        return form
    try:
        second = read.model(other)
    except NotFoundError as error:
        return form + tables.note(str(error), "bad")
    names = dict.fromkeys((*view.metrics, *second.metrics))
    metrics = list(
        dict.fromkeys(name for found in (*view.metrics.values(), *second.metrics.values()) for name in found)
    )
    rows: list[Sequence[object]] = [
        (f"{site or 'all sites'}: {name}", *(_shown(one.metrics.get(site, {}).get(name)) for one in (view, second)))
        for site in names
        for name in metrics
    ]
    heads: list[Heading] = [
        "Where and what",
        _judged(view),
        _judged(second),
    ]
    differ = tables.table(
        "Keys in which their jobs differ", ["Key", Column("Here", long=True), Column("There", long=True)],
        read.diff(view.line.run, second.line.run), empty="Their jobs are the same.",
    )  # fmt: skip
    return form + tables.table("Metrics of both", heads, rows) + differ


def _judged(view: ModelView) -> str:
    return f"Model {view.line.id} ({view.judged_on or 'not evaluated'})"


def _shown(found: Interval | None) -> str | None:
    return words.interval(found.value, found.low, found.high) if found else None
