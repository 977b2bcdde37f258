"""The federation's certificate authority: what it signs, and how certificates and keys are read and judged.

ECDSA on P-384 throughout: it is what Flower's node authentication takes. Profiles follow RFC 5280: the authority's
certificate may sign certificates and nothing else, the coordinator's is for a TLS server, a site's for a client.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import KitError

AUTHORITY_DAYS = 3650
NODE_DAYS = 397  # a year and a month: renewed once a year
WARNING_DAYS = 30
CLOCK_SLACK = datetime.timedelta(minutes=10)  # a node's clock may be a little behind the authority's


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as unencrypted PKCS#8 PEM, as gRPC servers take it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as unencrypted OpenSSH PEM, as Flower's nodes take it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the certificate's SHA-256, in lower-case hexadecimal: for an authority, the federation's id."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the public key in the form by which Flower knows nodes (PEM SubjectPublicKeyInfo)."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def create_authority(federation: str, key: ec.EllipticCurvePrivateKey, days: int = AUTHORITY_DAYS) -> x509.Certificate:
    """Return the self-signed certificate of a new authority for the federation named `federation`."""
    name = _name("Ward Round authority", federation)
    usage = _usage(certificates=True)
    return _sign(name, key.public_key(), name, key, days, x509.BasicConstraints(ca=True, path_length=0), usage, [])


def issue_server(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    names: Sequence[str],
    days: int = NODE_DAYS,
) -> x509.Certificate:
    """Return the coordinator's server certificate for `names`: DNS names and IP addresses, without repetition."""
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)])
    extensions = [alternatives, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])]
    subject = _name("coordinator", federation_of(authority))
    return _issue(authority, authority_key, subject, public_key, days, extensions)


def issue_site(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    site: str,
    days: int = NODE_DAYS,
) -> x509.Certificate:
    """Return a site's client certificate: subject CN is the site's name, O the federation's."""
    extensions = [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]
    subject = _name(site, federation_of(authority))
    return _issue(authority, authority_key, subject, public_key, days, extensions)


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate. Raises KitError when it is missing or is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise KitError(f"{path}: the certificate can't be read: {error.strerror}") from error
    except ValueError as error:
        raise KitError(f"{path}: this is no PEM certificate") from error


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key on P-384, PKCS#8 or OpenSSH. Raises KitError when it is missing, damaged or another kind."""
    try:
        data = path.read_bytes()
        load = serialization.load_ssh_private_key if b"OPENSSH" in data[:64] else serialization.load_pem_private_key
        key = load(data, password=None)
    except OSError as error:
        raise KitError(f"{path}: the private key can't be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise KitError(f"{path}: this is no unencrypted private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KitError(f"{path}: the private key is not ECDSA on P-384")
    return key


def common_name(name: x509.Name) -> str:
    """Return a subject's CN, or nothing."""
    return _attribute(name, NameOID.COMMON_NAME)


def federation_of(certificate: x509.Certificate) -> str:
    """Return the federation's name that stands in a certificate's subject."""
    return _attribute(certificate.subject, NameOID.ORGANIZATION_NAME)


def public_key_of(
    certificate: x509.Certificate | x509.CertificateSigningRequest, where: str
) -> ec.EllipticCurvePublicKey:
    """Return the public key of a certificate or request. Raises KitError (naming `where`) when it is not on P-384."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KitError(f"{where}: its key is not ECDSA on P-384")
    return key


def check_issued(certificate: x509.Certificate, authority: x509.Certificate, where: str) -> None:
    """Check that `authority` signed `certificate`. Raises KitError naming `where`."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise KitError(
            f"{where}: not signed by the authority of this federation ({fingerprint(authority)[:12]})"
        ) from error


def days_left(certificate: x509.Certificate, now: datetime.datetime | None = None) -> int:
    """Return the whole days until the certificate ends; negative when it has ended."""
    left = certificate.not_valid_after_utc - (now or datetime.datetime.now(datetime.UTC))
    return left.days


def expiry_warning(certificate: x509.Certificate, what: str, remedy: str) -> str:
    """Return one line when the certificate of `what` has ended or ends within a month, else nothing."""
    left, end = days_left(certificate), certificate.not_valid_after_utc.date()
    if left < 0:
        return f"the certificate of {what} ended on {end}: {remedy}"
    if left <= WARNING_DAYS:
        return f"the certificate of {what} ends on {end}, in {left} days: {remedy}"
    return ""


def _issue(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    days: int,
    extensions: Sequence[x509.ExtensionType],
) -> x509.Certificate:
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    usage = _usage(certificates=False)
    return _sign(subject, public_key, authority.subject, authority_key, days, constraints, usage, extensions)


def _sign(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
    constraints: x509.BasicConstraints,
    usage: x509.KeyUsage,
    extensions: Sequence[x509.ExtensionType],
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA384())


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str, organisation: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[0].value) if found else ""


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
