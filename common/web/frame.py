"""The frame of every page: header with navigation, theme switch, who is signed in, one <h1>, one <main>."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from markupsafe import Markup
from nicegui import ui

from common.web.charts import Chart
from common.web.live import Feed

STATIC = Path(__file__).parent / "static"
ASSETS = "/assets"
HEAD = f'<link rel="stylesheet" href="{ASSETS}/theme.css"><script src="{ASSETS}/page.js"></script>'


NOBODY = Markup("")


@dataclass(frozen=True)
class Navigation:
    """What stands in the header: the place (a federation, a site), links (text, path), and as HTML who is signed in."""

    place: str
    links: Sequence[tuple[str, str]]
    person: Markup = NOBODY


def add_assets(app: FastAPI) -> None:
    """Let `app` serve the style sheet and the script of the pages; nothing comes from elsewhere."""
    app.mount(ASSETS, StaticFiles(directory=STATIC), name="assets")


@contextmanager
def frame(title: str, navigation: Navigation, *, here: str) -> Iterator[None]:
    """Build the page's frame; what is made in the block stands in its <main>. `here`: the current link's path."""
    ui.page_title(f"{title} · Ward Round")
    ui.add_head_html(HEAD)
    ui.html(header(navigation, here), sanitize=False)
    with ui.element("main").props('id="content" tabindex="-1"'):
        ui.html(Markup("<h1>{}</h1>").format(title), sanitize=False)
        yield


def header(navigation: Navigation, here: str) -> Markup:
    """Return the header's HTML."""
    items = Markup("").join(
        Markup('<li><a href="{}"{}>{}</a></li>').format(
            path, Markup(' aria-current="page"') if path == here else Markup(""), text
        )
        for text, path in navigation.links
    )
    return Markup(
        '<a class="skip" href="#content">Skip to the content</a><header class="top">'
        '<a class="brand" href="/">Ward Round<small>{}</small></a><nav aria-label="Pages"><ul>{}</ul></nav>'
        '<span class="spring"></span>{}<button type="button" class="link" data-theme-switch>Theme</button></header>'
    ).format(navigation.place, items, navigation.person)


@contextmanager
def sheet(title: str = "") -> Iterator[None]:
    """Build a box on the page, with a heading."""
    with ui.element("section").classes("sheet"):
        if title:
            ui.html(Markup("<h2>{}</h2>").format(title), sanitize=False)
        yield


class Part:
    """A piece of a page that is brought up to date in place: only when it has really changed, it is sent."""

    def __init__(self, make: Callable[[], Markup]) -> None:
        self._make = make
        self._element = ui.html(make(), sanitize=False)

    def refresh(self, content: Markup | None = None) -> None:
        """Show what it should show now."""
        content = self._make() if content is None else content
        if content != self._element.content:
            self._element.set_content(content)


class ChartPart:
    """A chart that is brought up to date in place, with its table beside it."""

    def __init__(self, make: Callable[[], Chart]) -> None:
        self._make = make
        chart = make()
        with ui.element("figure").style("margin: 0"):
            self._chart = ui.echart(chart.options, renderer="canvas" if chart.canvas else "svg")
            self._chart.classes(f"chart {chart.size}").props(f'role="img" aria-label="{_attribute(chart.title)}"')
            self._table = ui.html(_data(chart), sanitize=False)

    def refresh(self, chart: Chart | None = None) -> None:
        """Draw what it should show now."""
        chart = self._make() if chart is None else chart
        if chart.options != self._chart.options:
            self._chart.props["options"] = chart.options
            self._chart.update()
            self._table.set_content(_data(chart))


def follow(feed: Feed, refresh: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Call `refresh` after every change for as long as this page is open."""
    client = ui.context.client

    async def listen(_: int) -> None:
        if client.has_socket_connection:
            await refresh()

    client.on_delete(feed.subscribe(listen))
    client.on_connect(lambda: asyncio.create_task(refresh()))  # what changed while the line was down


def _data(chart: Chart) -> Markup:
    return Markup("<details><summary>{} as a table</summary>{}</details>").format(chart.title, chart.data)


def _attribute(text: str) -> str:
    return text.replace('"', "'")
