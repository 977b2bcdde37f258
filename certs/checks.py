"""Whether a kit can be used: its authority, certificate and key, looked at on this machine only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from certs import pem
from certs.authority import (
    Purpose,
    check_issued,
    common_name,
    days_left,
    expiry_warning,
    fingerprint,
    has_ended,
    organization,
)
from common.errors import KitError
from common.kit import Kit


@dataclass(frozen=True)
class Finding:
    """One line of a preflight: what was looked at, whether it is well, what was found, and what to do if anything."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""


def check_kit(kit: Kit, *, now: datetime | None = None) -> tuple[Finding, ...]:
    """Check the authority's certificate, this node's certificate and key, and who can get at the key, in that order."""
    moment = now or datetime.now(UTC)
    return (
        _finding("authority", lambda: _authority_finding(kit, moment)),
        _finding("certificate", lambda: _certificate_finding(kit, moment)),
        _finding("key", lambda: _key_finding(kit)),
        _finding("permissions", lambda: _permissions_finding(kit)),
    )


def require_usable(kit: Kit, *, now: datetime | None = None) -> None:
    """Check that the kit can be used, before a service starts with it.

    Raises
    ------
    KitError
        With the first thing that is wrong, and what to do.
    """
    for finding in check_kit(kit, now=now):
        if not finding.ok:
            raise KitError(finding.detail)


def kit_warnings(kit: Kit, *, now: datetime | None = None) -> list[str]:
    """Return a line for each of the kit's certificates that ends within a month or has ended.

    Raises
    ------
    KitError
        A certificate is missing or damaged.
    """
    certificates = [
        (pem.read_certificate(kit.authority_certificate), f"the authority of {kit.federation}", _new_federation()),
        (pem.read_certificate(kit.certificate), f"{kit.name}'s certificate", _renewal(kit)),
    ]
    warnings = (expiry_warning(one, whose, remedy, now=now) for one, whose, remedy in certificates)
    return [warning for warning in warnings if warning]


def read_kit_authority(kit: Kit) -> x509.Certificate:
    """Read the kit's ca.crt. Raises KitError unless it is the very authority that kit.toml names by fingerprint."""
    path = kit.authority_certificate
    certificate = pem.read_certificate(path)
    if fingerprint(certificate) != kit.federation_id:
        raise KitError(
            f"{path}: this is not the authority that kit.toml names ({kit.federation_id[:16]}): two kits were mixed; "
            "ask the coordinator for this kit again"
        )
    return certificate


def check_subject(certificate: x509.Certificate, kit: Kit, where: Path) -> None:
    """Raise KitError unless the certificate names this node and its federation."""
    named, federation = common_name(certificate.subject), organization(certificate.subject)
    if (named, federation) != (kit.name, kit.federation):
        raise KitError(
            f'{where}: this certificate is for "{named}" in "{federation}", but the kit {kit.folder} is for '
            f'"{kit.name}" in "{kit.federation}": name the right one'
        )


def check_dates(certificate: x509.Certificate, where: Path, now: datetime) -> None:
    """Raise KitError unless the certificate is in force at `now`."""
    if has_ended(certificate, now):
        raise KitError(
            f"{where}: this certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d}: "
            "the coordinator must renew it"
        )
    if now < certificate.not_valid_before_utc:
        raise KitError(
            f"{where}: this certificate begins only on {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this "
            f"machine's clock says {now:%Y-%m-%d %H:%M} UTC: set the clock right"
        )


def _finding(what: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except KitError as error:
        return Finding(what, ok=False, detail=str(error))
    except OSError as error:
        return Finding(what, ok=False, detail=f"{error.filename}: it can't be read: {error.strerror}")


def _authority_finding(kit: Kit, now: datetime) -> Finding:
    certificate = read_kit_authority(kit)
    if has_ended(certificate, now):
        ended = f"{kit.authority_certificate}: the federation's authority ended on {_day(certificate)}"
        return Finding("authority", ok=False, detail=f"{ended}: {_new_federation()}")
    detail = f"{kit.federation} ({kit.federation_id[:16]}), until {_day(certificate)}"
    return Finding(
        "authority", ok=True, detail=detail, remedy=_warning(certificate, "the authority", _new_federation(), now)
    )


def _certificate_finding(kit: Kit, now: datetime) -> Finding:
    path, purpose = kit.certificate, _purpose(kit)
    if not path.exists():
        return Finding("certificate", ok=False, detail=f"{path}: there is no certificate yet: {_first_step(kit)}")
    certificate = pem.read_certificate(path)
    check_issued(certificate, read_kit_authority(kit), purpose, path)
    check_subject(certificate, kit, path)
    if has_ended(certificate, now):
        detail = f"{path}: this certificate ended on {_day(certificate)}: {_renewal(kit)}"
        return Finding("certificate", ok=False, detail=detail)
    check_dates(certificate, path, now)
    detail = f"until {_day(certificate)} ({days_left(certificate, now)} days)"
    return Finding("certificate", ok=True, detail=detail, remedy=_warning(certificate, "it", _renewal(kit), now))


def _key_finding(kit: Kit) -> Finding:
    if not kit.key.exists():
        return Finding("key", ok=False, detail=f"{kit.key}: there is no key yet: {_first_step(kit)}")
    if pem.public_key_bytes(pem.read_private_key(kit.key)) != pem.public_key_bytes(
        pem.read_certificate(kit.certificate)
    ):
        remedy = "install the certificate that belongs to it" if kit.role == "site" else "restore both from one backup"
        return Finding("key", ok=False, detail=f"{kit.key}: not the key of {kit.certificate.name}: {remedy}")
    return Finding("key", ok=True, detail=f"belongs to {kit.certificate.name}")


def _permissions_finding(kit: Kit) -> Finding:
    if kit.key.exists():
        pem.refuse_if_open_to_others(kit.key)
    if pem.is_open_to_others(kit.folder):
        detail = f"{kit.folder}: other users of this machine can look into the kit: chmod 700 {kit.folder}"
        return Finding("permissions", ok=False, detail=detail)
    return Finding("permissions", ok=True, detail="only the owner can get at the key")


def _purpose(kit: Kit) -> Purpose:
    return "site" if kit.role == "site" else "server"


def _renewal(kit: Kit) -> str:
    if kit.role == "coordinator":
        return "run `wardround kits renew coordinator`, and start the coordinator again"
    return f"ask the coordinator for `wardround kits renew {kit.name}`, and install what comes back"


def _first_step(kit: Kit) -> str:
    """What a kit needs whose key or certificate is not there."""
    if kit.role == "coordinator":
        return "restore the kit from a backup"
    if not kit.key.exists():
        return f"run `wardround site enrol {kit.folder}`"
    return (
        f"send {kit.name}.request.pem to the coordinator, and install what comes back: "
        f"`wardround site enrol {kit.folder} --certificate {kit.name}.crt`"
    )


def _new_federation() -> str:
    return "the coordinator must create a new federation, and every site enrol in it"


def _warning(certificate: x509.Certificate, whose: str, remedy: str, now: datetime) -> str:
    return expiry_warning(certificate, whose, remedy, now=now) or ""


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
