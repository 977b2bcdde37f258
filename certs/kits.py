"""The kits of a federation: made together, added to one by one, listed.

kits/authority/      ca.key, ca.crt, federation.toml      keep offline: it decides who is in the federation
kits/coordinator/    kit.toml, ca.crt, server.key, server.crt, roster/      for the coordinator's machine
kits/sites/NAME/     kit.toml, ca.crt      for the hospital; holds no secret
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import tomli_w
from cryptography import x509

from certs.admission import admit, renew, revoke
from certs.authority import (
    AUTHORITY_DAYS,
    NODE_DAYS,
    Authority,
    common_name,
    create_authority,
    days_left,
    expiry_warning,
    fingerprint,
    has_ended,
    issue_server,
)
from certs.layout import KitsFolder
from certs.pem import certificate_bytes, new_key, pkcs8_bytes, read_certificate
from certs.roster import AdmittedSite, read_entries, read_roster, revoked_certificates
from certs.storage import PRIVATE_FOLDER, new_folder, one_writer, refuse_existing, write_together
from common.federation import COORDINATOR_NAME, Federation
from common.kit import Role

__all__ = [
    "AdmittedSite",
    "Standing",
    "add_site",
    "admit",
    "create_kits",
    "list_standings",
    "read_roster",
    "renew",
    "revoke",
]

Status = Literal["valid", "expired", "revoked", "not admitted"]


@dataclass(frozen=True)
class Standing:
    """How the authority, the coordinator or a site stands.

    `not_after` (UTC), `days_left` and `serial` (hexadecimal) are of its certificate, None if it has none in force.
    `warning` is a line for people when the certificate has ended or soon will.
    """

    role: Literal["authority", "coordinator", "site"]
    name: str
    status: Status
    not_after: datetime | None = None
    days_left: int | None = None
    serial: str | None = None
    warning: str | None = None


def create_kits(
    federation: Federation,
    out: Path,
    *,
    days_valid: int = NODE_DAYS,
    authority_days: int = AUTHORITY_DAYS,
    now: datetime | None = None,
) -> Path:
    """Make a new federation: its authority, the coordinator's kit with its certificate and key, and a kit a site.

    All of it appears at `out` at once, or nothing does. `now` is the time of issue (default: the clock's).

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    KitError
        There is something at `out` already.
    WardroundError
        The disk is full or the folder can't be written.
    """
    authority = create_authority(federation.name, days_valid=authority_days, now=now)
    with new_folder(out) as building:
        for folder in (building / "authority", building / "coordinator", building / "sites"):
            folder.mkdir(mode=PRIVATE_FOLDER)
        (building / "coordinator" / "roster").mkdir(mode=PRIVATE_FOLDER)
        write_together(_authority_files(building / "authority", authority, federation))
        write_together(_coordinator_files(building / "coordinator", authority, federation, days_valid, now))
        for name in federation.site_names:
            write_together(_kit_files(building / "sites" / name, authority.certificate, federation, "site", name))
    return out


def add_site(kits: Path, name: str, *, title: str = "", contact: str = "") -> Path:
    """Add a site to the federation and make its kit; everybody else's stays as it is.

    Returns
    -------
    Path
        The new kit's folder.

    Raises
    ------
    UsageError
        There are no kits at `kits`, or the name does not do or is taken.
    WardroundError
        The disk is full or a folder can't be written; nothing was changed.
    """
    layout = KitsFolder.at(kits)
    with one_writer(layout.authority):
        federation = layout.federation().with_site(name, title=title, contact=contact)
        certificate = read_certificate(layout.authority / "ca.crt")
        folder = layout.sites / name
        refuse_existing(folder)
        write_together(
            {
                **_kit_files(folder, certificate, federation, "site", name),
                layout.federation_file: federation.to_toml().encode(),
            }
        )
    return folder


def list_standings(kits: Path, *, now: datetime | None = None) -> list[Standing]:
    """Return how the authority, the coordinator and every site stand, in that order.

    Raises
    ------
    KitError
        There are no kits at `kits`, or one of their certificates is damaged or not the authority's.
    """
    layout = KitsFolder.at(kits)
    federation, authority = layout.federation(), read_certificate(layout.authority / "ca.crt")
    server = read_certificate(layout.coordinator / "server.crt")
    admitted = read_entries(layout.roster, authority)
    revoked = {common_name(certificate.subject) for certificate in revoked_certificates(layout.roster)}
    standings = [
        _standing("authority", federation.name, authority, "create a new federation before then", now),
        _standing("coordinator", COORDINATOR_NAME, server, "run `wardround kits renew coordinator`", now),
    ]
    for name in federation.site_names:
        if name in admitted:
            standings.append(_standing("site", name, admitted[name], f"run `wardround kits renew {name}`", now))
        else:
            standings.append(Standing("site", name, "revoked" if name in revoked else "not admitted"))
    return standings


def _standing(
    role: Literal["authority", "coordinator", "site"],
    name: str,
    certificate: x509.Certificate,
    remedy: str,
    now: datetime | None,
) -> Standing:
    return Standing(
        role=role,
        name=name,
        status="expired" if has_ended(certificate, now) else "valid",
        not_after=certificate.not_valid_after_utc,
        days_left=days_left(certificate, now),
        serial=f"{certificate.serial_number:x}",
        warning=expiry_warning(certificate, f"{name}'s certificate", remedy, now=now),
    )


def _authority_files(folder: Path, authority: Authority, federation: Federation) -> dict[Path, bytes]:
    return {
        folder / "ca.key": pkcs8_bytes(authority.key),
        folder / "ca.crt": certificate_bytes(authority.certificate),
        folder / "federation.toml": federation.to_toml().encode(),
    }


def _coordinator_files(
    folder: Path, authority: Authority, federation: Federation, days_valid: int, now: datetime | None
) -> dict[Path, bytes]:
    key, hosts = new_key(), federation.coordinator.certificate_hosts
    certificate = issue_server(authority, key.public_key(), hosts, days_valid=days_valid, now=now)
    return {
        **_kit_files(folder, authority.certificate, federation, "coordinator", COORDINATOR_NAME),
        folder / "server.key": pkcs8_bytes(key),
        folder / "server.crt": certificate_bytes(certificate),
    }


def _kit_files(
    folder: Path, authority: x509.Certificate, federation: Federation, role: Role, name: str
) -> dict[Path, bytes]:
    table = {
        "role": role,
        "name": name,
        "federation": federation.name,
        "federation_id": fingerprint(authority),
        "address": federation.coordinator.address,
    }
    heading = f"# The startup kit of {name}, in the federation {federation.name}. As issued: do not edit.\n"
    return {
        folder / "kit.toml": (heading + tomli_w.dumps(table)).encode(),
        folder / "ca.crt": certificate_bytes(authority),
    }
