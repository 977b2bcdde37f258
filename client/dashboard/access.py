"""Who may see the hospital's page: whoever has the link that was printed when it was started.

A machine has several users, and any page on the web can make a browser ask loopback for something. So there is a
secret, made anew at each start and exchanged once for a cookie; requests must be for this address by name (a name that
resolves to loopback by a trick, DNS rebinding, is refused); and `common.web.shield` refuses requests from other pages.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from common.web.shield import STATIC, problem

COOKIE = "wardround-site"
LATER = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Ward Round</title>
<link rel="stylesheet" href="/static/theme.css"></head><body><main><h1>This page needs its link</h1>
<p>Open the link that <code>wardround site dashboard</code> printed when it was started: it holds a secret that is made
anew each time.</p></main></body></html>"""


class Gate:
    """ASGI middleware: lets in who has the `secret`, in the first link or in the cookie that it is exchanged for."""

    def __init__(self, app: ASGIApp, *, secret: str, hosts: frozenset[str], secure: bool) -> None:
        self._app, self._secret, self._hosts, self._secure = app, secret, hosts, secure
        self._cookie = hashlib.sha256(f"cookie {secret}".encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or socket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self._hosts:
            await self._refuse(scope, receive, send, 421, "this page is not served under this name")
        elif scope["path"].startswith(STATIC) or _same(_cookie(headers), self._cookie):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4401, "reason": "open the link again"})
        elif _same(_token(scope), self._secret):
            await self._let_in(scope, receive, send)
        else:
            await HTMLResponse(LATER, 401)(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = RedirectResponse(scope["path"], 303)  # without the secret: it must not stay in the history
        response.set_cookie(COOKIE, self._cookie, httponly=True, samesite="strict", secure=self._secure)
        await response(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4403, "reason": why})
        else:
            await problem(status, why)(scope, receive, send)


def new_secret() -> str:
    """Return a secret of 256 bits."""
    return secrets.token_urlsafe(32)


def hosts_of(host: str, port: int, names: tuple[str, ...] = ()) -> frozenset[str]:
    """Return what a browser may name in Host for a server at `host`: its address, its names, and loopback's for it."""
    loopback = ("127.0.0.1", "localhost", "[::1]")
    found = {f"[{host}]" if ":" in host else host, *names}
    if found & {*loopback}:
        found |= {*loopback}
    return frozenset(f"{name}:{port}" for name in found) | frozenset(found if port in (80, 443) else ())


def _cookie(headers: Headers) -> str:
    return str(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))


def _token(scope: Scope) -> str:
    found = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
    return str(found[0])


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())
