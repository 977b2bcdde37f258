"""What every page of the hospital is given, and how each begins."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from markupsafe import Markup, escape

from client.dashboard.readmodel import SiteReadModel
from common.errors import WardroundError
from common.web import tables, words
from common.web.forms import html
from common.web.frame import Navigation, frame
from common.web.live import Feed

LINKS = (
    ("Overview", "/"), ("Data", "/data"), ("Jobs", "/jobs"), ("Budget", "/budget"), ("Releases", "/releases"),
    ("Audit", "/audit"), ("Policy", "/policy"),
)  # fmt: skip


@dataclass(frozen=True)
class Desk:
    """Where pages read, and hear of changes."""

    read: SiteReadModel
    feed: Feed

    @contextmanager
    def page(self, title: str, here: str) -> Iterator[None]:
        """Build a page's frame. An error while it is built becomes what the page says."""
        kit = self.read.kit
        with frame(title, Navigation(f"{kit.name}, site of {kit.federation}", LINKS), here=here):
            try:
                yield
            except WardroundError as error:
                html(tables.note(str(error), "bad"))


def at(iso: str) -> Markup:
    """Return a time of the audit log, as the viewer's browser shows it."""
    return words.when(datetime.datetime.fromisoformat(iso).timestamp()) if iso else escape(words.NOTHING)
