"""Who the PACS is, and how it is known to be that: "AE@HOST:PORT" or a URL, TLS, and a secret."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import UsageError
from common.files import read_text
from common.kit import is_address

SECRET_VARIABLE = "WARDROUND_PACS_SECRET"  # noqa: S105 - the variable's name
_TITLE = re.compile(r"(?=.*[^ ])[ -\[\]-~]{1,16}")  # PS3.5 6.2, AE: printable ASCII, no backslash, not only spaces


@dataclass(frozen=True)
class Peer:
    """An application entity that speaks DIMSE: its AE title, host and port."""

    ae_title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Tls:
    """TLS files, PEM: who is trusted (None: whom the machine trusts), and the own certificate with its key, if any."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for a certificate without a key, a key without a certificate, or a missing file."""
        if (self.certificate is None) != (self.key is None):
            raise UsageError("--certificate and --key go together")
        for path in (self.ca, self.certificate, self.key):
            if path is not None and not path.is_file():
                raise UsageError(f"{path}: there is no such file: name a PEM file")

    def to_pacs(self) -> ssl.SSLContext:
        """Return the context that connects: the PACS must show a certificate that is trusted, for its host's name."""
        return self._loaded(ssl.create_default_context(ssl.Purpose.SERVER_AUTH))

    def to_listen(self) -> ssl.SSLContext:
        """Return the context that listens; with `ca`, who connects must show a certificate that it signed."""
        if self.certificate is None:
            raise UsageError("to listen with TLS takes a certificate of this machine's: --certificate and --key")
        context = self._loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        path = self.ca
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            path = self.certificate
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise UsageError(
                f"{path}: it can't be used for TLS: name PEM files, and a certificate's own key without a passphrase"
            ) from error
        return context


@dataclass(frozen=True, repr=False)
class Secret:
    """What a DICOMweb server wants to know: a user's password, or, without a user, a bearer token."""

    user: str | None
    text: str


def read_peer(text: str) -> Peer:
    """Read "AE@HOST:PORT". Raises UsageError."""
    title, _, address = text.rpartition("@")
    if not title or not is_address(address):
        raise UsageError(f'"{text}" is not AE@HOST:PORT, as in ORTHANC@pacs.example.org:4242')
    host, _, port = address.rpartition(":")
    return Peer(checked_title(title), host.strip("[]"), int(port))


def checked_title(title: str) -> str:
    """Return an AE title as it is. Raises UsageError for one that DICOM does not allow."""
    if not _TITLE.fullmatch(title):
        raise UsageError(f'"{title}" is no AE title: 1 to 16 letters, digits and marks, no backslash')
    return title.strip()


def checked_url(text: str, secret: Secret | None) -> str:
    """Return a DICOMweb service's URL, without a "/" at its end.

    Raises
    ------
    UsageError
        It is no http(s) URL, holds credentials, or would carry the secret unencrypted to another machine.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.username or parts.password:
        raise UsageError(
            f"a URL that holds a password is seen by others: --user, and --secret-file or {SECRET_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not host or ":" in host or parts.query or parts.fragment:
        raise UsageError(f'"{text}" is no URL of a DICOMweb service, as in https://pacs.example.org/dicom-web')
    if secret is not None and parts.scheme == "http" and not is_loopback(host):
        raise UsageError(f"{text}: a secret must not travel without TLS: use https")
    return text.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this very machine, by its name or address alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_secret(user: str | None, file: Path | None) -> Secret | None:
    """Return the secret in `file`, else in the environment; None where there is neither.

    Raises UsageError when the file can't be read or is empty, or a user has no password.
    """
    if file is not None:
        try:
            text = read_text(file).strip()
        except OSError as error:
            raise UsageError(f"{file}: the secret can't be read: {error.strerror}") from error
        if not text:
            raise UsageError(f"{file}: there is no secret in it")
    else:
        text = os.environ.get(SECRET_VARIABLE, "")
    if not text and user is not None:
        raise UsageError(f"--user needs a password: by --secret-file, or in {SECRET_VARIABLE}")
    if not text.isprintable():
        raise UsageError("the secret is not one line of text")
    return Secret(user, text) if text else None
