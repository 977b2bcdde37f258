"""A look at the coordinator's door from outside: what is told apart here, gRPC calls "unavailable"."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from common.errors import LinkError
from common.kit import Kit

TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class LinkReport:
    """What a probe of the coordinator saw: TLS version, ALPN protocol, the end of the server's certificate."""

    tls: str
    alpn: str
    server_certificate_ends: str


def probe(kit: Kit) -> LinkReport:
    """Open a TLS connection to the coordinator and look at it, without the site's key.

    Raises
    ------
    LinkError
        The coordinator can't be reached, speaks no TLS, or its certificate is of another authority, for another name,
        or past its end: each with its own line.
    """
    host, _, port = kit.address.rpartition(":")
    host = host.strip("[]")
    context = ssl.create_default_context(cafile=str(kit.authority_certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=host) as secure:
                    certificate = secure.getpeercert() or {}
                    ends = str(certificate.get("notAfter", ""))
                    return LinkReport(secure.version() or "", secure.selected_alpn_protocol() or "", ends)
            except ssl.SSLCertVerificationError as error:
                raise LinkError(_certificate_problem(kit, error)) from error
            except (ssl.SSLError, ConnectionError, TimeoutError) as error:
                raise LinkError(
                    f"{kit.address} does not speak TLS: is it the coordinator of {kit.federation}?"
                ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise LinkError(f"the coordinator at {kit.address} can't be reached ({reason.lower()})") from error


def _certificate_problem(kit: Kit, error: ssl.SSLCertVerificationError) -> str:
    reason = error.verify_message
    if "expired" in reason:
        return f"the certificate of {kit.address} has ended: the coordinator must renew it (kits renew coordinator)"
    if "mismatch" in reason or "not valid for" in reason:
        return f"the certificate of {kit.address} is for another name: {reason}"
    return (
        f"{kit.address} is not the coordinator of {kit.federation}: another authority signed its certificate ({reason})"
    )
