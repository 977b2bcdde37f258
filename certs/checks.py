"""What can be told of a node's certificate and key without the other side."""

from __future__ import annotations

from dataclasses import dataclass

from certs.authority import (
    check_issued,
    common_name,
    days_left,
    expiry_warning,
    fingerprint,
    public_bytes,
    public_key_of,
    read_certificate,
    read_key,
)
from common.errors import KitError
from common.kit import Kit

RENEW = {
    "site": "ask the coordinator for `wardround kits renew {name}`, then run `wardround site enrol --certificate`",
    "coordinator": "run `wardround kits renew coordinator`, and copy server.crt into this kit",
}


@dataclass(frozen=True)
class Finding:
    """One line of a preflight: what was looked at, whether it is right, what was seen, and what to do if not."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""


def check_identity(kit: Kit) -> None:
    """Check all that a node needs before it may start: key, certificate, authority, and that they belong together.

    Raises
    ------
    KitError
        The first thing that is missing, damaged, foreign, open to others, or past its end, with the remedy.
    """
    authority = read_certificate(kit.authority_certificate)
    if fingerprint(authority) != kit.federation_id:
        raise KitError(
            f"{kit.authority_certificate}: not the authority of federation {kit.federation}: use one kit's files"
        )
    if kit.role == "site" and not kit.key.exists():
        raise KitError(f"{kit.key} is missing: run `wardround site enrol {kit.folder}`")
    if kit.role == "site" and not kit.certificate.exists():
        raise KitError(f"{kit.certificate} is missing: run `wardround site enrol {kit.folder} --certificate FILE`")
    key = read_key(kit.key)
    if kit.key.stat().st_mode & 0o077:
        raise KitError(f"{kit.key}: other users of this machine may read the private key: chmod 600 {kit.key}")
    certificate = read_certificate(kit.certificate)
    check_issued(certificate, authority, str(kit.certificate))
    if common_name(certificate.subject) != kit.name:
        raise KitError(f'{kit.certificate}: this is the certificate of "{common_name(certificate.subject)}"')
    if public_bytes(public_key_of(certificate, str(kit.certificate))) != public_bytes(key.public_key()):
        raise KitError(f"{kit.certificate}: does not belong to {kit.key}")
    if days_left(certificate) < 0:
        raise KitError(
            f"{kit.certificate}: {expiry_warning(certificate, kit.name, RENEW[kit.role].format(name=kit.name))}"
        )


def identity_warning(kit: Kit) -> str:
    """Return one line when this node's certificate ends within a month, else nothing. Raises KitError."""
    return expiry_warning(read_certificate(kit.certificate), kit.name, RENEW[kit.role].format(name=kit.name))
