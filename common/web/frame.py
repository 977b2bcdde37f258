"""The frame of every page: header with navigation, theme switch, who is signed in, one <h1>, one <main>."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from markupsafe import Markup
from nicegui import ui

from common.errors import WardroundError
from common.web import tables
from common.web.charts import Chart
from common.web.live import Feed

STATIC = Path(__file__).parent / "static"
ASSETS = "/static"
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
    ui.add_body_html(str(header(navigation, here, _main())))  # there at once, before any script has run
    ui.html(Markup("<h1>{}</h1>").format(title), sanitize=False)
    yield


def _main() -> str:
    """Return the id of Quasar's page, which is the page's <main>, and let the link that skips to it give it focus."""
    slot = ui.context.client.content.parent_slot
    if slot is None:
        return ""
    slot.parent.props["tabindex"] = "-1"
    return slot.parent.html_id


def header(navigation: Navigation, here: str, main: str) -> Markup:
    """Return the header's HTML; `main` is the id of the <main>."""
    items = Markup("").join(
        Markup('<li><a href="{}"{}>{}</a></li>').format(
            path, Markup(' aria-current="page"') if path == here else Markup(""), text
        )
        for text, path in navigation.links
    )
    return Markup(
        '<a class="skip" href="#{}">Skip to the content</a><header class="top">'
        '<a class="brand" href="/">Ward Round<small>{}</small></a><nav aria-label="Pages"><ul>{}</ul></nav>'
        '<span class="spring"></span>{}<button type="button" class="link" data-theme-switch>Theme</button></header>'
    ).format(main, navigation.place, items, navigation.person)


@contextmanager
def sheet(title: str = "") -> Iterator[ui.element]:
    """Build a box on the page, with a heading."""
    with ui.element("section").classes("sheet") as box:
        if title:
            ui.html(Markup("<h2>{}</h2>").format(title), sanitize=False)
        yield box


READING = Markup('<p class="soft" aria-busy="true">This is being read …</p>')
Piece = Markup | Chart


class Pieces:
    """The pieces of a page by name, all made at once from one look at what is shown, and brought up to date in place.

    `make` runs in a thread. Only a piece that has really changed is sent to the browser.
    """

    def __init__(self, make: Callable[[], Mapping[str, Piece]]) -> None:
        self._make = make
        self._now: Mapping[str, Piece] = {}
        self._placed: dict[str, _Place] = {}

    async def load(self, patience: float | None = None) -> Pieces:
        """Make the pieces; then they can be put into place. Raises what `make` raises.

        What takes longer than `patience` seconds is shown as soon as it is there: until then its place says so. The
        page must be followed (`follow`) then.
        """
        making = asyncio.create_task(asyncio.to_thread(self._make))
        done, _ = await asyncio.wait({making}, timeout=patience)
        if done:
            self._now = making.result()
        else:
            making.add_done_callback(lambda late: late.cancelled() or late.exception())  # it is asked for again
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The pieces' names, in their order."""
        return tuple(self._now)

    def put(self, name: str) -> None:
        """Put a piece here."""
        self._placed[name] = _Place(self._now[name] if self._now else READING)

    async def refresh(self) -> None:
        """Make the pieces again and show what has changed."""
        try:
            before, self._now = self._now, await asyncio.to_thread(self._make)
        except WardroundError as error:
            if self._now:
                raise
            self._say(str(error))
            return
        for name, place in self._placed.items():
            if name in self._now and self._now[name] != before.get(name):
                place.show(self._now[name])

    def _say(self, problem: str) -> None:
        """Nothing could be made: say why, once."""
        for number, place in enumerate(self._placed.values()):
            place.show(tables.note(problem, "bad") if number == 0 else NOBODY)


class _Place:
    """Where a piece stands: what was only text, such as "no round yet", may be a chart later."""

    def __init__(self, piece: Piece) -> None:
        with ui.element("div") as self._box:
            self._content = _placed(piece)

    def show(self, piece: Piece) -> None:
        if isinstance(piece, Chart) == isinstance(self._content, Drawing):
            self._content.show(piece)
            return
        self._box.clear()
        with self._box:
            self._content = _placed(piece)


def _placed(piece: Piece) -> Text | Drawing:
    return Drawing(piece) if isinstance(piece, Chart) else Text(piece)


class Text(ui.element, component="static/morph.js"):
    """HTML, escaped where it was made, that is brought up to date in place: focus, scroll and opened details stay."""

    def __init__(self, content: Markup) -> None:
        super().__init__()
        self._props["content"] = str(content)

    def show(self, piece: Piece) -> None:
        """Show other HTML in its place."""
        self._props["content"] = str(piece)
        self.update()


class Drawing:
    """A chart on the page, with its numbers as a table that can be opened."""

    def __init__(self, chart: Chart) -> None:
        with ui.element("figure").classes("drawing"):
            self._chart = ui.echart(chart.options, renderer="canvas" if chart.canvas else "svg")
            self._chart.classes(f"chart {chart.size}")
            self._chart.props["role"], self._chart.props["aria-label"] = "img", chart.title
            self._table = Text(_data(chart))

    def show(self, piece: Piece) -> None:
        """Draw another one in its place."""
        if isinstance(piece, Chart):
            # Past the props' own assignment, which wraps each number of a chart that nobody changes in place.
            dict.__setitem__(self._chart.props, "options", piece.options)
            self._chart.update()
            self._table.show(_data(piece))


def follow(feed: Feed, refresh: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Call `refresh` after every change for as long as this page is open."""
    client = ui.context.client

    async def listen(_: int) -> None:
        if client.has_socket_connection:
            await refresh()

    client.on_delete(feed.subscribe(listen))
    client.on_connect(refresh)  # what changed while the line was down


def _data(chart: Chart) -> Markup:
    return Markup("<details><summary>{} as a table</summary>{}</details>").format(chart.title, chart.data)
