"""One run, live: rounds, metrics, time, bytes, privacy, updates, log, job; and stop or resume."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.errors import NotFoundError
from common.once import Once
from common.web import charts, tables, words
from common.web.charts import Chart, Line
from common.web.forms import button, confirmed
from common.web.frame import Piece, follow, sheet
from common.web.tables import Column, Heading, badge
from server.dashboard.pages.desk import PATIENCE, Desk
from server.dashboard.pages.federation import participation
from server.dashboard.pages.models import model_rows
from server.dashboard.pages.results import results
from server.readmodel import ReadModel
from server.records import RESUMABLE, LogLine
from server.report import undecided
from server.roles import Person
from server.views import Interval, RoundLine, RunView, SiteSpend, Turn

DRAWN_SITES = 12
"""Sites that a chart has a line for; with more, a band from the lowest to the highest stands for all."""
MAPPED = 100
"""Newest rounds on the map, if not all are asked for."""
LISTED = 50
LOG_LINES = 300


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/runs/{name}")
    async def run(request: Request, name: str, rounds: str = "", offset: int = 0, diff: str = "") -> None:
        with desk.page(request, f"Run {name[:120]}", "/runs") as person:
            whole, first, other = rounds == "all", max(0, min(offset, 10**9)), diff[:120]
            status = (await asyncio.to_thread(desk.read.line, name)).status
            pieces = await desk.pieces(
                ("run", name, whole, first, other),
                lambda: pieces_of(desk.read, name, desk.made, whole=whole, offset=first, diff=other),
            ).load(PATIENCE)
            _buttons(desk, person, name, status)
            for part in ("state", "going"):
                pieces.put(part)
            with ui.element("div").classes("two"):
                for title, part in (
                    ("How good the model is", "metric"), ("Training loss", "loss"), ("Time by phase", "phases"),
                    ("Bytes", "bytes"), ("Privacy spent", "epsilon"), ("Size of updates", "norms"),
                ):  # fmt: skip
                    with sheet(title):
                        pieces.put(part)
            for title, part in (
                ("Rounds by sites", "map"), ("Rounds", "rounds"), ("By site", "sites"), ("Every metric", "metrics"),
                ("Models", "models"),
                ("Log", "log"), ("Job", "job"),
            ):  # fmt: skip
                with sheet(title):
                    pieces.put(part)
            follow(desk.feed, pieces.refresh)


def pieces_of(read: ReadModel, name: str, made: Once, *, whole: bool, offset: int, diff: str) -> Mapping[str, Piece]:
    """Return the page's pieces; those that show all rounds are made anew only when there is another round."""
    view = read.run(name)
    drawn = made.get(("drawn", name, whole), view.rounds, lambda: _drawn(view, whole))
    return {
        "state": _state(view),
        "going": _going(view),
        **drawn,
        "rounds": _rounds(view, offset),
        "models": model_rows(view.models, "A run has models once it has ended."),
        "log": _log(read.log(name, limit=LOG_LINES)),
        "job": _job(read, view, diff),
    }


def _drawn(view: RunView, whole: bool) -> Mapping[str, Piece]:
    trained = [one for one in view.rounds if one.kind == "train"]
    return {
        "metric": _metric(view),
        "loss": _loss(trained),
        "phases": _phases(trained),
        "bytes": _bytes(trained),
        "epsilon": _epsilon(view, trained),
        "norms": _norms(trained),
        "map": _map(view, trained, whole),
        "sites": _sites(view),
        "metrics": _metrics(view),
    }


def _buttons(desk: Desk, person: Person, name: str, status: str) -> None:
    if not person.may("run"):
        return

    async def stop() -> None:
        text = "What it has committed stays, and it can be resumed. The round under way is lost."
        if await confirmed("Stop this run?", text, "Stop it", kind="bad"):
            await desk.act(person, lambda who: desk.actions.stop(who, name), "The run is asked to stop.")

    async def resume() -> None:
        text = "It goes on after its last committed round, with the same job, as soon as the coordinator is free."
        if await confirmed("Resume this run?", text, "Resume it"):
            await desk.act(person, lambda who: desk.actions.resume(who, name), "The run is queued again.")

    with ui.element("div").classes("row-of"):
        stopper, resumer = ui.element("span"), ui.element("span")
        with stopper:
            button("Stop the run", stop, kind="bad")
        with resumer:
            button("Resume the run", resume)
        ui.html(tables.link("Use its job for a new one", "new", job=name), sanitize=False)
        ui.html(tables.link("Compare with another run", "compare", runs=name), sanitize=False)

    async def fit() -> None:
        now = (await asyncio.to_thread(desk.read.line, name)).status
        stopper.set_visibility(now in ("queued", "running"))
        resumer.set_visibility(now in RESUMABLE)

    stopper.set_visibility(status in ("queued", "running"))
    resumer.set_visibility(status in RESUMABLE)
    follow(desk.feed, fit)


def _state(view: RunView) -> Markup:
    line, privacy = view.line, view.job.privacy
    private = (
        "none" if privacy.mechanism == "none" else f"{privacy.mechanism}, epsilon {privacy.epsilon:g} a {privacy.unit}"
    )
    took = (line.finished or 0) - line.started if line.started and line.finished else None
    found = tables.facts(
        [
            ("Status", badge(line.status)), ("Rounds", f"{line.done} of {line.rounds}"), ("Sites", line.sites),
            ("Strategy", line.strategy), ("Network", view.job.network.name), ("Privacy", private),
            ("Collection", view.job.data.collection), ("Asked for", words.when(line.created)),
            ("Started", words.when(line.started)), ("Took", words.seconds(took)),
            ("Sent to sites", words.size(view.sent)), ("Received", words.size(view.received)),
        ]
    )  # fmt: skip
    reason = tables.note(line.reason, "bad" if line.status == "failed" else "warn") if line.reason else Markup("")
    warned = Markup("")
    if view.warnings:
        items = Markup("").join(Markup("<li>{}</li>").format(text) for text in view.warnings[-100:])
        warned = tables.more(f"{len(view.warnings)} warnings", Markup("<ul>{}</ul>").format(items))
    return Markup('{}<div class="sheet">{}{}</div>').format(reason, found, warned)


def _going(view: RunView) -> Markup:
    progress = view.line.progress
    if not progress:
        return Markup("")
    done = Markup(" ").join(Markup("{} {}").format(site, badge(word)) for site, word in progress["done"].items())
    people = [f"a person at {site}, or its hours" for site in undecided(progress)]
    waiting = ", ".join([*progress["waiting"], *people]) or "nobody"
    return Markup(
        '<div class="sheet" aria-live="polite"><h2>Under way: {}</h2><p>Since {}. Awaited: {}.</p><p>{}</p></div>'
    ).format(_exchange(progress["kind"], progress["number"]), words.when(progress["since"]), waiting, done)


def _exchange(kind: str, number: int) -> str:
    if kind == "consent":
        return "the sites are asked whether the job may run there"
    return f"round {number}" if kind == "train" else f"{kind} of the model after round {number}"


def _metric(view: RunView) -> Piece:
    name = view.job.aggregation.criterion
    judged = [one for one in view.rounds if one.kind in ("train", "validation") and name in one.metrics]
    if not judged:
        return _nothing("No metric yet. A site sends metrics only as its policy allows.")
    everybody = Line(
        "all sites",
        [(one.model_round, one.metrics[name].value) for one in judged],
        [one.metrics[name].low for one in judged],
        [one.metrics[name].high for one in judged],
    )
    values = [
        (one.model_round, {t.site: t.metrics[name].value for t in one.turns if name in t.metrics}) for one in judged
    ]
    title = f"Validation {name} of the model after each round, with its 95 % interval"
    return charts.lines(title, "model after round", name, [everybody, *_by_site(values)])


def _loss(trained: Sequence[RoundLine]) -> Piece:
    losses = [(one.number, {t.site: t.loss for t in one.turns if t.loss is not None}) for one in trained]
    if not any(found for _, found in losses):
        return _nothing("No loss leaves the sites: with differential privacy it would tell of single patients.")
    everybody = Line("all sites", [(one.number, one.loss) for one in trained])
    return charts.lines("Mean training loss", "round", "loss", [everybody, *_by_site(losses)])


def _by_site(values: Sequence[tuple[int, Mapping[str, float]]]) -> list[Line]:
    """A line for each site; for many sites, the median one with a band around all of them."""
    names = list(dict.fromkeys(site for _, found in values for site in found))
    if len(names) <= DRAWN_SITES:
        return [Line(site, [(at, found.get(site)) for at, found in values]) for site in names]
    ordered = [(at, sorted(found.values())) for at, found in values]
    return [
        Line(
            f"{len(names)} sites: median, lowest to highest",
            [(at, found[len(found) // 2] if found else None) for at, found in ordered],
            [found[0] if found else None for _, found in ordered],
            [found[-1] if found else None for _, found in ordered],
        )
    ]


def _phases(trained: Sequence[RoundLine]) -> Piece:
    if not trained:
        return _nothing("No round yet.")
    parts: dict[str, list[float | None]] = {
        "wait": [one.phases.wait for one in trained],
        "slowest site": [one.phases.train for one in trained],
        "transfer": [one.phases.transfer for one in trained],
        "aggregate": [one.phases.aggregate for one in trained],
    }
    return charts.bars("Where each round's time went", "round", "seconds", [_name(one) for one in trained], parts)


def _bytes(trained: Sequence[RoundLine]) -> Piece:
    if not trained:
        return _nothing("No round yet.")
    parts: dict[str, list[float | None]] = {
        "sent": [one.sent / 1e6 for one in trained],
        "received": [one.received / 1e6 for one in trained],
    }
    return charts.bars("Tensors sent and received", "round", "MB", [_name(one) for one in trained], parts)


def _epsilon(view: RunView, trained: Sequence[RoundLine]) -> Piece:
    if view.job.privacy.mechanism == "none":
        return _nothing("The job has no differential privacy: what leaves the sites may tell of single patients.")
    if view.job.private:
        spent = [(one.number, {t.site: t.epsilon for t in one.turns if t.epsilon is not None}) for one in trained]
        drawn = _by_site(spent)
    else:
        drawn = [Line("every site", [(one.number, one.epsilon) for one in trained])]
    if not any(value is not None for line in drawn for _, value in line.points):
        return _nothing("Nothing has been spent yet.")
    title = f"Epsilon by site, of at most {view.job.privacy.epsilon:g} at delta {view.job.privacy.delta:g}"
    return charts.lines(title, "round", "epsilon", drawn, limit=view.job.privacy.epsilon)


def _norms(trained: Sequence[RoundLine]) -> Piece:
    norms = [(one.number, {t.site: t.norm for t in one.turns if t.norm is not None}) for one in trained]
    if not any(found for _, found in norms):
        return _nothing("No update yet.")
    chart = charts.lines("L2 norm of each site's update", "round", "norm", _by_site(norms))
    flagged = [(one.number, turn.site, turn.flagged) for one in trained for turn in one.turns if turn.flagged]
    table = tables.table("Flagged updates", ["Round", "Site", Column("Why", long=True)], flagged[-100:],
                         empty="No update is far from the others of its round.")  # fmt: skip
    return Chart(chart.title, chart.options, table + chart.data, size=chart.size)


def _map(view: RunView, trained: Sequence[RoundLine], whole: bool) -> Piece:
    shown = trained if whole else trained[-MAPPED:]
    return participation(shown, view.job.sites, short=True)


def _rounds(view: RunView, offset: int) -> Markup:
    newest = list(reversed(view.rounds))
    shown = newest[offset : offset + LISTED]
    name = view.job.aggregation.criterion
    listed = tables.table(
        f"{len(newest)} exchanges with the sites, the newest first",
        ["Exchange", "Status", Column(f"{name} of all sites"), Column("Sites", number=True),
         Column("Share of cases", number=True), Column("Took", number=True), "Began",
         Column("What happened", long=True)],
        [_round(one, name) for one in shown], empty="Nothing has been asked of the sites yet.",
    )  # fmt: skip
    wide = Markup("")
    if sum(one.kind == "train" for one in newest) > MAPPED:
        wide = Markup('<p class="soft">The map shows the newest {} rounds: {}.</p>').format(
            MAPPED, tables.link("all rounds", "runs", view.line.name, rounds="all")
        )
    return wide + listed + tables.pages(f"/runs/{view.line.name}", offset, LISTED, len(newest))


def _round(one: RoundLine, name: str) -> Sequence[object]:
    found = one.metrics.get(name)
    good = sum(turn.status in ("aggregated", "trained", "evaluated", "agreed") for turn in one.turns)
    said = [one.reason, *one.warnings]
    return (
        one.title, badge(one.status), _interval(found),
        f"{good} of {len(one.turns)}", words.share(one.share), words.seconds(one.seconds), words.when(one.started),
        "; ".join(text for text in said if text),
    )  # fmt: skip


def _sites(view: RunView) -> Markup:
    newest: dict[str, Turn] = {}
    for one in view.rounds:
        newest |= {turn.site: turn for turn in one.turns}
    judged = {turn.site: turn for one in view.rounds for turn in one.turns if turn.metrics}
    spends = {spend.site: spend for spend in view.spends}
    name = view.job.aggregation.criterion
    rows = []
    for site in view.job.sites:
        turn, spend = newest.get(site), spends.get(site)
        found = judged[site].metrics.get(name) if site in judged else None
        rows.append(
            (
                site,
                badge(turn.status) if turn else None,
                words.count(turn.examples) if turn and turn.examples else None,
                _interval(found),
                _of_budget(spend) if spend else None,
                turn.reason if turn else None,
            )
        )
    heads: list[Heading] = [
        "Site",
        "Last answer",
        Column("Training cases", number=True),
        f"Newest {name}",
        "Epsilon of the job's",
        Column("Why", long=True),
    ]
    return tables.table("What each site last did and told", heads, rows)


def _metrics(view: RunView) -> Markup:
    """Every metric of all sites and of each, of the newest model that was judged on each split."""
    newest = {one.kind if one.kind == "test" else "validation": one for one in view.rounds if one.metrics}
    found = Markup("")
    for split, one in newest.items():
        told = {"": one.metrics} | {turn.site: turn.metrics for turn in one.turns if turn.metrics}
        found += results(split, f"The model after round {one.model_round}", told, view.job.task.labels)
    return found or _nothing("No metric yet. A site sends metrics only as its policy allows.")


def _interval(found: Interval | None) -> str | None:
    return words.interval(found.value, found.low, found.high) if found else None


def _of_budget(spend: SiteSpend) -> Markup:
    return tables.bar(spend.epsilon, spend.budget, f"{spend.epsilon:.2f} of {spend.budget:g}", budget=True)


def _log(lines: Sequence[LogLine]) -> Markup:
    if not lines:
        return _nothing("The coordinator has said nothing of this run yet.")
    rows = [(words.when(line.at), badge(line.level), line.text) for line in reversed(lines)]
    heads: list[Heading] = ["When", "Level", Column("What", long=True)]
    return tables.table(
        f"The newest {len(rows)} lines of the coordinator's log, the newest first", heads, rows, tall=True
    )


def _job(read: ReadModel, view: RunView, diff: str) -> Markup:
    form = Markup(
        '<form class="form" method="get" action="{}#job">'
        '<label class="field"><span>Differences to the job of run</span>'
        '<input class="box" name="diff" value="{}" list="known-runs"></label><datalist id="known-runs">{}</datalist>'
        '<div><button class="button plain" type="submit">Show differences</button></div></form>'
    ).format(tables.path("runs", view.line.name), diff, _known(read, view.line.name))
    found = Markup("")
    if diff:
        heads: list[Heading] = ["Key", Column("Here", long=True), Column(f"In {diff}", long=True)]
        try:
            differing = read.diff(view.line.name, diff)
            found = tables.table("Keys that differ", heads, differing, empty="The two jobs are the same.")
        except NotFoundError as error:
            found = tables.note(str(error), "bad")
    digest = Markup('<p class="soft">Digest <code>{}</code></p>').format(view.job.digest)
    return Markup('<div id="job">{}{}{}{}</div>').format(tables.code(view.toml), digest, form, found)


def _known(read: ReadModel, name: str) -> Markup:
    names = [line.name for line in read.runs(limit=50).items if line.name != name]
    return Markup("").join(Markup('<option value="{}">').format(other) for other in names)


def _name(one: RoundLine) -> str:
    return f"{one.number}" + (f" ({one.attempt})" if one.attempt > 1 else "")


def _nothing(text: str) -> Markup:
    return Markup('<p class="soft">{}</p>').format(text)
