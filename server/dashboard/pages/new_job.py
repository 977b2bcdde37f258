"""A new job: a form and the TOML that it writes, checked as one types; its privacy plan; then it is started."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.errors import WardroundError
from common.plan import PrivacyPlan
from common.web import tables
from common.web.charts import Line, lines
from common.web.forms import Field, confirmed, html
from common.web.frame import Drawing, sheet
from common.web.tables import Column, Heading
from server.dashboard.pages.desk import Desk
from server.dashboard.pages.job_form import EMPTY, KEYS, Key, changed, values_of
from server.roles import Person

PAUSE_SECONDS = 0.4
"""How long nobody must have typed before the text is checked."""


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/new")
    async def new(request: Request, job: str = "") -> None:
        with desk.page(request, "New job", "/new") as person:
            text = desk.read.run(job).toml if job else EMPTY
            if not person.may("run"):
                html(
                    tables.note(
                        'You may look and check here; to start a run you need the role "coordinator": ask an admin.'
                    )
                )
            Editor(desk, person, text).build()


class Editor:
    """The page's state: the text is the job; whatever is typed in the form is written into it."""

    def __init__(self, desk: Desk, person: Person, text: str) -> None:
        self._desk, self._person, self._first = desk, person, text
        self._turn = 0
        self._planned = ""

    def build(self) -> None:
        """Build the page."""
        known = values_of(self._first)
        sites = ", ".join(site.name for site in self._desk.read.federation().sites)
        with ui.element("div").classes("two"):
            with sheet("The usual keys"):
                html(Markup('<p class="soft">Admitted sites: {}</p>').format(sites or "none yet"))
                with ui.element("div").classes("form"):
                    self._fields = {key.path: self._field(key, known[key.path]) for key in KEYS}
            with sheet("The job file"):
                self._text = Field(
                    "The same as TOML: every key may be written here (wardround job keys lists them)", self._first, kind="area",
                    on_change=self._typed, spellcheck="false", rows="26", maxlength="200000",
                )  # fmt: skip
                with ui.element("div").props('role="status" aria-live="polite"').style("margin-top: 12px"):
                    self._verdict = ui.html("", sanitize=False)
        with sheet("Privacy plan"):
            html(Markup('<p class="soft">What the job would cost, before anything is sent: nothing is asked of a site, nothing '
                        "is spent.</p>"))  # fmt: skip
            with ui.element("div").classes("row-of"):
                self._planner = _button("Show the privacy plan", self._plan, plain=True)
                self._starter = _button("Start the run", self._start)
            self._plan_box = ui.element("div").props('aria-live="polite"')
        self._allow(start=False)
        ui.timer(0.05, self._check, once=True)

    def _field(self, key: Key, value: str) -> Field:
        return Field(key.label, value, options=key.options, on_change=lambda: self._formed(key), autocomplete="off")

    async def _formed(self, key: Key) -> None:
        try:
            self._text.show(changed(self._text.value, key, self._fields[key.path].value))
        except ValueError as error:
            self._say(tables.note(f"the job file can't be read: {error}: mend it there first", "bad"))
            return
        await self._soon()

    async def _typed(self) -> None:
        try:
            for path, value in values_of(self._text.value).items():
                self._fields[path].show(value)
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
            job = await asyncio.to_thread(self._desk.actions.check, text)
            said = tables.note(Markup("The job is right. Digest <code>{}</code>.").format(job.digest[:16]), "good")
        except WardroundError as error:
            said = tables.note(str(error), "bad")
        if turn == self._turn:
            self._say(said)

    async def _plan(self) -> None:
        text, turn = self._text.value, self._turn
        self._planner.props["disabled"] = True
        self._planner.update()
        with self._refilled():
            html('<p class="soft">Working it out: this builds the network, and takes some seconds.</p>')
        plan = await self._desk.act(self._person, lambda who: self._desk.actions.plan(who, text))
        self._planner.props["disabled"] = not self._person.may("run")
        self._planner.update()
        with self._refilled():
            if plan is None:
                html(tables.note("There is no plan: see what is wrong above.", "bad"))
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
        if not await confirmed(
            "Start the run?", "Its sites are asked at once, as soon as the coordinator is free.", "Start it"
        ):
            return
        name = await self._desk.act(self._person, lambda who: self._desk.actions.start(who, text))
        if name is not None:
            ui.navigate.to(tables.path("runs", name))

    def _refilled(self) -> ui.element:
        self._plan_box.clear()
        return self._plan_box

    def _allow(self, *, start: bool) -> None:
        for element, on in (
            (self._starter, start and self._person.may("run")),
            (self._planner, self._person.may("run")),
        ):
            element.props["disabled"] = not on
            element.update()
        self._starter.props["title"] = "" if start else "look at the privacy plan first"

    def _say(self, text: Markup) -> None:
        self._verdict.set_content(str(text))


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
    heads: list[Heading] = ["Site", Column(f"{unit}s", number=True), Column("Rate", number=True), Column("Steps", number=True),
             Column("Noise", number=True), Column("Epsilon", number=True), Column("Would refuse", long=True)]  # fmt: skip
    rows: list[Sequence[object]] = [
        (site.site, f"{site.units:,}{' (guessed)' if site.guessed else ''}", f"{site.sample_rate:.3g}", f"{site.steps:,}",
         f"{site.noise_multiplier:.2f}", f"{site.epsilon:.2f}", site.refusal)
        for site in plan.sites
    ]  # fmt: skip
    html(tables.table(f"The whole run, at delta {plan.job.privacy.delta:g}", heads, rows))
    drawn = [Line(site.site, site.curve) for site in plan.sites if site.curve]
    if drawn:
        Drawing(lines("Epsilon over the rounds", "round", "epsilon", drawn[:10], limit=plan.job.privacy.epsilon))


def _button(text: str, on_click: object, *, plain: bool = False) -> ui.html:
    made = ui.html(Markup("{}").format(text), sanitize=False, tag="button").classes(
        "button plain" if plain else "button"
    )
    made.props["type"] = "button"
    made.on("click", on_click)  # type: ignore[arg-type]
    return made
