"""What people did here, as the coordinator's audit log has it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.chain import Entry
from common.web import tables, words
from common.web.frame import Pieces, follow, sheet
from common.web.tables import Column, Heading
from server.dashboard.pages.desk import Desk

LIMIT = 100


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/audit")
    async def audit(request: Request, offset: int = 0) -> None:
        first = max(0, min(offset, 10**9))
        with desk.page(request, "Audit log", "/audit") as person:
            person.require("audit")

            def listed() -> Markup:
                found = desk.read.audit(offset=first, limit=LIMIT)
                heads: list[Heading] = [
                    Column("Entry", number=True),
                    "When",
                    "What",
                    "By",
                    "From",
                    Column("Details", long=True),
                ]
                rows = tables.table(
                    f"{found.total:,} entries, the newest first", heads, [_row(entry) for entry in found.items],
                    empty="Nobody has done anything yet.",
                )  # fmt: skip
                return rows + tables.pages("/audit", first, LIMIT, found.total)

            pieces = await Pieces(lambda: {"entries": listed()}).load()
            with sheet():
                pieces.put("entries")
            follow(desk.feed, pieces.refresh)


def _row(entry: Entry) -> Sequence[object]:
    rest = {name: value for name, value in entry.body.items() if name not in ("by", "address")}
    at = datetime.datetime.fromisoformat(entry.at).timestamp()
    return (
        entry.sequence, words.when(at), entry.kind, entry.body.get("by"), entry.body.get("address"),
        tables.said(rest),
    )  # fmt: skip
