"""Jobs that a person is asked about: in plain words, with their cost; approved or denied here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from client.approvals import Verdict, decide
from client.dashboard.desk import Desk, at
from client.dashboard.readmodel import JobView
from client.record import site_log
from common.errors import WardroundError
from common.job import Job
from common.job_file import job_toml
from common.web import tables
from common.web.forms import Field, button, confirmed, html, tell
from common.web.frame import Pieces, follow, sheet
from common.web.tables import Column, Heading, badge

LONGEST_NAME = 100
EFFECTS = {
    "approved": "The site takes part when the coordinator asks again, within five minutes. It may be taken back.",
    "denied": "The coordinator is told, with the reason. A run under way goes on without this site.",
}


def add(desk: Desk) -> None:
    """Add the pages."""

    @ui.page("/jobs")
    async def jobs() -> None:
        with desk.page("Jobs", "/jobs"):
            pieces = await Pieces(lambda: {"jobs": _listed(desk.read.jobs())}).load()
            with sheet():
                pieces.put("jobs")
            follow(desk.feed, pieces.refresh)

    @ui.page("/jobs/{digest}")
    async def job(request: Request, digest: str) -> None:
        found = desk.read.job(digest)
        with desk.page(f"Job {found.asked.job.name}" if found else "Job", "/jobs"):
            if found is None:
                html(tables.note(Markup("There is no such job: {}").format(tables.link("see the list", "jobs")), "bad"))
                return
            pieces = await Pieces(lambda: _pieces(desk.read.job(digest) or found)).load()
            with sheet("What it would do, and cost"):
                pieces.put("words")
            with sheet("Decide"):
                pieces.put("state")
                _decide(desk, found.asked.job)
            with sheet("The exact job"):
                html(tables.code(job_toml(found.asked.job)))
                html(
                    Markup(
                        '<p class="soft">Digest <code>{}</code>: an approval is for this job, to the letter.</p>'
                    ).format(digest)
                )
            follow(desk.feed, pieces.refresh)


def _listed(jobs: tuple[JobView, ...]) -> Markup:
    heads: list[Heading] = [
        "Job",
        "State",
        "Asked",
        "Decided",
        Column("What it would do", long=True),
        Column("Cost", long=True),
    ]
    rows = []
    for one in jobs:
        asked, decision = one.asked, one.asked.decision
        by = Markup("by {}, {}").format(decision.by, at(decision.at)) if decision else None
        name = tables.link(asked.job.name, "jobs", asked.job.digest)
        rows.append((name, badge(asked.state), at(asked.asked), by, _lines(one.words[:2]), one.cost))
    empty = 'No job has waited for a person yet: a policy with approval = "each-job" makes them wait.'
    return tables.table("Jobs that a person is asked about", heads, rows, empty=empty)


def _lines(lines: Sequence[str]) -> Markup:
    return Markup("").join(Markup("<p>{}</p>").format(line) for line in lines)


def _pieces(one: JobView) -> dict[str, Markup]:
    lines = _lines((*one.words, one.cost))
    if one.refusal:
        lines += tables.note(f"The policy refuses it as it is, whoever approves: {one.refusal}", "warn")
    decision = one.asked.decision
    state = Markup("<p>Asked {}. It is {}.</p>").format(at(one.asked.asked), badge(one.asked.state))
    if decision:
        why = f": {decision.note}" if decision.note else ""
        state += Markup("<p>{} by {}, {}{}</p>").format(
            decision.verdict.capitalize(), decision.by, at(decision.at), why
        )
    return {"words": lines, "state": state}


def _decide(desk: Desk, job: Job) -> None:
    with ui.element("div").classes("form"):
        by = Field("Your name (it stands in the audit log)", autocomplete="name", maxlength=str(LONGEST_NAME))
        note = Field("Why (for a denial the coordinator is told it)", autocomplete="off", maxlength="500")

        async def say(verdict: Verdict) -> None:
            who = " ".join(by.value.split())
            if not who or len(who) > LONGEST_NAME:
                tell("write your name first: the audit log says who decided", bad=True)
                return
            word = "Approve" if verdict == "approved" else "Deny"
            if not await confirmed(
                f"{word} {job.name}?", EFFECTS[verdict], word, kind="" if verdict == "approved" else "bad"
            ):
                return
            try:
                log = site_log(desk.read.kit.folder)
                await asyncio.to_thread(decide, log, job, verdict, by=who, note=note.value.strip()[:500])
            except WardroundError as error:
                tell(str(error), bad=True)
                return
            tell(f"{job.name} is {verdict}.")
            await desk.feed.look()

        with ui.element("div").classes("row-of").style("grid-column: 1 / -1"):
            button("Approve", lambda: say("approved"))
            button("Deny", lambda: say("denied"), kind="bad")
