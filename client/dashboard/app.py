"""The process of the hospital's page: loopback, a link with a secret, and the pages."""

from __future__ import annotations

import csv
import io
import logging
import ssl
from dataclasses import asdict, fields
from pathlib import Path

from cryptography import x509
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse
from nicegui import ui

from client.dashboard import audit, jobs, pages
from client.dashboard.access import Gate, hosts_of, new_secret
from client.dashboard.desk import Desk
from client.dashboard.readmodel import SiteReadModel
from client.releases import Release
from common.errors import NotFoundError, UsageError, WardroundError
from common.files import write_atomically
from common.kit import Kit
from common.web.frame import add_assets
from common.web.live import Feed
from common.web.serving import LOOPBACK, serve
from common.web.shield import Shield, nonces_in_nicegui

log = logging.getLogger("wardround.site")


def make_app(kit: Kit, *, secret: str, hosts: frozenset[str], secure: bool = False) -> FastAPI:
    """Return the application over a site's kit, for who has the `secret`. `hosts` are the names it answers to."""
    read = SiteReadModel(kit)
    app = FastAPI(title="Ward Round site", docs_url=None, redoc_url=None, openapi_url=None)
    add_assets(app)
    _add_files(app, read)
    desk = Desk(read, Feed(read.version))
    for module in (pages, jobs, audit):
        module.add(desk)
    nonces_in_nicegui()
    ui.run_with(
        app,
        title="Ward Round",
        dark=None,
        tailwind=False,
        binding_refresh_interval=None,
        reconnect_timeout=30.0,
        show_welcome_message=False,
    )
    app.add_middleware(Gate, secret=secret, hosts=hosts, secure=secure)
    app.add_middleware(Shield)
    return app


def serve_site(
    kit: Kit, host: str, port: int, *, certificate: Path | None, key: Path | None, link_file: Path | None
) -> None:
    """Serve the page until the process is told to end; the link to it is printed, or written to `link_file` (0600).

    Raises UsageError: the port is in use, the certificate can't be used, or there is none for an address that others
    reach.
    """
    if host not in LOOPBACK and certificate is None:
        raise UsageError(f"{host}: others can reach this address: give --certificate and --key, or listen on 127.0.0.1")
    secret, names = new_secret(), _names(certificate, key)
    scheme = "https" if certificate else "http"
    link = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/?token={secret}"
    app = make_app(kit, secret=secret, hosts=hosts_of(host, port, names), secure=certificate is not None)
    if link_file is not None:
        write_atomically(link_file, f"{link}\n".encode(), mode=0o600)
    else:
        log.info("open this link, which is for you alone: %s", link)
    serve(app, host, port, certificate=certificate, key=key)


def _names(certificate: Path | None, key: Path | None) -> tuple[str, ...]:
    """The names that a certificate is for; it is tried with its key first. Raises UsageError."""
    if certificate is None or key is None:
        return ()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        found = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise UsageError(f"{certificate}: this certificate can't be used with {key}: {error}") from error
    return (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))


def _add_files(app: FastAPI, read: SiteReadModel) -> None:
    @app.get("/releases.csv")
    def releases() -> PlainTextResponse:
        """Everything that left, as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Release)])
        writer.writeheader()
        for one in read.releases():
            writer.writerow(asdict(one) | {"fields": " ".join(one.fields)})
        return PlainTextResponse(
            text.getvalue(),
            media_type="text/csv",
            headers={"Content-Disposition": 'attachment; filename="releases.csv"'},
        )

    @app.get("/report.html")
    def report() -> HTMLResponse:
        """The report for a data protection officer."""
        from client.papers import make_report
        from client.rendering import render

        return HTMLResponse(render(make_report(read.kit), "html"))

    @app.get("/quality/{collection}")
    def quality(collection: str) -> HTMLResponse:
        """The quality report that the newest import of a collection left."""
        return HTMLResponse(read.quality(collection))

    @app.exception_handler(WardroundError)
    def told(_: object, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(str(error), 404 if isinstance(error, NotFoundError) else 503)
