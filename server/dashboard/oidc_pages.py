"""The two addresses of signing in with an OpenID provider: where one is sent off, and where one comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from common.errors import ForbiddenError, WardroundError
from server.actions import Actions
from server.dashboard.oidc import Provider, subject_of
from server.dashboard.problems import status_of
from server.dashboard.security import address_of
from server.dashboard.sign_in import Door, let_in, local
from server.people import People, PersonLine
from server.roles import Person, Role, scopes_of

QUESTION_COOKIE = "__Host-wardround-openid"
QUESTION_SECONDS = 600


def add_openid(router: APIRouter, door: Door, provider: Provider, actions: Actions, people: People) -> None:
    """Add signing in with `provider`."""

    @router.get("/oidc/begin")
    def begin(request: Request, next: str = "/") -> Response:
        """Send the browser to the provider."""
        try:
            address, question = provider.begin()
        except WardroundError as error:
            return door.page(request, status_of(error), str(error), next=next)
        response = RedirectResponse(address, 303)
        _set(response, f"{question}.{quote(local(next), safe='')}")
        return response

    @router.get("/oidc/return")
    def finish(request: Request) -> Response:
        """Let in who comes back from the provider, as whom it says and in the role that it gives."""
        state, nonce, verifier, target = [*request.cookies.get(QUESTION_COOKIE, "").split(".", 3), "", "", "", ""][:4]
        try:
            claims = provider.finish(request.query_params, f"{state}.{nonce}.{verifier}")
            name = _person(claims, provider, actions, people, address_of(request))
            agent = request.headers.get("user-agent", "")
            secret = actions.open_session(name, address_of(request), agent, by="OpenID")
            response = let_in(request, people, secret, unquote(target))
        except WardroundError as error:
            response = door.page(request, status_of(error), str(error), next=unquote(target))
        response.delete_cookie(QUESTION_COOKIE, secure=True, httponly=True, samesite="lax")
        return response


def _person(claims: Mapping[str, Any], provider: Provider, actions: Actions, people: People, address: str) -> str:
    """The name here of who signed in there: known by the identity; added at first sight, with the role of today."""
    subject, role = subject_of(provider.settings.issuer, claims["sub"]), provider.role_of(claims)
    known = people.with_subject(subject)
    by = Person(f"openid:{provider.settings.client_id}", "", "admin", scopes_of("admin"), "session", "", address)
    if known is None:
        display = claims.get("name") if isinstance(claims.get("name"), str) else ""
        return actions.add_person(by, provider.name_of(claims), role, display=str(display)[:200], subject=subject)
    return _as_today(known, role, by, actions)


def _as_today(known: PersonLine, role: Role, by: Person, actions: Actions) -> str:
    if known.disabled:
        raise ForbiddenError(f"{known.name} is shut out: ask an admin")
    if known.role != role:
        actions.set_role(by, known.name, role)
    return known.name


def _set(response: Response, question: str) -> None:
    response.set_cookie(
        QUESTION_COOKIE, question, max_age=QUESTION_SECONDS, secure=True, httponly=True, samesite="lax", path="/"
    )
