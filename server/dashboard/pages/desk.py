"""What every page of the coordinator is given, and how each begins and acts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.errors import SignInError, WardroundError
from common.once import Once
from common.web import tables
from common.web.forms import tell
from common.web.frame import Navigation, Piece, Pieces, frame
from common.web.live import Feed
from server.actions import Actions
from server.dashboard.security import SIGN_IN, again, csrf_of, signed_in
from server.people import People
from server.readmodel import ReadModel
from server.roles import Person

T = TypeVar("T")
PAGES_KEPT = 24
PATIENCE = 0.3
"""Seconds that a page waits for what it shows, before it says that this is being read."""
LINKS = (("Federation", "/"), ("Runs", "/runs"), ("New job", "/new"), ("Models", "/models"), ("People", "/people"))


@dataclass(frozen=True)
class Desk:
    """Where pages read, act, look people up, and hear of changes."""

    read: ReadModel
    actions: Actions
    people: People
    feed: Feed
    federation: str
    made: Once = field(default_factory=lambda: Once(PAGES_KEPT))

    def pieces(self, key: Hashable, make: Callable[[], Mapping[str, Piece]]) -> Pieces:
        """Return the pieces of a page that is the same for everybody: all who look at it share one making a change."""
        return Pieces(lambda: self.made.get(key, self.read.version(), make))

    @contextmanager
    def page(self, request: Request, title: str, here: str) -> Iterator[Person]:
        """Build a page's frame for who asks. An error while it is built becomes what the page says."""
        person = signed_in(request)
        links = [*LINKS, ("Audit", "/audit")] if person.may("audit") else LINKS
        with frame(title, Navigation(self.federation, links, _signed_in(person, csrf_of(request))), here=here):
            try:
                yield person
            except WardroundError as error:
                ui.html(tables.note(str(error), "bad"), sanitize=False)

    async def act(self, person: Person, action: Callable[[Person], T], done: str = "") -> T | None:
        """Do something for a person in a thread, if their session lives still; tell how it went.

        Returns None when it could not be done: then the page says why, or is on its way to the sign-in page.
        """

        try:
            now = await asyncio.to_thread(again, self.people, person)
        except SignInError:
            ui.navigate.to(SIGN_IN)
            return None
        try:
            result = await asyncio.to_thread(action, now)
        except WardroundError as error:
            tell(str(error), bad=True)
            return None
        if done:
            tell(done)
        await self.feed.look()
        return result


def _signed_in(person: Person, csrf: str) -> Markup:
    return Markup(
        '<span class="who">{} ({})</span><form method="post" action="/sign-out">'
        '<input type="hidden" name="csrf" value="{}"><button class="link" type="submit">Sign out</button></form>'
    ).format(person.display or person.name, person.role, csrf)
