"""Serving a web application: HTTPS or loopback, ended in good order, a port in use told in one line."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from common.errors import UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_SECONDS = 3
log = logging.getLogger("wardround.web")


def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve `app` until SIGINT or SIGTERM comes, or `stop` is set. With a certificate: HTTPS, TLS 1.2 or later.

    Raises UsageError when the port is in use or the address is not this machine's, or without a certificate on an
    address that others reach.
    """
    if certificate is None and host not in LOOPBACK:
        raise UsageError(f"{host}: pages without HTTPS are served on this machine only: listen on 127.0.0.1")
    listening = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever asks could claim any address
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ws_max_size=1_000_000,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    server = uvicorn.Server(config)
    if stop is not None:
        threading.Thread(target=_end, args=(server, stop), daemon=True).start()
    scheme = "http" if certificate is None else "https"
    log.info("pages at %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, listening.getsockname()[1])
    with listening:
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise UsageError(f"{host}:{port}: {why}: choose another with --listen") from error
    return listening


def _end(server: uvicorn.Server, stop: threading.Event) -> None:
    stop.wait()
    server.should_exit = True
