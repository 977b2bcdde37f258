"""The federation: who is here, in which state, and who took part in the newest rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.web import charts, tables, words
from common.web.frame import Piece, follow, sheet
from common.web.tables import Column, badge
from server.dashboard.pages.desk import PATIENCE, Desk
from server.views import Federation, RoundLine, SiteLine

MONTH = 31 * 86400.0
ROUNDS = 30


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/")
    async def federation(request: Request) -> None:
        with desk.page(request, "Federation", "/"):
            pieces = await desk.pieces(
                "federation", lambda: pieces_of(desk.read.federation(), desk.read.participation(ROUNDS))
            ).load(PATIENCE)
            pieces.put("coordinator")
            with sheet("Sites"):
                pieces.put("sites")
            with sheet("Who took part"):
                pieces.put("map")
            follow(desk.feed, pieces.refresh)


def pieces_of(federation: Federation, rounds: Sequence[RoundLine]) -> Mapping[str, Piece]:
    """Return the page's pieces."""
    return {
        "coordinator": _coordinator(federation),
        "sites": tables.table(
            f"{len(federation.sites)} sites are admitted",
            ["Site", "State", Column("Why", long=True), "Last heartbeat", "Training cases", "Version", "Device",
             "Certificate ends", Column("Audit entry", number=True)],
            [_site(site) for site in federation.sites],
            empty="No site is admitted yet: send each hospital its kit, then admit its request: wardround kits admit.",
        ),
        "map": participation(rounds, [site.name for site in federation.sites]),
    }  # fmt: skip


def participation(rounds: Sequence[RoundLine], sites: Sequence[str], *, short: bool = False) -> Piece:
    """Return the map of rounds by sites, and the same as a table; `short` names rounds without their run."""
    if not rounds:
        return Markup('<p class="soft">No round has been trained yet.</p>')
    names = list(dict.fromkeys([*sites, *(turn.site for one in rounds for turn in one.turns)]))
    row = {name: place for place, name in enumerate(names)}
    columns = [_column(one, short) for one in rounds]
    cells = [
        charts.Cell(place, row[turn.site], turn.status, turn.seconds, turn.reason)
        for place, one in enumerate(rounds)
        for turn in one.turns
    ]
    missing = (
        (columns[place], turn.site, badge(turn.status), turn.reason)
        for place, one in enumerate(rounds)
        for turn in one.turns
        if turn.status not in ("aggregated", "trained", "evaluated", "agreed")
    )
    data = tables.table(
        "Who did not take part, and why", ["Round", "Site", "What happened", Column("Why", long=True)],
        list(missing)[:500], empty="Every site that was asked took part in each of these rounds.", tall=True,
    )  # fmt: skip
    return charts.state_map("Rounds by sites", columns, names, cells, data)


def _column(one: RoundLine, short: bool) -> str:
    attempt = f" ({one.attempt})" if one.attempt > 1 else ""
    return f"{one.number}{attempt}" if short else f"{one.run} {one.number}{attempt}"


def _coordinator(federation: Federation) -> Markup:
    if not federation.coordinator_running:
        last = words.when(federation.heartbeat) if federation.heartbeat else "never"
        return tables.note(
            Markup("The coordinator is not running (last sign of life: {}). Start it: "
                   "<code>wardround coordinator start</code>. Runs wait until then.").format(last), "warn",
        )  # fmt: skip
    online = sum(site.state in ("online", "training", "waiting", "late", "refused") for site in federation.sites)
    return Markup(
        '<p class="soft">The coordinator has been running since {}; {} of {} sites are connected.</p>'
    ).format(words.when(federation.coordinator_started), online, len(federation.sites))


def _site(site: SiteLine) -> Sequence[object]:
    counts = ", ".join(f"{name} {words.count(number)}" for name, number in site.counts.items())
    return (
        site.name, badge(site.state), site.detail, words.when(site.last_seen), counts or "not told", site.version,
        site.device, _ends(site.certificate_ends), words.count(site.audit_head),
    )  # fmt: skip


def _ends(at: float | None) -> Markup:
    if at is None:
        return Markup("–")
    left = at - time.time()
    if left < 0:
        return Markup("{} {}").format(words.when(at), badge("ended", "bad"))
    return Markup("{} {}").format(words.when(at), badge("renew soon", "warn")) if left < MONTH else words.when(at)
