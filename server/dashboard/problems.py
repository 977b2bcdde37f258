"""Errors as answers: each class of `common.errors` has a status, its one line is the problem's detail (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from common.errors import (
    DataError,
    ForbiddenError,
    LinkError,
    NotFoundError,
    SignInError,
    SlowDownError,
    UsageError,
    WardroundError,
)
from common.web.shield import problem

STATUS: Mapping[type[WardroundError], int] = {
    SlowDownError: 429,
    SignInError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    UsageError: 422,
    DataError: 503,
    LinkError: 503,
    WardroundError: 409,
}
"""The status of each error; an error that is not here has that of the nearest class above it."""


def add_problems(app: FastAPI) -> None:
    """Let `app` answer every error of ours, and of what it was sent, with one line in `application/problem+json`."""
    app.add_exception_handler(WardroundError, _ours)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _other)


def status_of(error: WardroundError) -> int:
    """Return the HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def _ours(_: Request, error: Exception) -> Response:
    if not isinstance(error, WardroundError):
        raise error
    headers = {}
    if isinstance(error, SlowDownError):
        headers["Retry-After"] = str(error.wait)
    elif isinstance(error, SignInError):
        headers["WWW-Authenticate"] = "Bearer"
    lines = str(error).splitlines() or [""]
    more = f" (and {len(lines) - 1} more)" if lines[1:] else ""
    return problem(status_of(error), lines[0] + more, headers, faults=lines if more else ())


def _malformed(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return problem(422, "; ".join(_fault(fault) for fault in error.errors()[:5]))


def _fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"] if part != "body") or "the body"
    given = fault.get("input")
    shown = "" if fault["type"] == "missing" or not isinstance(given, str | int | float) else f", got {_short(given)}"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}{shown}"


def _short(value: object) -> str:
    text = json.dumps(value)  # escaped: whatever came, the answer can be written
    return text if len(text) <= 80 else f"{text[:76]}..."


def _other(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path[:200]}"
    return problem(error.status_code, detail, dict(error.headers or {}))
