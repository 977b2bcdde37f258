"""Startup kits: what the federation's authority hands out, admits, renews and revokes.

    kits/authority/     ca.key, ca.crt, federation.toml     keep it offline; only these commands need it
    kits/coordinator/   kit.toml, ca.crt, server.key, server.crt, roster/     the coordinator's machine
    kits/sites/NAME/    kit.toml, ca.crt                    to the hospital; it holds no secret

The roster is who may connect: `roster/NAME.crt` for each admitted site, `roster/revoked/NAME-SERIAL.crt` for those that
no longer may. A running coordinator reads it every few seconds. No command touches another site's file.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs.authority import (
    AUTHORITY_DAYS,
    NODE_DAYS,
    check_issued,
    common_name,
    create_authority,
    days_left,
    fingerprint,
    issue_server,
    issue_site,
    new_key,
    pem,
    pkcs8,
    public_bytes,
    public_key_of,
    read_certificate,
    read_key,
)
from common.errors import KitError
from common.federation import Federation, SiteEntry, read_federation
from common.files import write_atomically

ROSTER, REVOKED = "roster", "revoked"


@dataclass(frozen=True)
class AdmittedSite:
    """A site on the roster. `public_key` is the form by which Flower knows its node; `not_after` is in UTC."""

    name: str
    public_key: bytes
    not_after: datetime.datetime
    serial: int

    @property
    def expired(self) -> bool:
        """Whether its certificate has ended: such a site may not connect."""
        return self.not_after < datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Authority:
    """The authority's folder, opened: its certificate, its key, and the federation it is for."""

    kits: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    federation: Federation

    @property
    def roster(self) -> Path:
        """The folder of admitted certificates."""
        return self.kits / "coordinator" / ROSTER


def create_kits(federation: Federation, out: Path) -> Path:
    """Create the authority, the coordinator's kit and a kit for each site in the new folder `out`; all or nothing.

    Raises
    ------
    KitError
        `out` exists, or can't be written.
    """
    if out.exists():
        raise KitError(f"{out} exists: nothing is overwritten; name another folder with --out")
    with _readable_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            _fill(building, federation)
            building.rename(out)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return out


def add_site(kits: Path, site: SiteEntry) -> Path:
    """Add a site to the federation and make its kit. Raises KitError when the name is taken."""
    authority = open_authority(kits)
    names = {known.name.lower() for known in authority.federation.sites}
    folder = kits / "sites" / site.name
    if site.name.lower() in names or folder.exists():
        raise KitError(f'the federation has a site "{site.name}" already: choose another name')
    federation = authority.federation.model_copy(update={"sites": (*authority.federation.sites, site)})
    with _readable_errors(kits):
        _write_kit(folder, "site", site.name, federation, authority.certificate)
        write_atomically(kits / "authority" / "federation.toml", _federation_toml(federation))
    return folder


def admit(kits: Path, request_path: Path) -> Path:
    """Sign a site's request and put it on the roster; return the certificate's file, written beside the request.

    Raises
    ------
    KitError
        The request is damaged or of another federation, names no site of this one, its key was revoked, or the site
        is admitted already (then use `renew`).
    """
    authority = open_authority(kits)
    request = read_request(authority, request_path)
    name = common_name(request.subject)
    if (authority.roster / f"{name}.crt").exists():
        raise KitError(f'"{name}" is admitted already: use `wardround kits renew {name} --request {request_path}`')
    return _admit(authority, name, public_key_of(request, str(request_path)), request_path.parent / f"{name}.crt")


def renew(kits: Path, name: str, request_path: Path | None = None) -> Path:
    """Issue a new certificate for `name`, a site or "coordinator"; a site with `request_path` changes its key too.

    Returns the new certificate's file: for a site `kits/sites/NAME/NAME.crt` (or beside the request) to send to it.
    Raises KitError when there is no such site on the roster or the request does not fit.
    """
    authority = open_authority(kits)
    if name == "coordinator":
        kit = kits / "coordinator"
        public = read_key(kit / "server.key").public_key()
        with _readable_errors(kit):
            write_atomically(kit / "server.crt", pem(_server_certificate(authority, public)))
        return kit / "server.crt"
    current = authority.roster / f"{name}.crt"
    if not current.exists():
        raise KitError(f'"{name}" is not on the roster: admit its request first (`wardround kits admit REQUEST`)')
    if request_path is None:
        public = public_key_of(read_certificate(current), str(current))
        return _admit(authority, name, public, kits / "sites" / name / f"{name}.crt")
    request = read_request(authority, request_path)
    if common_name(request.subject) != name:
        raise KitError(f'{request_path}: this is the request of "{common_name(request.subject)}", not of "{name}"')
    return _admit(authority, name, public_key_of(request, str(request_path)), request_path.parent / f"{name}.crt")


def revoke(kits: Path, name: str) -> Path:
    """Take a site off the roster for good: its key is never admitted again. Raises KitError when it is not on it."""
    authority = open_authority(kits)
    current = authority.roster / f"{name}.crt"
    if not current.exists():
        raise KitError(f'"{name}" is not on the roster: there is nothing to revoke')
    serial = read_certificate(current).serial_number
    target = authority.roster / REVOKED / f"{name}-{serial:x}.crt"
    with _readable_errors(target):
        target.parent.mkdir(mode=0o700, exist_ok=True)
        current.rename(target)
    return target


def read_roster(roster: Path) -> dict[str, AdmittedSite]:
    """Read who may connect, by name, expired ones included (see `AdmittedSite.expired`).

    Raises
    ------
    KitError
        A file is no certificate, is of another authority, or is not named after its site.
    """
    authority = read_certificate(roster.parent / "ca.crt")
    sites = {}
    for path in sorted(roster.glob("*.crt")):
        certificate = read_certificate(path)
        check_issued(certificate, authority, str(path))
        name = common_name(certificate.subject)
        if name != path.stem:
            raise KitError(f'{path}: this is the certificate of "{name}": give the file back its name')
        key = public_bytes(public_key_of(certificate, str(path)))
        sites[name] = AdmittedSite(name, key, certificate.not_valid_after_utc, certificate.serial_number)
    return sites


def open_authority(kits: Path) -> Authority:
    """Open the authority in the folder `kits`. Raises KitError when it is not there or damaged."""
    folder = kits / "authority"
    if not folder.is_dir():
        raise KitError(f"{kits}: no authority here: name the folder that `wardround kits create` made with --kits")
    certificate, key = read_certificate(folder / "ca.crt"), read_key(folder / "ca.key")
    if key.public_key() != certificate.public_key():
        raise KitError(f"{folder}: ca.key and ca.crt do not belong together")
    if days_left(certificate) < 0:
        raise KitError(f"{folder / 'ca.crt'}: the authority ended: create the federation anew")
    return Authority(kits, certificate, key, read_federation(folder / "federation.toml"))


def read_request(authority: Authority, path: Path) -> x509.CertificateSigningRequest:
    """Read a site's signing request and check all that it says. Raises KitError."""
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
    except OSError as error:
        raise KitError(f"{path}: the request can't be read: {error.strerror}") from error
    except ValueError as error:
        raise KitError(f"{path}: this is no certificate signing request") from error
    if not request.is_signature_valid:
        raise KitError(f"{path}: the request's signature is wrong: make it anew with `wardround site enrol`")
    unit = request.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    if not unit or unit[0].value != fingerprint(authority.certificate):
        raise KitError(f"{path}: the request was made with a kit of another federation")
    name = common_name(request.subject)
    if name not in {site.name for site in authority.federation.sites}:
        raise KitError(f'{path}: the federation has no site "{name}": add it with `wardround kits add-site {name}`')
    key = public_bytes(public_key_of(request, str(path)))
    for old in (authority.roster / REVOKED).glob("*.crt"):
        if public_bytes(public_key_of(read_certificate(old), str(old))) == key:
            raise KitError(f"{path}: this key was revoked: the site must make a new one")
    return request


def _admit(authority: Authority, name: str, public_key: ec.EllipticCurvePublicKey, target: Path) -> Path:
    certificate = pem(issue_site(authority.certificate, authority.key, public_key, name, _days(authority.certificate)))
    with _readable_errors(target):
        # The site's copy first: a roster entry whose certificate nobody has would be half a state.
        write_atomically(target, certificate)
        write_atomically(authority.roster / f"{name}.crt", certificate)
    return target


def _fill(folder: Path, federation: Federation) -> None:
    key = new_key()
    certificate = create_authority(federation.name, key, AUTHORITY_DAYS)
    home, coordinator = folder / "authority", folder / "coordinator"
    home.mkdir(mode=0o700)
    write_atomically(home / "ca.key", pkcs8(key), mode=0o600)
    write_atomically(home / "ca.crt", pem(certificate))
    write_atomically(home / "federation.toml", _federation_toml(federation))
    _write_kit(coordinator, "coordinator", "coordinator", federation, certificate)
    (coordinator / ROSTER).mkdir(mode=0o700)
    server_key = new_key()
    authority = Authority(folder, certificate, key, federation)
    write_atomically(coordinator / "server.key", pkcs8(server_key), mode=0o600)
    write_atomically(coordinator / "server.crt", pem(_server_certificate(authority, server_key.public_key())))
    for site in federation.sites:
        _write_kit(folder / "sites" / site.name, "site", site.name, federation, certificate)
    folder.chmod(0o700)


def _server_certificate(authority: Authority, public_key: ec.EllipticCurvePublicKey) -> x509.Certificate:
    place = authority.federation.coordinator
    names = [place.host, *place.dns, *place.addresses]
    return issue_server(authority.certificate, authority.key, public_key, names, _days(authority.certificate))


def _days(authority: x509.Certificate) -> int:
    """A node's certificate ends with the authority's at the latest."""
    return min(NODE_DAYS, days_left(authority))


def _write_kit(folder: Path, role: str, name: str, federation: Federation, authority: x509.Certificate) -> None:
    folder.mkdir(mode=0o700, parents=True)
    kit = {
        "role": role,
        "name": name,
        "federation": federation.name,
        "federation_id": fingerprint(authority),
        "address": federation.coordinator.address,
    }
    write_atomically(folder / "kit.toml", tomli_w.dumps(kit).encode())
    write_atomically(folder / "ca.crt", pem(authority))


def _federation_toml(federation: Federation) -> bytes:
    return tomli_w.dumps(federation.model_dump(mode="json")).encode()


@contextmanager
def _readable_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KitError(f"{error.filename or where}: can't be written: {error.strerror}") from error
