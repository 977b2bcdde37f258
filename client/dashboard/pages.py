"""The hospital's pages, but for those of jobs and of the audit: overview, data, budget, releases, policy."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Callable, Mapping

from markupsafe import Markup
from nicegui import ui

from client.dashboard.desk import Desk, at
from client.dashboard.readmodel import CollectionView, SiteReadModel, page_of
from client.policy import Policy
from common.errors import WardroundError
from common.web import tables, words
from common.web.charts import Chart, Line, moments
from common.web.forms import button, html
from common.web.frame import Piece, Pieces, follow, sheet
from common.web.tables import Column, Heading, badge

LIMIT = 100
RELEASES = Markup(
    """<form class="form" method="get" action="/releases" role="search">
<label class="field"><span>Find in run, kind, status or job</span>
<input class="box" type="search" name="text" value="{}" maxlength="200"></label>
<div><button class="button" type="submit">Find</button></div>
<div><a class="button plain" href="/releases.csv">Download all as CSV</a></div></form>"""
)


def add(desk: Desk) -> None:
    """Add the pages."""

    @ui.page("/")
    async def overview() -> None:
        with desk.page("Overview", "/"):
            await _placed(desk, lambda: {"": _overview(desk.read)})
            with sheet("Health"):
                html(Markup('<p class="soft">What <code>wardround site check</code> looks at; it also asks the '
                            "coordinator.</p>"))  # fmt: skip
                found = ui.element("div").props('aria-live="polite"')
                button("Check now", lambda: _check(desk, found))

    @ui.page("/data")
    async def data(collection: str = "", offset: int = 0) -> None:
        with desk.page("Data", "/data"):
            await _placed(desk, lambda: {"": _data(desk.read, collection, max(0, min(offset, 10**9)))})

    @ui.page("/budget")
    async def budget() -> None:
        with desk.page("Privacy budget", "/budget"):
            await _placed(desk, lambda: _budget(desk.read))

    @ui.page("/releases")
    async def releases(text: str = "", offset: int = 0) -> None:
        with desk.page("Releases", "/releases"):
            await _placed(desk, lambda: {"": _releases(desk.read, text, max(0, min(offset, 10**9)))})

    @ui.page("/policy")
    async def policy() -> None:
        with desk.page("Policy", "/policy"):
            await _placed(desk, lambda: {"": _policy(desk.read)})


async def _placed(desk: Desk, make: Callable[[], Mapping[str, Piece]]) -> None:
    pieces = await Pieces(make).load()
    for name in pieces.names:
        with sheet(name):
            pieces.put(name)
    follow(desk.feed, pieces.refresh)


def _overview(read: SiteReadModel) -> Markup:
    found = read.overview()
    warned = Markup("").join(tables.note(text, "warn") for text in found.warnings)
    if not found.running:
        warned += tables.note(
            Markup(
                "The site's service is not running: no job is answered. Start it: <code>wardround site start</code>"
            ),
            "warn",
        )
    if found.waiting:
        jobs = "1 job waits" if found.waiting == 1 else f"{found.waiting} jobs wait"
        warned += tables.note(Markup("{} for a person: {}").format(jobs, tables.link("decide", "jobs")), "warn")
    return warned + tables.facts(
        [
            ("Service", badge("running") if found.running else badge("stopped")), ("Last started", at(found.started)),
            ("Last message that left", at(found.contact)), ("Coordinator", found.coordinator),
            ("Collections", ", ".join(found.collections)), ("Releases", words.count(found.releases)),
            ("Audit entries", words.count(found.entries)),
        ]
    )  # fmt: skip


async def _check(desk: Desk, place: ui.element) -> None:
    from client.preflight import preflight

    place.clear()
    with place:
        html(Markup('<p class="soft">Looking: this takes some seconds.</p>'))
    found = await asyncio.to_thread(preflight, desk.read.kit)
    rows = [
        (one.what, badge("ok") if one.ok else badge("to mend", "bad"), one.detail, "" if one.ok else one.remedy)
        for one in found
    ]
    heads: list[Heading] = ["What", "State", Column("Found", long=True), Column("What to do", long=True)]
    place.clear()
    with place:
        html(tables.table("Health of this site", heads, rows))


def _data(read: SiteReadModel, collection: str, offset: int) -> Markup:
    views = read.collections()
    if not views:
        empty = Markup("Nothing is indexed yet: <code>wardround site import FOLDER --collection NAME</code>")
        return Markup("<p>{}</p>").format(empty)
    return Markup("").join(_collection(view) for view in views) + _left_out(read, views, collection, offset)


def _collection(view: CollectionView) -> Markup:
    one = view.summary
    labels = list(one.labels)
    heads: list[Heading] = ["Split", Column("Patients", number=True), Column("Images", number=True),
                            *(Column(f"label {label}", number=True) for label in labels)]  # fmt: skip
    rows = [
        (name, words.count(split.patients), words.count(split.images),
         *(words.count(split.labels.get(label, 0)) for label in labels))
        for name, split in one.splits.items()
    ]  # fmt: skip
    quality = Markup('<a href="{}">Quality report of {}</a>, with pictures: for this hospital alone').format(
        tables.path("quality", one.collection), one.collection
    )
    shared = f"Shares patients, and so its budget, with {', '.join(view.sharing)}." if view.sharing else ""
    modalities = ", ".join(f"{name or 'none'} {count:,}" for name, count in one.modalities.items())
    told = tables.facts(
        [("Patients", words.count(one.patients)), ("Images", words.count(one.images)),
         ("Files", words.count(one.files)),
         ("Left out", words.count(one.refused)), ("Modalities", modalities)]
    )  # fmt: skip
    return Markup("<h2>{}</h2>{}<p></p>{}<p class='soft'>{}</p><p>{}</p>").format(
        one.collection, told, tables.table(f"{one.collection} by split", heads, rows), shared, quality
    )


def _left_out(read: SiteReadModel, views: tuple[CollectionView, ...], collection: str, offset: int) -> Markup:
    found = Markup("<h2>Files that were left out</h2>")
    if not any(view.reasons for view in views):
        return found + Markup('<p class="soft">None: every file was indexed.</p>')
    for view in views:
        name = view.summary.collection
        rows = [(reason, words.count(count)) for reason, count in view.reasons.items()]
        heads: list[Heading] = [Column("Reason", long=True), Column("Files", number=True)]
        found += tables.table(f"{name}: why", heads, rows[:LIMIT], empty="None.")
        found += Markup("<p>{}</p>").format(tables.link(f"Show these files of {name}", "data", collection=name))
    wanted = next((view for view in views if view.summary.collection == collection), None)
    if wanted is not None:
        files = read.refused(collection, offset=offset, limit=LIMIT)
        heads = [Column("File", long=True), Column("Reason", long=True)]
        found += tables.table(f"{collection}: files that were left out", heads, files, empty="None.")
        found += tables.pages("/data", offset, LIMIT, wanted.summary.refused, collection=collection)
    return found


def _budget(read: SiteReadModel) -> Mapping[str, Piece]:
    found = read.budgets()
    if not found:
        return {"": Markup('<p class="soft">Nothing has been spent yet.</p>')}
    pieces: dict[str, Piece] = {}
    for one in found:
        room = f"one more run of up to {one.fits:.2f} fits" if one.fits > 0 else "no further run fits"
        head = Markup("<p>{}</p><p>Delta {:g}; {}.{}</p>").format(
            tables.bar(one.spent, one.limit, f"epsilon {one.spent:.2f} of {one.limit:g} for life", budget=True),
            one.delta, room,
            f" With {', '.join(one.sharing)}, which have patients of it." if one.sharing else "",
        )  # fmt: skip
        rows = [
            (run.run, at(run.since), run.unit, run.rounds or None, f"{run.epsilon:.2f}", run.job_digest[:12])
            for run in one.runs
        ]
        heads: list[Heading] = [
            "Run",
            "Since",
            "Unit",
            Column("Rounds", number=True),
            Column("Epsilon", number=True),
            "Job",
        ]
        title = f"{one.collection}, {one.split} split"
        pieces[title] = head + tables.table("What each run has spent", heads, rows)
        points = [(datetime.datetime.fromisoformat(when).timestamp(), epsilon) for when, epsilon in one.history]
        chart = moments(f"Epsilon spent over time: {title}", "epsilon", [Line("spent", points)], limit=one.limit)
        pieces[f"{title}, over time"] = Chart(chart.title, chart.options, chart.data, size="low")
    return pieces


def _releases(read: SiteReadModel, text: str, offset: int) -> Markup:
    every = read.releases()
    words_of = (f"{one.run} {one.kind} {one.status} {one.job_digest}" for one in every)
    wanted = [one for one, said in zip(every, words_of, strict=True) if text.lower() in said.lower()]
    form = RELEASES.format(text)
    heads: list[Heading] = ["When", "Run", Column("Round", number=True), "Kind", "Status", Column("Bytes", number=True),
                            Column("Epsilon so far", number=True), Column("Fields", long=True), "SHA-256"]  # fmt: skip
    rows = [
        (at(one.at), one.run, one.round, one.kind, badge(one.status), words.size(one.bytes),
         None if one.epsilon is None else f"{one.epsilon:.2f}",
         tables.more(f"{len(one.fields)} fields", ", ".join(one.fields)),
         Markup("<code>{}</code>").format(one.sha256[:12]))
        for one in page_of(wanted, offset, LIMIT)
    ]  # fmt: skip
    total = sum(one.bytes for one in every)
    caption = f"{len(every):,} messages left, {words.size(total)} in all; of these {len(wanted):,}, the newest first"
    return (
        form
        + tables.table(caption, heads, rows, empty="Nothing has left yet.")
        + tables.pages("/releases", offset, LIMIT, len(wanted), text=text)
    )


def _policy(read: SiteReadModel) -> Markup:
    try:
        policy = read.policy()
    except WardroundError as error:
        return tables.note(str(error), "bad")
    rows = [
        (_code(name), _code(json.dumps(getattr(policy, name), default=list)), field.description or "")
        for name, field in Policy.model_fields.items()
    ]  # fmt: skip
    since = read.policy_since()
    told = Markup("<p>In force as it is since {}.</p>").format(at(since)) if since else Markup("")
    how = tables.note(Markup(
        "It is changed on the site's machine, which checks it as a whole and puts it into the audit log: "
        "<code>wardround site policy --set KEY=VALUE</code>"))  # fmt: skip
    heads: list[Heading] = ["Key", Column("Value", long=True), Column("Meaning", long=True)]
    return told + how + tables.table("What this hospital allows a job to do", heads, rows)


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)
