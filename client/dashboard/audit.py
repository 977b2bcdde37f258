"""The audit log: its entries, whether it is as it was written, and the report for a data protection officer."""

from __future__ import annotations

import asyncio

from markupsafe import Markup
from nicegui import ui

from client.dashboard.desk import Desk, at
from client.dashboard.readmodel import page_of
from client.verification import verify_site
from common.audit import Head
from common.errors import WardroundError
from common.web import tables
from common.web.forms import Field, button, html
from common.web.frame import Pieces, follow, sheet
from common.web.tables import Column, Heading

LIMIT = 100
WITNESS = Markup(
    """<p class="soft">Every entry's hash and signature, and that the privacy ledger agrees. Only a witness, a head that
the coordinator kept, shows that nothing was cut off its end: <code>wardround sites --witness {}</code>, at the
coordinator, prints it.</p>"""
)


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/audit")
    async def audit(offset: int = 0) -> None:
        first = max(0, min(offset, 10**9))
        with desk.page("Audit log", "/audit"):
            with sheet("Is it as it was written?"):
                html(WITNESS.format(desk.read.kit.name))
                witness = Field("Witness (optional): paste it here", autocomplete="off", maxlength="4000")
                found = ui.element("div").props('aria-live="polite"').style("margin: 12px 0")
                with ui.element("div").classes("row-of"):
                    button("Verify now", lambda: _verify(desk, witness.value, found))
                    html(
                        Markup('<a class="button plain" href="/report.html">Report for the data protection officer</a>')
                    )
            pieces = await Pieces(lambda: {"entries": _entries(desk, first)}).load()
            with sheet("Entries"):
                pieces.put("entries")
            follow(desk.feed, pieces.refresh)


async def _verify(desk: Desk, witness: str, place: ui.element) -> None:
    place.clear()
    with place:
        html(Markup('<p class="soft">Verifying.</p>'))
    try:
        heads = [Head.from_json(line) for line in witness.splitlines() if line.strip()]
        verdict = await asyncio.to_thread(verify_site, desk.read.kit.folder, heads)
        text = Markup("").join(Markup("<p>{}</p>").format(line) for line in verdict.lines())
        told = Markup('<div class="note {}" role="status">{}</div>').format("good" if verdict.ok else "bad", text)
    except WardroundError as error:
        told = tables.note(str(error), "bad")
    place.clear()
    with place:
        html(told)


def _entries(desk: Desk, offset: int) -> Markup:
    every = tuple(reversed(desk.read.entries()))
    heads: list[Heading] = [Column("Entry", number=True), "When", "Kind", Column("Details", long=True)]
    rows = [
        (entry.sequence, at(entry.at), entry.kind, tables.said(entry.body)) for entry in page_of(every, offset, LIMIT)
    ]
    listed = tables.table(f"{len(every):,} entries, the newest first", heads, rows, empty="Nothing has happened yet.")
    return listed + tables.pages("/audit", offset, LIMIT, len(every))
