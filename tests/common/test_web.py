"""What all pages share: text is escaped, numbers have units, charts survive what a run holds, changes arrive once."""

from __future__ import annotations

import asyncio
import json
import math
import socket

import pytest
from fastapi import FastAPI
from markupsafe import Markup

from common.errors import UsageError
from common.web import charts, tables, words
from common.web.charts import Cell, Line
from common.web.live import Feed
from common.web.serving import serve

NASTY = "<script>alert('x')</script>\"&"


@pytest.mark.parametrize(
    "made",
    [
        tables.table(NASTY, ["Site", tables.Column(NASTY)], [(NASTY, NASTY)]),
        tables.facts([(NASTY, NASTY)]),
        tables.badge(NASTY),
        tables.link(NASTY, NASTY, text=NASTY),
        tables.note(NASTY, "bad"),
        tables.pick(NASTY, NASTY, NASTY),
        tables.more(NASTY, NASTY),
        tables.code(NASTY),
        tables.pages("/runs", 50, 50, 200, text=NASTY),
    ],
)
def test_whatever_a_site_or_job_is_called_it_is_shown_as_text(made):
    assert "<script" not in made
    assert "'x'" not in made


def test_a_table_names_its_rows_and_says_what_to_do_when_it_is_empty():
    made = tables.table("Sites", ["Site", tables.Column("Cases", number=True)], [("north", None)])
    assert '<th scope="row">north</th><td class="number">–</td>' in made
    assert "<caption>Sites</caption>" in made
    assert tables.table("Sites", ["Site"], [], empty="Admit a site first.") == '<p class="soft">Admit a site first.</p>'


def test_a_long_list_says_where_one_is_and_keeps_the_filter_from_page_to_page():
    made = tables.pages("/runs", 50, 50, 120, text="a b")
    assert "51 to 100 of 120" in made
    assert "/runs?text=a+b&amp;offset=100" in made
    assert tables.pages("/runs", 0, 50, 50) == ""


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (words.size(0), "0 B"), (words.size(1_234_567), "1.2 MB"), (words.size(999_999), "1.0 MB"),
        (words.size(None), "–"),
        (words.seconds(0.0124), "12 ms"), (words.seconds(59.97), "1 min 0 s"), (words.seconds(7265), "2 h 1 min"),
        (words.seconds(math.nan), "–"), (words.number(math.inf), "–"), (words.share(0.5), "50%"),
        (words.interval(0.9, 0.88, 0.92), "0.900 (0.880 to 0.920)".replace(" ", words.NO_BREAK)),
        (words.interval(0.9, None, 0.92), "0.900"),
    ],
)  # fmt: skip
def test_numbers_are_shown_with_their_units_and_none_as_a_dash(shown, text):
    assert shown == text


def test_a_time_can_be_read_by_people_and_by_the_browser():
    assert words.when(0) == '<time datetime="1970-01-01T00:00:00+00:00">1970-01-01 00:00 UTC</time>'


POINTS = [(1, 0.5), (2, None), (3, math.nan), (4, math.inf)]


@pytest.mark.parametrize(
    "chart",
    [
        charts.lines(
            "AUC", "round", "auc", [Line(NASTY, POINTS, low=[0.4, None, math.nan, 0], high=[0.6, None, 1, 1])]
        ),
        charts.lines("Epsilon", "round", "epsilon", [Line("a", POINTS)], limit=8.0),
        charts.lines("Nothing", "round", "auc", []),
        charts.bars("Time", "round", "s", [1, 2], {"train": [1.0, None], "wait": [math.nan, 2.0]}),
        charts.state_map("Map", [NASTY], ["north"], [Cell(0, 0, "failed", 1.0, NASTY)], Markup("")),
    ],
)
def test_a_chart_holds_only_what_json_has_and_its_table_no_script(chart):
    json.dumps(chart.options, allow_nan=False)
    assert "<script" not in chart.data
    assert chart.options["aria"]["enabled"]


def test_a_budget_is_in_sight_however_little_of_it_is_spent():
    chart = charts.lines("Epsilon", "round", "epsilon", [Line("a", [(1, 0.1)])], limit=8.0)
    assert chart.options["yAxis"]["max"] > 8.0


def test_a_map_of_500_rounds_by_100_sites_is_drawn_on_a_canvas_with_every_cell():
    cells = [Cell(x, y, "aggregated", 1.0) for x in range(500) for y in range(100)]
    chart = charts.state_map("Map", [str(x) for x in range(500)], [str(y) for y in range(100)], cells, Markup(""))
    assert chart.canvas
    assert len(chart.options["series"][0]["data"]) == 50_000


def test_pages_are_told_of_each_change_and_slow_ones_are_not_told_twice():
    asyncio.run(_told())


async def _told():
    version, told, slow = 1, [], asyncio.Event()
    feed = Feed(lambda: version, seconds=60)

    async def listen(now: int) -> None:
        told.append(now)
        await slow.wait()

    forget = feed.subscribe(listen)
    await feed.look()
    await asyncio.sleep(0.01)
    for version in (2, 3, 4):  # noqa: B007 - the feed reads it
        await feed.look()
    slow.set()
    await asyncio.sleep(0.01)
    assert told == [1, 4]
    forget()
    version = 5
    await feed.look()
    await asyncio.sleep(0.01)
    assert told == [1, 4]


def test_a_registry_that_is_away_for_a_moment_does_not_end_live_pages():
    asyncio.run(_away())


async def _away():
    looks, told = [], []

    def version() -> int:
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("locked")
        return 7

    async def listen(now: int) -> None:
        told.append(now)

    feed = Feed(version, seconds=0.01)
    feed.subscribe(listen)
    await asyncio.sleep(0.2)
    assert told == [7]


def test_a_port_in_use_and_plain_http_for_others_are_told_in_a_line():
    used = "the port is in use: choose another with --listen"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match=used):
        serve(FastAPI(), "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="without HTTPS are served on this machine only"):
        serve(FastAPI(), "0.0.0.0", 0)
