"""Signing in and out: plain forms that need no script."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader

from common.errors import SignInError, SlowDownError
from server.actions import Actions
from server.dashboard.security import COOKIE, SIGN_IN, address_of, csrf_of, csrf_token, person_of, same
from server.people import ENDED, People
from server.tokens import hash_of

DOOR_COOKIE = "__Host-wardround-door"
"""Ties the sign-in form to the browser that asked for it, before there is a session."""
STALE = "this form is out of date: try again"
_PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)


def add_sign_in(router: APIRouter, door: Door, actions: Actions, people: People) -> None:
    """Add the sign-in page, and signing out."""

    @router.get(SIGN_IN, response_class=HTMLResponse)
    def ask(request: Request, next: str = "/", ended: bool = False) -> Response:
        """Show the form, or go on for whoever is signed in already."""
        person = person_of(request)
        if person is not None and person.via == "session":
            return RedirectResponse(local(next), 303)
        return door.page(request, message=ENDED if ended else "", next=next)

    @router.post(SIGN_IN, response_class=HTMLResponse)
    def enter(
        request: Request,
        name: Annotated[str, Form(max_length=200)] = "",
        password: Annotated[str, Form(max_length=1000)] = "",
        csrf: Annotated[str, Form(max_length=200)] = "",
        next: Annotated[str, Form(max_length=4000)] = "/",
    ) -> Response:
        """Begin a session, or show the form again with what is wrong."""
        if not door.passwords or not door.knows(request, csrf):
            return door.page(request, 403, STALE, next=next, name=name)
        try:
            secret = actions.sign_in(name, password, address_of(request), request.headers.get("user-agent", ""))
        except SlowDownError as error:
            return door.page(request, 429, str(error), next=next, name=name, wait=error.wait)
        except SignInError as error:
            return door.page(request, 401, str(error), next=next, name=name)
        return let_in(request, people, secret, next)

    @router.post("/sign-out")
    def leave(request: Request, csrf: Annotated[str, Form(max_length=200)] = "") -> Response:
        """End the session."""
        person = person_of(request)
        if person is None or person.via != "session":
            return RedirectResponse(SIGN_IN, 303)
        if not same(csrf, csrf_of(request)):
            return door.page(request, 403, STALE, next="/")
        actions.sign_out(person)
        response = RedirectResponse(SIGN_IN, 303)
        response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="lax")
        response.headers["Clear-Site-Data"] = '"cache"'
        return response


class Door:
    """The sign-in page of a federation's coordinator."""

    def __init__(self, federation: str, *, provider: str = "", passwords: bool = True) -> None:
        """Make the page; `provider` is the title of an OpenID provider, "" for none."""
        self.passwords = passwords
        self._fixed = {"federation": federation, "provider": provider, "passwords": passwords}

    def page(
        self,
        request: Request,
        status: int = 200,
        message: str = "",
        *,
        next: str,
        name: str = "",
        wait: int = 0,
    ) -> Response:
        """Return the page, with a form that only the browser that asked for it can send."""
        secret = request.cookies.get(DOOR_COOKIE) or secrets.token_urlsafe(32)
        changing = {"message": message, "next": local(next), "name": name[:64], "csrf": csrf_token(secret)}
        text = _PAGES.get_template("sign_in.html").render(self._fixed | changing)
        response = HTMLResponse(text, status, {"Retry-After": str(wait)} if wait else None)
        response.set_cookie(DOOR_COOKIE, secret, secure=True, httponly=True, samesite="lax", path="/")
        return response

    def knows(self, request: Request, csrf: str) -> bool:
        """Whether a form with this token was given to this browser."""
        secret = request.cookies.get(DOOR_COOKIE, "")
        return same(csrf, csrf_token(secret) if secret else "")


def let_in(request: Request, people: People, secret: str, next: str) -> Response:
    """Return the answer that gives a browser its new session, and ends the one that it came with, if any."""
    if before := request.cookies.get(COOKIE):
        people.end_session(hash_of(before))
    response = RedirectResponse(local(next), 303)
    response.set_cookie(COOKIE, secret, secure=True, httponly=True, samesite="lax", path="/")
    response.delete_cookie(DOOR_COOKIE, secure=True, httponly=True, samesite="lax")
    return response


def local(target: str) -> str:
    """Return a path of this server that people may be sent to; "/" for anything else."""
    plain = all(33 <= ord(letter) < 127 and letter != "\\" for letter in target)
    return target if plain and target.startswith("/") and not target.startswith("//") else "/"
