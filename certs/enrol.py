"""A site's enrolment: its private key is made here, and only a signing request leaves."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs.authority import (
    check_issued,
    common_name,
    days_left,
    new_key,
    openssh,
    pem,
    public_bytes,
    public_key_of,
    read_certificate,
    read_key,
)
from common.errors import KitError
from common.files import write_atomically
from common.kit import Kit


def enrol(kit: Kit) -> Path:
    """Make the site's key (0600, OpenSSH) unless there is one, and return the file of its signing request.

    The key is never overwritten: to change it, move the old one away first. Raises KitError.
    """
    try:
        if not kit.key.exists():
            write_atomically(kit.key, openssh(new_key()), mode=0o600, overwrite=False)
        request = kit.folder / f"{kit.name}.request.pem"
        write_atomically(request, _request(kit))
    except OSError as error:
        raise KitError(f"{kit.folder}: can't be written: {error.strerror}") from error
    return request


def accept(kit: Kit, path: Path) -> None:
    """Install the certificate that the coordinator sent back.

    Raises
    ------
    KitError
        It is of another federation, another site or another key, it ended, or it can't be written.
    """
    certificate = read_certificate(path)
    check_issued(certificate, read_certificate(kit.authority_certificate), str(path))
    name = common_name(certificate.subject)
    if name != kit.name:
        raise KitError(f'{path}: this is the certificate of "{name}", but this is the site "{kit.name}"')
    if public_bytes(public_key_of(certificate, str(path))) != public_bytes(read_key(kit.key).public_key()):
        raise KitError(f"{path}: the certificate is for another key than {kit.key}: send the newest request")
    if days_left(certificate) < 0:
        raise KitError(f"{path}: the certificate ended on {certificate.not_valid_after_utc.date()}: ask for a new one")
    try:
        write_atomically(kit.certificate, pem(certificate))
    except OSError as error:
        raise KitError(f"{kit.certificate}: can't be written: {error.strerror}") from error


def _request(kit: Kit) -> bytes:
    key = read_key(kit.key)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, kit.federation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, kit.federation_id),
            x509.NameAttribute(NameOID.COMMON_NAME, kit.name),
        ]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    return request.public_bytes(Encoding.PEM)
