"""Letting a site in, renewing its certificate, and putting it out: each touches that one site's files only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import (
    NODE_DAYS,
    Authority,
    check_issued,
    common_name,
    issue_server,
    issue_site,
    organization,
    organizational_unit,
    read_authority,
)
from certs.layout import KitsFolder
from certs.pem import certificate_bytes, read_certificate, read_request
from certs.roster import REPLACED, REVOKED, read_entries, revoked_certificates, serial_name
from certs.storage import PRIVATE_FOLDER, disk_errors_in_words, one_writer, write_together
from common.errors import KitError
from common.federation import COORDINATOR_NAME


def admit(kits: Path, request: Path, *, days_valid: int = NODE_DAYS, now: datetime | None = None) -> Path:
    """Admit a site: issue a certificate for the key in its request, and put it on the roster.

    An older NAME.crt beside the request is kept under its serial number.

    Returns
    -------
    Path
        NAME.crt beside the request: send it back to the hospital.

    Raises
    ------
    KitError
        The request is damaged, not signed by its own key, or of another federation; its site is not in the federation
        or is admitted already; or its key was revoked or is another site's.
    WardroundError
        The disk is full or a folder can't be written; nothing was changed.
    """
    layout = KitsFolder.at(kits)
    with one_writer(layout.authority):
        authority = read_authority(layout.authority)
        name, key = _read_valid_request(request, authority)
        _refuse_unknown(name, layout.federation().site_names, request)
        admitted = read_entries(layout.roster, authority.certificate)
        if name in admitted:
            ends = admitted[name].not_valid_after_utc
            raise KitError(
                f"{name} is admitted already, until {ends:%Y-%m-%d}: "
                f"renew it with `wardround kits renew {name} --request {request}`, or revoke it first"
            )
        _refuse_taken_key(key, name, admitted, layout.roster, request)
        certificate = issue_site(authority, name, key, days_valid=days_valid, now=now)
        return _hand_out(certificate, name, request.parent, layout.roster)


def renew(
    kits: Path, name: str, request: Path | None = None, *, days_valid: int = NODE_DAYS, now: datetime | None = None
) -> Path:
    """Issue a new certificate for a site that is on the roster, or (name "coordinator") for the coordinator.

    Without a request the key stays; with one, its key takes the place of the old, which is then no longer admitted. The
    coordinator's certificate takes its names and addresses from authority/federation.toml; its key stays. (Sites
    hold only the authority's certificate, and ask no revocation list: a server key that leaked means a new federation.)

    Returns
    -------
    Path
        The new certificate: NAME.crt beside the request, or without one in the site's kit in `kits`. For the
        coordinator, its server.crt.

    Raises
    ------
    KitError
        The site is not on the roster, or the request is one that `admit` would refuse.
    WardroundError
        The disk is full or a folder can't be written; nothing was changed.
    """
    layout = KitsFolder.at(kits)
    with one_writer(layout.authority):
        authority = read_authority(layout.authority)
        if name == COORDINATOR_NAME:
            if request is not None:
                raise KitError(f"{request}: the coordinator's key is in its kit: renew it without a request")
            return _renew_server(layout, authority, days_valid, now)
        admitted = read_entries(layout.roster, authority.certificate)
        _refuse_unlisted(name, admitted, layout.roster)
        key = _key_of(admitted[name])
        if request is not None:
            requested, key = _read_valid_request(request, authority)
            if requested != name:
                raise KitError(f'{request}: this is the request of "{requested}", not of "{name}"')
        _refuse_taken_key(key, name, admitted, layout.roster, request or layout.roster / f"{name}.crt")
        certificate = issue_site(authority, name, key, days_valid=days_valid, now=now)
        return _hand_out(certificate, name, request.parent if request else layout.sites / name, layout.roster)


def revoke(kits: Path, name: str) -> Path:
    """Take a site off the roster for good: its key is never admitted again. It may enrol anew with a new key.

    Returns
    -------
    Path
        Where its certificate is kept from now on.

    Raises
    ------
    KitError
        The site is not on the roster.
    WardroundError
        The folder can't be written; nothing was changed.
    """
    layout = KitsFolder.at(kits)
    if name == COORDINATOR_NAME:
        raise KitError("the coordinator can't be revoked: sites trust the authority; create a new federation instead")
    with one_writer(layout.authority):
        # Only the one entry is read: a damaged one of another site must not stand in the way of putting this one out.
        _refuse_unlisted(name, [path.stem for path in layout.roster.glob("*.crt")], layout.roster)
        entry = layout.roster / f"{name}.crt"
        kept = layout.roster / REVOKED / serial_name(read_certificate(entry), name)
        with disk_errors_in_words(kept):
            kept.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            entry.rename(kept)
    return kept


def _read_valid_request(path: Path, authority: Authority) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Return the name and the key that a request asks a certificate for. Raises KitError if it is not a good one."""
    request = read_request(path)
    key = request.public_key()
    if not request.is_signature_valid:
        raise KitError(f"{path}: the request is not signed by its own key: it was changed on the way; ask for it again")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KitError(f"{path}: the key is not one on the curve P-384: make the request with `wardround site enrol`")
    if (organization(request.subject), organizational_unit(request.subject)) != (
        authority.federation,
        authority.federation_id,
    ):
        theirs = organization(request.subject) or "none"
        raise KitError(
            f"{path}: this request was made with a kit of another federation ({theirs}, "
            f"{organizational_unit(request.subject)[:16] or 'no id'}), not of this one ({authority.federation}, "
            f"{authority.federation_id[:16]}): give the hospital its kit of this federation, and let it enrol with that"
        )
    return common_name(request.subject), key


def _refuse_unknown(name: str, known: Iterable[str], where: Path) -> None:
    if name not in known:
        raise KitError(
            f'{where}: there is no site "{name}" in this federation{_nearest(name, known)}: '
            f"add it first, with `wardround kits add-site {name}`"
        )


def _refuse_unlisted(name: str, admitted: Iterable[str], roster: Path) -> None:
    if name not in admitted:
        raise KitError(
            f'"{name}" is not on the roster ({roster}){_nearest(name, admitted)}: '
            "`wardround kits list` says who is; admit it with its request"
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _refuse_taken_key(
    key: ec.EllipticCurvePublicKey, name: str, admitted: dict[str, x509.Certificate], roster: Path, where: Path
) -> None:
    """One key, one site: Flower knows a node by its key alone."""
    for other, certificate in admitted.items():
        if other != name and _key_of(certificate) == key:
            raise KitError(f"{where}: this key is that of the site {other}: each site makes its own; enrol anew")
    if any(_key_of(certificate) == key for certificate in revoked_certificates(roster)):
        raise KitError(
            f"{where}: this key was revoked and is never admitted again: the site makes "
            "a new one with `wardround site enrol --new-key` and sends its new request"
        )


def _key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KitError(f"the certificate of {common_name(certificate.subject)} is not for an elliptic-curve key")
    return key


def _hand_out(certificate: x509.Certificate, name: str, folder: Path, roster: Path) -> Path:
    """Write a site's new certificate to `folder` and on the roster, and keep what was there before."""
    handed, entry, content = folder / f"{name}.crt", roster / f"{name}.crt", certificate_bytes(certificate)
    kept = {**_kept(handed, folder, name), **_kept(entry, roster / REPLACED, name)}
    write_together({**kept, handed: content, entry: content})
    return handed


def _kept(path: Path, folder: Path, name: str) -> dict[Path, bytes]:
    """What must be written so that the certificate in `path`, about to be replaced, is kept in `folder`."""
    if not path.exists():
        return {}
    old = read_certificate(path)
    if common_name(old.subject) != name:
        raise KitError(
            f'{path}: this is the certificate of "{common_name(old.subject)}" and would be lost: move it away'
        )
    return {folder / serial_name(old, path.stem): certificate_bytes(old)}


def _renew_server(layout: KitsFolder, authority: Authority, days_valid: int, now: datetime | None) -> Path:
    path = layout.coordinator / "server.crt"
    old = read_certificate(path)
    check_issued(old, authority.certificate, "server", path)
    hosts = layout.federation().coordinator.certificate_hosts
    certificate = issue_server(authority, _key_of(old), hosts, days_valid=days_valid, now=now)
    kept = _kept(path, layout.coordinator / REPLACED, COORDINATOR_NAME)
    write_together({**kept, path: certificate_bytes(certificate)})
    return path
