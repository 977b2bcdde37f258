"""What stands in front of every page and of the API: headers, limits and the check of where a request is from.

References: OWASP's cheat sheets on HTTP headers and cross-site request forgery; W3C Content Security Policy Level 3.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from http import HTTPStatus

from jinja2 import BaseLoader, Environment
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("wardround.web")
LARGEST_BODY = 1_000_000
"""Bytes of a request's body: a job with its notes is far smaller."""
TOO_LARGE = f"the request is larger than {LARGEST_BODY:,} bytes"
LONGEST_TARGET = 8_000
"""Bytes of a path with its query."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
STATIC = ("/_nicegui/", "/static/")
"""Paths of files that come with the program: public, and the same for everybody."""
HEADERS = {
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Shield:
    """ASGI middleware: refuses what is too large, malformed or from another site's page; adds headers to what goes out.

    Scripts run only from this server's files, or with the page's own nonce (`request.state.nonce`); NiceGUI needs
    "unsafe-eval" besides, for Vue compiles its templates in the browser.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or socket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})["nonce"] = nonce = secrets.token_urlsafe(16)
        scope["headers"] = [
            pair for pair in scope["headers"] if pair[0] != b"x-forwarded-prefix"
        ]  # NiceGUI believes it
        refusal = _refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal:
                await send({"type": "websocket.close", "code": 4403, "reason": refusal[1]})
                return
            await self._app(scope, receive, send)
            return
        host, begun = headers.get("host", ""), False

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                _add_headers(MutableHeaders(scope=message), scope["path"], host, nonce)
            await send(message)

        if refusal:
            await problem(*refusal)(scope, receive, with_headers)
            return
        try:
            await self._app(scope, _limited(receive), with_headers)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not begun:
                await problem(500, "this is a defect: the dashboard's log says more")(scope, receive, with_headers)


def problem(
    status: int, detail: str, headers: dict[str, str] | None = None, *, faults: Sequence[str] = ()
) -> JSONResponse:
    """Return an error as RFC 9457 has it: one line that says what is wrong and what to do, and `faults` if several."""
    title = HTTPStatus(status).phrase
    content: dict[str, object] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if faults:
        content["faults"] = list(faults)
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def is_from_here(headers: Headers, *, must_say: bool = False) -> bool:
    """Whether a browser says that the request is from this server's own page; `must_say`: silence does not do."""
    origin = headers.get("origin")
    if origin is not None:
        return origin in (f"https://{headers.get('host', '')}", f"http://{headers.get('host', '')}")
    fetched = headers.get("sec-fetch-site")
    return fetched in ("same-origin", "none") if fetched is not None else not must_say


class NonceLoader(BaseLoader):
    """Loads templates, and gives the scripts that are written in them the page's nonce.

    What is put into a template later has none: a script that somebody smuggles in does not run.
    """

    def __init__(self, loader: BaseLoader) -> None:
        self._loader = loader

    def get_source(self, environment: Environment, template: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Return the template's text, file and whether it is up to date."""
        text, file, fresh = self._loader.get_source(environment, template)
        return text.replace("<script", '<script nonce="{{ request.state.nonce }}"'), file, fresh


def nonces_in_nicegui() -> None:
    """Let NiceGUI's own page have nonces. Call it once, before the first page."""
    from nicegui import client

    environment = client.templates.env
    if environment.loader is not None and not isinstance(environment.loader, NonceLoader):
        environment.loader = NonceLoader(environment.loader)
        if environment.cache is not None:
            environment.cache.clear()


def nonce_of(request: Request) -> str:
    """Return the nonce that a page's own inline script must have."""
    return str(request.state.nonce)


def _refusal(scope: Scope, headers: Headers) -> tuple[int, str] | None:
    target = scope.get("raw_path", b"") + scope.get("query_string", b"")
    if len(target) > LONGEST_TARGET:
        return 414, "the address is too long"
    if b"%00" in target or "\0" in scope["path"]:
        return 400, "the address holds a zero byte"
    if scope["type"] == "websocket" or scope["path"].startswith("/_nicegui_ws/"):
        if not is_from_here(headers, must_say=True):
            return 403, "this comes from another site's page"
    elif scope["method"] not in SAFE_METHODS and not is_from_here(headers):
        return 403, "this comes from another site's page"
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:12]) > LARGEST_BODY:
        return 413, TOO_LARGE
    return None


def _limited(receive: Receive) -> Receive:
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > LARGEST_BODY:
            raise HTTPException(413, TOO_LARGE)
        return message

    return limited


def _add_headers(headers: MutableHeaders, path: str, host: str, nonce: str) -> None:
    for name, value in HEADERS.items():
        headers[name] = value
    if not path.startswith(STATIC):
        headers["Cache-Control"] = "no-store"
    headers["Content-Security-Policy"] = "; ".join(
        _page_policy(host, nonce)
        if headers.get("content-type", "").startswith("text/html")
        else ("default-src 'none'", "frame-ancestors 'none'")
    )


def _page_policy(host: str, nonce: str) -> Iterable[str]:
    sockets = f" wss://{host}" if host.replace(".", "").replace(":", "").replace("-", "").isalnum() else ""
    return (
        "default-src 'none'",
        f"script-src 'self' 'nonce-{nonce}' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        f"connect-src 'self'{sockets}",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
