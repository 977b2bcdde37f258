"""Server-sent events: following the federation or one run live, by the same feed that pages are told by.

An event `change` has as data the version of what can be read and, of a run, its status, committed rounds and progress.
A comment comes every 15 seconds, so that whoever listens knows that the line is there; the stream ends with the
session or token that it was opened with, and with the run.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from common.errors import NotFoundError, SlowDownError
from common.web.live import Feed
from server.dashboard.schemas import RunName
from server.dashboard.security import Needs
from server.follow import UNDER_WAY
from server.people import People
from server.readmodel import ReadModel
from server.roles import Person

QUIET_SECONDS = 15.0
STREAMS, STREAMS_OF_ONE = 200, 20
"""How many may be open, in all and of one person."""
Reader = Annotated[Person, Depends(Needs("read"))]


class Streams:
    """The streams that are open: bounded, and each ended when its session is."""

    def __init__(self, people: People, feed: Feed) -> None:
        self._people, self._feed = people, feed
        self._open: dict[str, int] = {}

    def respond(self, request: Request, person: Person, tell: Callable[[int], dict[str, Any]]) -> StreamingResponse:
        """Return a stream of what `tell` says of each version; `{"end": true}` in it ends the stream.

        Raises SlowDownError when too many are open.
        """
        own = self._open.get(person.name, 0)
        if own >= STREAMS_OF_ONE or sum(self._open.values()) >= STREAMS:
            raise SlowDownError("too many streams are open: close some, or ask now and then", 60)
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(self._lines(request, person, tell), media_type="text/event-stream", headers=headers)

    async def _lines(
        self, request: Request, person: Person, tell: Callable[[int], dict[str, Any]]
    ) -> AsyncIterator[str]:
        self._open[person.name] = self._open.get(person.name, 0) + 1
        try:
            async for version in self._feed.changes(quiet=QUIET_SECONDS):
                if await request.is_disconnected() or not await to_thread.run_sync(self._still, person):
                    return
                if version is None:
                    yield ": still here\n\n"
                    continue
                data = await to_thread.run_sync(tell, version)
                yield f"event: change\nid: {version}\ndata: {json.dumps(data)}\n\n"
                if data.get("end"):
                    return
        finally:
            self._open[person.name] -= 1
            if not self._open[person.name]:
                del self._open[person.name]

    def _still(self, person: Person) -> bool:
        if person.via == "session":
            now = self._people.session_of_hash(person.session, touch=False)
        else:
            now = self._people.token_of_hash(person.session)
        return now is not None and now.may("read")


def events_router(read: ReadModel, people: People, feed: Feed) -> APIRouter:
    """Return the endpoints that stream."""
    router, streams = APIRouter(tags=["events"]), Streams(people, feed)
    kind: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events `change`."}
    }

    @router.get("/events", response_class=StreamingResponse, responses=kind)
    async def events(request: Request, person: Reader) -> StreamingResponse:
        """Stream an event whenever anything of the federation has changed."""
        return streams.respond(request, person, lambda version: {"version": version})

    @router.get("/runs/{run}/events", response_class=StreamingResponse, responses=kind)
    async def run_events(run: RunName, request: Request, person: Reader) -> StreamingResponse:
        """Stream an event whenever anything has changed, with the run's state in it, until the run has ended."""
        await to_thread.run_sync(read.line, run)

        def tell(version: int) -> dict[str, Any]:
            try:
                line = read.line(run)
            except NotFoundError:
                return {"version": version, "end": True}
            state = {"status": line.status, "done": line.done, "rounds": line.rounds, "progress": line.progress}
            return {"version": version, **state, "end": line.status not in UNDER_WAY}

        return streams.respond(request, person, tell)

    return router
