"""The roster: the certificates of the sites that are admitted, one file each, as the coordinator reads them.

roster/NAME.crt                    admitted
roster/replaced/NAME-SERIAL.crt    an earlier certificate of a site that was renewed
roster/revoked/NAME-SERIAL.crt     revoked: its key is never admitted again
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from certs.authority import check_issued, common_name
from certs.pem import public_key_bytes, read_certificate
from common.errors import KitError

REPLACED, REVOKED = "replaced", "revoked"


@dataclass(frozen=True)
class AdmittedSite:
    """A site on the roster.

    `public_key` is its key as SubjectPublicKeyInfo PEM, as Flower's `public_key_to_bytes` gives it; `not_after` (UTC)
    is when its certificate ends; `serial` is the certificate's serial number.
    """

    name: str
    public_key: bytes
    not_after: datetime
    serial: int

    @property
    def expired(self) -> bool:
        """Whether its certificate has ended: such a site is to be turned away until it is renewed."""
        return self.not_after < datetime.now(UTC)


def read_roster(roster: Path) -> dict[str, AdmittedSite]:
    """Read who is admitted, by name, in the names' order. The authority is the ca.crt beside the roster.

    A site whose certificate has ended is there too, and says so (`AdmittedSite.expired`).

    Raises
    ------
    KitError
        There is no roster, or a file in it is no certificate, is not the authority's, or is not of the site that it is
        named after.
    """
    authority = read_certificate(roster.parent / "ca.crt")
    return {name: _admitted(name, certificate) for name, certificate in read_entries(roster, authority).items()}


def read_entries(roster: Path, authority: x509.Certificate) -> dict[str, x509.Certificate]:
    """Read the certificates on the roster, by the sites' names. Raises KitError as `read_roster` does."""
    found = {}
    for path in _certificates_in(roster):
        try:
            certificate = read_certificate(path)
        except KitError:
            if path.exists():
                raise
            continue  # revoked between the listing and now
        check_issued(certificate, authority, "site", path)
        if common_name(certificate.subject) != path.stem:
            raise KitError(
                f'{path}: this is the certificate of "{common_name(certificate.subject)}": a file on the roster has '
                "the name of its site; remove it and admit the site again"
            )
        found[path.stem] = certificate
    return found


def revoked_certificates(roster: Path) -> list[x509.Certificate]:
    """Read every certificate that was revoked. Raises KitError if one is damaged."""
    folder = roster / REVOKED
    return [read_certificate(path) for path in _certificates_in(folder)] if folder.is_dir() else []


def serial_name(certificate: x509.Certificate, stem: str) -> str:
    """Return the file name under which a certificate is kept when it is no longer in use."""
    return f"{stem}-{certificate.serial_number:x}.crt"


def _certificates_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".crt" and not path.name.startswith("."))
    except OSError as error:
        raise KitError(f"{folder}: the roster can't be read: {error.strerror}: is this a coordinator's kit?") from error


def _admitted(name: str, certificate: x509.Certificate) -> AdmittedSite:
    return AdmittedSite(
        name=name,
        public_key=public_key_bytes(certificate),
        not_after=certificate.not_valid_after_utc,
        serial=certificate.serial_number,
    )
