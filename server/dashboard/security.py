"""Who asks, and whether the request may come through: sessions by cookie, tokens by header, forged requests refused.

A page is for who is signed in; everybody else is sent to the sign-in page. An endpoint of the API says for itself which
scope it needs (`needs`). A page's socket closes within seconds of its session's end.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import quote

from anyio import create_task_group, sleep, to_thread
from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import DataError, SignInError
from common.web.shield import SAFE_METHODS, STATIC, problem
from server.people import ENDED, People
from server.roles import Person
from server.roles import Scope as Permission

COOKIE = "__Host-wardround"
"""A browser takes a cookie of this prefix only over HTTPS, for this host alone and all of its paths (RFC 6265bis)."""
CSRF_HEADER = "X-CSRF-Token"
SIGN_IN = "/sign-in"
OPEN = ("/sign-in", "/oidc/", "/health", "/favicon.ico", *STATIC)
"""Paths that nobody need be signed in for; those of `OWN` answer for themselves."""
OWN = ("/api/", "/metrics", "/sign-out")
SOCKETS = "/_nicegui_ws/"
WATCH_SECONDS = 3.0
"""How often an open page's session is looked up, beside every click."""
_GOODBYE = f'42["open",{{"path":"{SIGN_IN}?ended=1","new_tab":false}}]'
_CLICK = re.compile(r'42\d*\["event"')


class Guard:
    """ASGI middleware that says who asks (`request.state.person`, None for nobody) and turns away who may not."""

    def __init__(self, app: ASGIApp, *, people: People) -> None:
        self._app, self._people = app, people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or socket."""
        path: str = scope.get("path", "")
        if scope["type"] == "lifespan" or path.startswith(STATIC):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        person = await to_thread.run_sync(_identify, self._people, headers, _address(scope))
        scope.setdefault("state", {})["person"] = person
        if path.startswith(SOCKETS):
            await self._socket(scope, receive, send, person)
            return
        refusal = _page_refusal(scope, person) or _forgery(scope, headers, person)
        await (refusal or self._app)(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send, person: Person | None) -> None:
        """Let a page's socket live as long as its session does."""
        known = person is not None and person.via == "session"
        if scope["type"] != "websocket":
            await (self._app if known else problem(401, ENDED))(scope, receive, send)
        elif person is None or not known:
            await send({"type": "websocket.close", "code": 4401, "reason": "sign in"})
        else:
            await Watch(self._people, person, receive, send).run(self._app, scope)


class Watch:
    """An open page's socket, which lives as long as the session does that the page was opened in."""

    def __init__(self, people: People, person: Person, receive: Receive, send: Send) -> None:
        self._people, self._hash, self._receive, self._send = people, person.session, receive, send
        self._over = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let `app` serve the socket until either ends."""
        async with create_task_group() as group:
            group.start_soon(self._look_now_and_then)
            await app(scope, self._next, self._pass_on)
            group.cancel_scope.cancel()

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.receive" and _CLICK.match(message.get("text") or ""):
            await self._look(clicked=True)
        return {"type": "websocket.disconnect", "code": 4401} if self._over else message

    async def _pass_on(self, message: Message) -> None:
        if not self._over:
            await self._send(message)

    async def _look_now_and_then(self) -> None:
        while not self._over:
            await sleep(WATCH_SECONDS)
            await self._look(clicked=False)

    async def _look(self, *, clicked: bool) -> None:
        try:
            found = await to_thread.run_sync(lambda: self._people.session_of_hash(self._hash, touch=clicked))
        except DataError:
            return  # a registry that is away for a moment: what is asked of it will say so
        if found is None and not self._over:
            self._over = True
            await self._send({"type": "websocket.send", "text": _GOODBYE})
            await self._send({"type": "websocket.close", "code": 4401, "reason": "the session has ended"})


class Needs:
    """A dependency of an endpoint: returns who asks, if they have the scope. Raises SignInError or ForbiddenError."""

    def __init__(self, scope: Permission) -> None:
        self.scope = scope

    def __call__(self, request: Request) -> Person:
        """Check one request."""
        return require(request, self.scope)


class NeedsSession:
    """A dependency of an endpoint that only who is signed in with a session may use, whatever the role."""

    def __call__(self, request: Request) -> Person:
        """Check one request."""
        person = signed_in(request)
        person.require_session()
        return person


def person_of(request: Request) -> Person | None:
    """Return who asks, or None."""
    person: Person | None = getattr(request.state, "person", None)
    return person


def signed_in(request: Request) -> Person:
    """Return who asks. Raises SignInError when that is nobody."""
    person = person_of(request)
    if person is None:
        raise SignInError("sign in, or send a token: Authorization: Bearer ...")
    return person


def require(request: Request, scope: Permission = "read") -> Person:
    """Return who asks. Raises SignInError when that is nobody, ForbiddenError for want of the scope."""
    person = signed_in(request)
    person.require(scope)
    return person


def again(people: People, person: Person) -> Person:
    """Return who `person` is now, for something done on a page that was opened earlier. Raises SignInError."""
    now = people.session_of_hash(person.session, person.address)
    if now is None:
        raise SignInError(ENDED)
    return now


def csrf_of(request: Request) -> str:
    """Return the token that a form or a changing request of this session must bring; "" without one."""
    secret = request.cookies.get(COOKIE, "")
    return csrf_token(secret) if secret else ""


def csrf_token(secret: str) -> str:
    """Return the CSRF token that belongs to a cookie's secret: the cookie can't be found from it."""
    return hashlib.sha256(b"csrf:" + secret.encode("utf-8", "surrogatepass")).hexdigest()


def same(given: str, right: str) -> bool:
    """Whether two secrets are the same, in constant time; never for an empty one."""
    return bool(right) and hmac.compare_digest(given.encode("utf-8", "replace"), right.encode("utf-8", "replace"))


def address_of(request: Request) -> str:
    """Return the address that a request comes from, as the socket has it: headers can claim anything."""
    return _address(request.scope)


def _identify(people: People, headers: Headers, address: str) -> Person | None:
    authorization = headers.get("authorization", "")
    if authorization:
        scheme, _, secret = authorization.partition(" ")
        return people.token(secret.strip(), address) if scheme.lower() == "bearer" else None
    secret = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    return people.session(secret, address, touch=_is_done_by_hand(headers)) if secret else None


def _is_done_by_hand(headers: Headers) -> bool:
    """Whether a request is somebody's doing, and not an open page's own: those must not keep a session alive."""
    return headers.get("sec-fetch-mode", "navigate") == "navigate" or CSRF_HEADER in headers


def _page_refusal(scope: Scope, person: Person | None) -> RedirectResponse | None:
    path: str = scope["path"]
    if path.startswith((*OPEN, *OWN)) or (person is not None and person.via == "session"):
        return None
    target = path + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
    query = f"?next={quote(target, safe='')}" if scope["method"] in SAFE_METHODS and target != "/" else ""
    return RedirectResponse(SIGN_IN + query, 303)


def _forgery(scope: Scope, headers: Headers, person: Person | None) -> ASGIApp | None:
    """Refuse a change by cookie without the session's token. Forms bring theirs in the body and check it."""
    if scope["method"] in SAFE_METHODS or person is None or person.via != "session":
        return None
    if not scope["path"].startswith("/api/"):
        return None
    secret = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    if same(headers.get(CSRF_HEADER, ""), csrf_token(secret)):
        return None
    return problem(403, f"a change by cookie needs the header {CSRF_HEADER}: GET /api/v1/session tells it")


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0])[:100] if client else ""
