"""A new job: a form and the TOML that it writes, checked as one types; its privacy plan; then it is started."""

from __future__ import annotations

import asyncio
from collections import Counter

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.errors import WardroundError
from common.job import Job
from common.plan import PrivacyPlan
from common.web import tables
from common.web.charts import Line, lines
from common.web.forms import Field, Ticks, confirmed, html
from common.web.frame import Drawing, Text, sheet
from common.web.tables import Column, Heading
from server.dashboard.pages.desk import Desk
from server.dashboard.pages.job_form import GROUPS, KEYS, Key, changed, first_text, items, names_in, values_of
from server.roles import Person

PAUSE_SECONDS = 0.2
"""How long nothing must have changed before the text is checked."""
DRAWN_SITES = 10


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/new")
    async def new(request: Request, job: str = "") -> None:
        with desk.page(request, "New job", "/new") as person:
            sites = desk.read.federation().sites
            collections = Counter(name for site in sites for name in site.counts).most_common(1)
            names = [site.name for site in sites]
            text = desk.read.run(job).toml if job else first_text(names, collections[0][0] if collections else "")
            html(_beginning(desk, job))
            Editor(desk, person, text, names).build()


class Editor:
    """The page's state: the text is the job; whatever is typed in the form is written into it."""

    def __init__(self, desk: Desk, person: Person, text: str, sites: list[str]) -> None:
        self._desk, self._person, self._first, self._sites = desk, person, text, sites
        self._fields: dict[tuple[str, ...], Field | Ticks] = {}
        self._turn = 0
        self._planned = ""

    def build(self) -> None:
        """Build the page."""
        known = values_of(self._first)
        with ui.element("div").classes("two"):
            with sheet("The usual keys"):
                for title, keys in GROUPS.items():
                    with ui.element("div").props(f'role="group" aria-label="{title}"'):
                        html(Markup("<h3>{}</h3>").format(title))
                        with ui.element("div").classes("form"):
                            self._fields |= {key.path: self._field(key, known[key.path]) for key in keys}
            with sheet("The job file"):
                self._text = Field(
                    "The same as TOML", self._first, kind="area", on_change=self._typed,
                    hint="every key may be written here; wardround job keys lists them",
                    spellcheck="false", rows="28", maxlength="200000",
                )  # fmt: skip
                with ui.element("div").props('role="status"').style("margin-top: 12px"):
                    self._verdict = Text(Markup(""))
        with sheet("Privacy plan"):
            self._build_plan()
        ui.timer(0.05, self._begin, once=True)

    async def _begin(self) -> None:
        """What needs torch comes when the page is there."""
        await self._check()
        for key in KEYS:
            field = self._fields[key.path]
            if key.table and isinstance(field, Field):
                field.suggest(await asyncio.to_thread(names_in, key.table))

    def _build_plan(self) -> None:
        html('<p class="soft">What the job would cost. Nothing is asked of a site and nothing is spent.</p>')
        if not self._person.may("run"):
            need = 'To see plans and to start runs you need the role "coordinator": ask an admin.'
            html(tables.note(f"{need} You may write and check a job here, and copy it."))
            return
        with ui.element("div").classes("row-of"):
            self._planner = _button("Show the privacy plan", self._plan, plain=True)
            self._starter = _button("Start the run", self._start)
            self._why = ui.html("", sanitize=False, tag="span").classes("soft")
        self._plan_box = ui.element("div").props('aria-live="polite"')
        self._allow(start=False)

    def _field(self, key: Key, value: str) -> Field | Ticks:
        def told() -> object:
            return self._formed(key)

        if key.kind == "ticks":
            return Ticks(key.label, self._sites, items(value), on_change=told)
        return Field(key.label, value, options=key.options, on_change=told, autocomplete="off", title=key.meaning)

    async def _formed(self, key: Key) -> None:
        field = self._fields[key.path]
        try:
            value = field.value if isinstance(field, Field) else self._with_strangers(key, field.value)
            self._text.show(changed(self._text.value, key, value))
        except ValueError as error:
            self._say(tables.note(f"the job file can't be read: {error}: mend it there first", "bad"))
            return
        await self._soon()

    def _with_strangers(self, key: Key, ticked: list[str]) -> str:
        """The ticked sites, and those that only the text names: the check says that they are not admitted."""
        named = items(values_of(self._text.value)[key.path])
        return ", ".join([*ticked, *(name for name in named if name not in self._sites)])

    async def _typed(self) -> None:
        try:
            for path, value in values_of(self._text.value).items():
                field = self._fields[path]
                field.show(value) if isinstance(field, Field) else field.show(items(value))
        except ValueError:
            pass  # half-written: the check says where
        await self._soon()

    async def _soon(self) -> None:
        """Check the text once nobody has typed for a moment. What was planned was another job."""
        self._turn += 1
        turn, self._planned = self._turn, ""
        self._allow(start=False)
        await asyncio.sleep(PAUSE_SECONDS)
        if turn == self._turn:
            await self._check()

    async def _check(self) -> None:
        turn, text = self._turn, self._text.value
        try:
            said = _right(await asyncio.to_thread(self._desk.actions.check, text))
        except WardroundError as error:
            said = _faults(str(error))
        if turn == self._turn:
            self._say(said)

    async def _plan(self) -> None:
        text, turn = self._text.value, self._turn
        _disable(self._planner, True)
        with self._refilled():
            html('<p class="soft">Working it out: this builds the network, and takes some seconds.</p>')
        plan = await self._desk.act(self._person, lambda who: self._desk.actions.plan(who, text))
        _disable(self._planner, False)
        with self._refilled():
            if plan is None:
                html(tables.note("There is no plan: see beside the job file what is wrong.", "bad"))
            elif turn != self._turn:
                html(tables.note("The job was changed meanwhile: ask for its plan again.", "warn"))
            else:
                _show_plan(plan)
                self._planned = text
                self._allow(start=True)

    async def _start(self) -> None:
        text = self._planned
        if not text or text != self._text.value:
            return
        said = "Its sites are asked at once, as soon as the coordinator is free."
        if not self._desk.read.federation().coordinator_running:
            said = "It waits until the coordinator runs, which it does not now; then its sites are asked."
        if not await confirmed("Start the run?", said, "Start it"):
            return
        name = await self._desk.act(self._person, lambda who: self._desk.actions.start(who, text))
        if name is not None:
            ui.navigate.to(tables.path("runs", name))

    def _refilled(self) -> ui.element:
        self._plan_box.clear()
        return self._plan_box

    def _allow(self, *, start: bool) -> None:
        if self._person.may("run"):
            _disable(self._starter, not start)
            self._why.set_content("" if start else "To start the run, look at its privacy plan first.")

    def _say(self, text: Markup) -> None:
        self._verdict.show(text)


def _beginning(desk: Desk, job: str) -> Markup:
    known = Markup("").join(Markup('<option value="{}">').format(run.name) for run in desk.read.runs(limit=50).items)
    if not known:
        return Markup("")
    return Markup(
        '<form class="form sheet" method="get" action="/new"><label class="field">'
        '<span>Begin with the job of a run</span><input class="box" name="job" value="{}" list="known-runs" '
        'maxlength="200"></label><datalist id="known-runs">{}</datalist>'
        '<div><button class="button plain" type="submit">Take its job</button></div></form>'
    ).format(job, known)


def _right(job: Job) -> Markup:
    rounds, sites = job.aggregation.rounds, len(job.sites)
    said = Markup("The job is right: {} rounds at {} sites. Digest <code>{}</code>").format(
        rounds, sites, job.digest[:16]
    )
    return tables.note(said, "good")


def _faults(text: str) -> Markup:
    lines = [line.removeprefix("job:") for line in text.splitlines()]
    found = Markup("").join(
        Markup("<li>{}</li>").format(f"line {line}" if line[:1].isdigit() else line) for line in lines
    )
    return Markup('<div class="note warn"><p>Not right yet:</p><ul>{}</ul></div>').format(found)


def _show_plan(plan: PrivacyPlan) -> None:
    unit = plan.job.privacy.unit
    html(Markup("<p>{:,} parameters, {} rounds. <strong>{}</strong>{}</p>").format(
        plan.parameters, plan.job.aggregation.rounds, plan.verdict,
        f" (noise share {plan.noise_share:.2f})" if plan.noise_share else "",
    ))  # fmt: skip
    for warning in plan.warnings:
        html(tables.note(warning, "warn"))
    if not plan.sites:
        return
    numbers = (f"{unit}s".capitalize(), "Rate", "Steps", "Noise", "Epsilon")
    heads: list[Heading] = ["Site", *(Column(name, number=True) for name in numbers), Column("Would refuse", long=True)]
    rows = [
        (
            site.site,
            f"{site.units:,}{' (guessed)' if site.guessed else ''}",
            f"{site.sample_rate:.3g}",
            f"{site.steps:,}",
            f"{site.noise_multiplier:.2f}",
            f"{site.epsilon:.2f}",
            site.refusal,
        )
        for site in plan.sites
    ]
    html(tables.table(f"The whole run, at delta {plan.job.privacy.delta:g}", heads, rows, tall=len(rows) > DRAWN_SITES))
    drawn = [Line(site.site, site.curve) for site in plan.sites if site.curve]
    if drawn:
        title = "Epsilon over the rounds" + (f" at the first {DRAWN_SITES} sites" if len(drawn) > DRAWN_SITES else "")
        Drawing(lines(title, "round", "epsilon", drawn[:DRAWN_SITES], limit=plan.job.privacy.epsilon))


def _disable(button: ui.html, disabled: bool) -> None:
    button.props["disabled"] = disabled
    button.update()


def _button(text: str, on_click: object, *, plain: bool = False) -> ui.html:
    made = ui.html(Markup("{}").format(text), sanitize=False, tag="button").classes(
        "button plain" if plain else "button"
    )
    made.props["type"] = "button"
    made.on("click", on_click)  # type: ignore[arg-type]
    return made
