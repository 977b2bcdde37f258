"""A site's side of admission: make the private key where it stays, ask for a certificate, install it.

A site whose key is to be replaced makes the new one beside the old (`site.next.key`) and goes on working with the
old until the new one's certificate is installed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs import pem
from certs.authority import check_issued
from certs.checks import check_dates, check_subject, read_kit_authority
from certs.roster import REPLACED, serial_name
from certs.storage import PRIVATE_FOLDER, disk_errors_in_words, one_writer, write_together
from common.errors import KitError
from common.kit import Kit


def next_key(kit: Kit) -> Path:
    """Return where a new key waits for its certificate."""
    return kit.folder / "site.next.key"


def request_file(kit: Kit) -> Path:
    """Return where the request for a certificate is, once made."""
    return kit.folder / f"{kit.name}.request.pem"


def enrol(kit: Kit, *, new_key: bool = False) -> Path:
    """Make this site's private key, and a request for a certificate, signed with it.

    A key is never overwritten. When the key is there but its request is not, only the request is made. With `new_key` a
    further key is made, to take the place of the present one when its certificate is installed; its request
    takes the place of the old request. The kit's folder is closed to other users of the machine.

    Returns
    -------
    Path
        The request: send it to the coordinator. It holds no secret.

    Raises
    ------
    KitError
        The kit is damaged, or its key and request are there already.
    WardroundError
        The disk is full or the folder can't be written; nothing was changed.
    """
    read_kit_authority(kit)
    with one_writer(kit.folder):
        path = next_key(kit) if new_key and kit.key.exists() else kit.key
        request = request_file(kit)
        contents: dict[Path, bytes] = {}
        if path.exists():
            key = pem.read_private_key(path)
            if request.exists() and _is_request_of(request, key):
                raise KitError(
                    f"{path}: the key is there already and is never overwritten: send {request.name} to the "
                    "coordinator, or install the certificate that came back"
                )
        else:
            key = pem.new_key()
            contents[path] = pem.openssh_bytes(key)
        _close_folder(kit.folder)
        write_together({**contents, request: pem.request_bytes(_request(kit, key))})
        return request


def accept(kit: Kit, certificate: Path) -> Path:
    """Install the certificate that the coordinator sent back. Installing it twice is the same as once.

    The certificate that was there is kept in `replaced/`. When it is that of a new key, the old key is destroyed.

    Returns
    -------
    Path
        The installed certificate, site.crt.

    Raises
    ------
    KitError
        It is not this federation's, not this site's, not for the key that is here, not in force now, or ends before
        the one that is installed.
    WardroundError
        The disk is full or the folder can't be written; nothing was changed.
    """
    authority = read_kit_authority(kit)
    found = pem.read_certificate(certificate)
    check_issued(found, authority, "site", certificate)
    check_subject(found, kit, certificate)
    check_dates(found, certificate, datetime.now(UTC))
    with one_writer(kit.folder):
        key_path = _key_for(found, kit, certificate)
        write_together(_replacement(found, kit, same_key=key_path == kit.key))
        _close_folder(kit.folder)
        if key_path == next_key(kit):
            # Last: were the power to fail before it, installing the certificate again would end the change.
            with disk_errors_in_words(kit.key):
                key_path.replace(kit.key)
    return kit.certificate


def _request(kit: Kit, key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    """A request that says who asks (CN), and in which federation: its name (O) and its authority (OU)."""
    subject = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, kit.federation),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, kit.federation_id),
        x509.NameAttribute(NameOID.COMMON_NAME, kit.name),
    ]
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject)).sign(key, hashes.SHA384())


def _is_request_of(path: Path, key: ec.EllipticCurvePrivateKey) -> bool:
    return pem.public_key_bytes(pem.read_request(path)) == pem.public_key_bytes(key)


def _key_for(certificate: x509.Certificate, kit: Kit, where: Path) -> Path:
    """The key here that a certificate is for: the present one, or the one that waits to take its place."""
    if not kit.key.exists():
        raise KitError(f"{kit.key}: there is no key here yet: run `wardround site enrol` first")
    for path in (kit.key, next_key(kit)):
        if path.exists() and pem.public_key_bytes(pem.read_private_key(path)) == pem.public_key_bytes(certificate):
            return path
    raise KitError(
        f"{where}: this certificate is for another key than {kit.key}: the request that was admitted was made "
        f"elsewhere, or before this key; send {request_file(kit).name} to the coordinator"
    )


def _replacement(certificate: x509.Certificate, kit: Kit, *, same_key: bool) -> dict[Path, bytes]:
    """What must be written to install a certificate and keep the one before it. Nothing, if it is installed."""
    installed = kit.certificate
    if not installed.exists():
        return {installed: pem.certificate_bytes(certificate)}
    try:
        old = pem.read_certificate(installed)
    except KitError as error:
        raise KitError(f"{installed}: what is there is no certificate: move it away and install again") from error
    if old == certificate:
        return {}
    if same_key and old.not_valid_after_utc > certificate.not_valid_after_utc:
        raise KitError(
            f"this certificate ends on {certificate.not_valid_after_utc:%Y-%m-%d}, before the one that is installed "
            f"({old.not_valid_after_utc:%Y-%m-%d}, {installed}): it is an older one; nothing was changed"
        )
    return {
        kit.folder / REPLACED / serial_name(old, "site"): pem.certificate_bytes(old),
        installed: pem.certificate_bytes(certificate),
    }


def _close_folder(folder: Path) -> None:
    with disk_errors_in_words(folder):
        folder.chmod(PRIVATE_FOLDER)
