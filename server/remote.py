"""A coordinator on another machine, by the API of its dashboard: what `run`, `runs` and `sites` need of a registry.

It is used when `--server` or `WARDROUND_SERVER` names one; the token is in `WARDROUND_TOKEN`, so that it is in no list
of processes and in no shell's history.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import TypeAdapter, ValidationError

from common.errors import (
    DataError,
    ForbiddenError,
    LinkError,
    NotFoundError,
    RunError,
    SignInError,
    SlowDownError,
    UsageError,
    WardroundError,
)
from server.follow import UNDER_WAY
from server.records import CoordinatorSeen, RoundRecord, RunDetail, RunSummary, SiteSeen
from server.views import Federation, Listing, RunLine

SERVER, TOKEN, AUTHORITY = "WARDROUND_SERVER", "WARDROUND_TOKEN", "WARDROUND_CA"
TIMEOUT_SECONDS = 60.0
PAGE = 500
T = TypeVar("T")
ERRORS: Mapping[int, type[WardroundError]] = {
    401: SignInError,
    403: ForbiddenError,
    404: NotFoundError,
    409: RunError,
    422: UsageError,
    503: DataError,
}


def find_remote(server: str | None, ca: Path | None) -> Remote | None:
    """Return the coordinator that `--server` and `--ca` or the environment name; None when none is named.

    Raises UsageError for an address that is none, without a token, or for an authority that can't be read.
    """
    address = server or os.environ.get(SERVER)
    if not address:
        return None
    token = os.environ.get(TOKEN)
    if not token:
        raise UsageError(
            f"{address}: set {TOKEN} to a token: wardround people token NAME, or the dashboard's People page"
        )
    authority = ca or (Path(os.environ[AUTHORITY]) if os.environ.get(AUTHORITY) else None)
    return Remote(address, token, authority)


class Remote:
    """The coordinator behind the API at `server` ("https://host:9443"), asked with `token`.

    Every method raises LinkError when it can't be reached, SignInError or ForbiddenError when the token does not do,
    and otherwise as the registry's method of the same name.
    """

    def __init__(self, server: str, token: str, ca: Path | None = None) -> None:
        """Check the address and read the authority `ca` (PEM; the system's without one). Asks nothing yet."""
        parts = urlsplit(server)
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
            raise UsageError(f'"{server}" is no address of a dashboard: write https://HOST:9443')
        self.server = server.rstrip("/")
        try:
            verify = ssl.create_default_context(cafile=ca) if ca else ssl.create_default_context()
        except OSError as error:
            raise UsageError(
                f"{ca}: the authority can't be read: {error.strerror or 'it is no certificate'}"
            ) from error
        headers = {"Authorization": f"Bearer {token.strip()}"}
        self._client = httpx.Client(
            base_url=self.server, verify=verify, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False
        )
        self._known: dict[str, tuple[RoundRecord, ...]] = {}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def start(self, toml: str) -> str:
        """Ask for a run of the job in `toml`; return its name. Raises UsageError with every fault of the job."""
        return str(self._ask("POST", "/runs", json={"toml": toml})["run"])

    def stop(self, name: str) -> None:
        """Ask for a run to stop."""
        self._ask("POST", f"/runs/{quote(name, safe='')}/stop")

    def resume(self, name: str) -> None:
        """Let a run go on after its last committed round."""
        self._ask("POST", f"/runs/{quote(name, safe='')}/resume")

    def find(self, start: str) -> str:
        """Return the one run whose name is `start` or begins with it."""
        names = [run.name for run in self._runs(start) if run.name.startswith(start)]
        found = [name for name in names if name == start] or names
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f'"{start}" may be any of {", ".join(found[:5])}: write more of the name')
        raise NotFoundError(f'there is no run "{start}" at {self.server}: see `wardround runs`')

    def list_runs(self) -> list[RunSummary]:
        """Return all runs, the newest first."""
        return [_summary(run) for run in self._runs("")]

    def summary(self, name: str) -> RunSummary:
        """Return one run in a line."""
        return _summary(_read(RunLine, self._ask("GET", f"/runs/{quote(name, safe='')}")["line"]))

    def run_detail(self, name: str) -> RunDetail:
        """Return everything that is kept of a run; of one under way, only new rounds are asked for."""
        known = self._known.get(name, ())
        detail = self._detail(name, len(known))
        if detail.summary.status not in UNDER_WAY and known:
            known, detail = (), self._detail(name, 0)  # an evaluation may have taken another's place
        whole = known + detail.rounds
        while len(detail.rounds) == PAGE:
            detail = self._detail(name, len(whole))
            whole += detail.rounds
        self._known[name] = whole
        models = tuple(replace(model, path=f"{self.server}{model.path}") for model in detail.models)
        return replace(detail, rounds=whole, models=models)

    def coordinator(self) -> CoordinatorSeen | None:
        """Return the coordinator's last sign of life, by the clock here; None when it does not run, by its own."""
        found = self._federation()
        if not found.coordinator_running or found.heartbeat is None:
            return None
        return CoordinatorSeen(0, self.server, found.coordinator_started or found.heartbeat, time.time())

    def list_sites(self) -> list[SiteSeen]:
        """Return the sites as they are now, by name."""
        gone = ("away", "never seen")
        return [
            SiteSeen(site.name, site.certificate_ends, site.state not in gone, site.last_seen)
            for site in self._federation().sites
        ]

    def _federation(self) -> Federation:
        return _read(Federation, self._ask("GET", "/federation"))

    def _runs(self, text: str) -> list[RunLine]:
        found: list[RunLine] = []
        while True:
            query = {"text": text, "offset": len(found), "limit": PAGE}
            page = _read(Listing[RunLine], self._ask("GET", "/runs", params=query))
            found += page.items
            if not page.items or len(found) >= page.total:
                return found

    def _detail(self, name: str, offset: int) -> RunDetail:
        query = {"offset": offset, "limit": PAGE}
        return _read(RunDetail, self._ask("GET", f"/runs/{quote(name, safe='')}/detail", params=query))

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, f"/api/v1{path}", **arguments)
        except httpx.ConnectError as error:
            remedy = (
                "name its authority with --ca (ca.crt of any kit)" if "CERTIFICATE" in str(error) else "is it running?"
            )
            raise LinkError(f"{self.server}: can't be reached: {_first_line(error)}; {remedy}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LinkError(f"{self.server}: the line broke: {_first_line(error)}") from error
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise LinkError(f"{self.server}: this is no dashboard of Ward Round (it answers {answer.status_code})")
        if answer.is_error:
            raise _error(answer, told, self.server)
        return told


def _error(answer: httpx.Response, told: Mapping[str, Any], server: str) -> WardroundError:
    detail = "\n".join(str(line) for line in told.get("faults") or [told.get("detail", "")])
    if answer.status_code == 429:
        return SlowDownError(detail, int(answer.headers.get("retry-after", "60")))
    if answer.status_code not in ERRORS:
        return LinkError(f"{server} answers {answer.status_code}: {detail}")
    if answer.status_code == 401:
        detail = f"{server} does not know the token in {TOKEN}: it is wrong, has ended, or was revoked"
    return ERRORS[answer.status_code](detail)


def _read(kind: type[T], told: object) -> T:
    try:
        found: T = TypeAdapter(kind).validate_python(told)
    except ValidationError as error:
        raise LinkError("the dashboard is of another version of Ward Round: install the same here") from error
    return found


def _summary(run: RunLine) -> RunSummary:
    return _read(RunSummary, {name: getattr(run, name) for name in RunSummary.__dataclass_fields__})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
