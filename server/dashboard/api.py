"""The REST API under `/api/v1`: what pages show and do, for scripts. Each endpoint names the scope that it needs.

Reads go through `server.readmodel`, changes through `server.actions`, as those of the pages do.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse

from common.web.live import Feed
from server.actions import Actions
from server.dashboard.api_people import people_router
from server.dashboard.api_runs import models_router, runs_router
from server.dashboard.docs import docs_page
from server.dashboard.events import events_router
from server.dashboard.metrics import metrics_router
from server.dashboard.schemas import Health, Problem, Session
from server.dashboard.security import Needs, csrf_of, signed_in
from server.people import People
from server.readmodel import ReadModel
from server.roles import Person
from server.views import Federation

PREFIX = "/api/v1"
ERRORS = {
    400: "the request is malformed",
    401: "nobody is signed in, or the token has ended",
    403: "the role or the token's scope does not allow it",
    404: "there is nothing of this name",
    409: "it can't be done as things are",
    413: "the request is too large",
    414: "the address is too long",
    422: "an argument is wrong",
    429: "too many failed attempts: `Retry-After` tells how long to wait",
    503: "the registry can't be used",
}


def add_api(app: FastAPI, read: ReadModel, actions: Actions, people: People, feed: Feed) -> None:
    """Add the API, its description, its documentation and Prometheus' numbers."""
    kind = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": kind} for status, text in ERRORS.items()
    }
    errors[401]["model"] = Problem
    router = APIRouter(prefix=PREFIX, responses=errors)
    router.include_router(_general(app, read))
    router.include_router(runs_router(read, actions))
    router.include_router(models_router(read, actions))
    router.include_router(people_router(read, actions, people))
    router.include_router(events_router(read, people, feed))
    app.include_router(router)
    app.include_router(metrics_router(read), responses=errors)

    @app.get("/health", include_in_schema=False)
    def health() -> Health:
        """Tell whether the dashboard works; for whoever watches the machine."""
        return Health(status="ok", coordinator_running=read.federation().coordinator_running)


def _general(app: FastAPI, read: ReadModel) -> APIRouter:
    router = APIRouter(tags=["federation"])

    @router.get("/federation")
    def federation(_: Annotated[Person, Depends(Needs("read"))]) -> Federation:
        """Return the federation and the state of all its sites."""
        return read.federation()

    @router.get("/session")
    def session(request: Request, person: Annotated[Person, Depends(signed_in)]) -> Session:
        """Return who asks and what they may do."""
        csrf = csrf_of(request) if person.via == "session" else ""
        scopes = tuple(sorted(person.scopes))
        return Session(
            name=person.name, display=person.display, role=person.role, scopes=scopes, via=person.via, csrf=csrf
        )

    @router.get("/openapi.json", include_in_schema=False)
    def openapi(_: Annotated[Person, Depends(signed_in)]) -> dict[str, Any]:
        """Return this API's description, OpenAPI 3.1."""
        return app.openapi()

    @router.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def docs(_: Annotated[Person, Depends(signed_in)]) -> str:
        """Return the description for people."""
        return docs_page(app.openapi())

    return router
