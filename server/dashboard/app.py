"""The dashboard's process: one HTTPS server for pages and API, beside the coordinator and independent of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import APIRouter, FastAPI
from fastapi.staticfiles import StaticFiles

from certs.checks import kit_warnings, require_usable
from common.errors import UsageError
from common.kit import Kit, is_address
from common.model_file import code_version
from common.web.live import Feed
from common.web.serving import serve as serve_app
from common.web.shield import Shield, nonces_in_nicegui
from server.actions import Actions
from server.dashboard.api import add_api
from server.dashboard.problems import add_problems
from server.dashboard.security import Guard
from server.dashboard.settings import OpenIdSection, read_settings
from server.dashboard.sign_in import Door, add_sign_in
from server.people import People
from server.readmodel import ReadModel
from server.registry import open_registry

LISTEN = "127.0.0.1:9443"
ASSETS = files("common.web") / "static"
log = logging.getLogger("wardround.dashboard")


def make_app(kit: Kit, *, pages: bool = True) -> FastAPI:
    """Return the dashboard of a coordinator's kit: sign-in, API and (one app a process) pages, over its registry.

    Raises UsageError for a wrong `dashboard.toml`, DataError when the registry can't be used.
    """
    settings = read_settings(kit)
    registry = open_registry(kit)
    session = settings.session
    people = People(registry.database, idle=session.idle_minutes * 60.0, longest=session.hours * 3600.0)
    read, actions = ReadModel(registry, kit), Actions(registry, kit, people)
    feed = Feed(read.version)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        registry.close()

    app = FastAPI(title="Ward Round", version=code_version(), docs_url=None, openapi_url=None, lifespan=life)
    app.mount("/static", StaticFiles(directory=str(ASSETS)), name="static")
    add_problems(app)
    doors = APIRouter(include_in_schema=False)
    _add_doors(doors, kit, settings.openid, actions, people)
    app.include_router(doors)
    add_api(app, read, actions, people, feed)
    if pages:
        from server.dashboard.pages.routes import add_pages

        nonces_in_nicegui()
        add_pages(app, read, actions, people, feed, kit.federation)
    app.add_middleware(Guard, people=people)
    app.add_middleware(Shield)
    return app


def _add_doors(router: APIRouter, kit: Kit, openid: OpenIdSection | None, actions: Actions, people: People) -> None:
    if openid is None:
        add_sign_in(router, Door(kit.federation), actions, people)
        return
    from server.dashboard.oidc import Provider
    from server.dashboard.oidc_pages import add_openid

    door = Door(kit.federation, provider=openid.title, passwords=openid.passwords)
    add_sign_in(router, door, actions, people)
    add_openid(router, door, Provider(openid, kit.folder), actions, people)


def serve(kit: Kit, *, listen: str = LISTEN, stop: threading.Event | None = None) -> None:
    """Serve the dashboard over HTTPS with the kit's certificate until the process is told to end, or `stop` is set.

    Raises
    ------
    KitError
        A file of the kit is missing, foreign or damaged, or the certificate has ended.
    UsageError
        `listen` is no HOST:PORT, in use or not this machine's; or `dashboard.toml` is wrong.
    DataError
        The registry can't be used.
    """
    if not is_address(listen):
        raise UsageError(f'--listen: "{listen}" is not HOST:PORT with a port from 1 to 65535')
    require_usable(kit)
    for warning in kit_warnings(kit):
        log.warning("%s", warning)
    host, _, port = listen.rpartition(":")
    serve_app(make_app(kit), host.strip("[]"), int(port), certificate=kit.certificate, key=kit.key, stop=stop)
