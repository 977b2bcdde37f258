"""The federation's certificate authority: is made, issues certificates, tells whether one is its own and still good.

All keys are ECDSA on P-384, all signatures with SHA-384. A certificate says what it may be used for (RFC 5280,
section 4.2.1): the authority's to sign certificates for nodes, the coordinator's as a TLS server, a site's as a
client. It is its issuer's key, not its issuer's name, that tells two federations of one name apart.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.pem import new_key, public_key_bytes, read_certificate, read_private_key
from common.errors import KitError
from common.federation import COORDINATOR_NAME

Purpose = Literal["server", "site"]

AUTHORITY_DAYS = 3650
NODE_DAYS = 365
WARNING_DAYS = 30
CLOCK_TOLERANCE = timedelta(hours=1)
"""How long before its issue a certificate holds, so that a node whose clock is a little behind can use it at once."""

_USES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "site": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True)
class Authority:
    """A federation's authority with its private key: whoever holds it decides who is in the federation."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def federation(self) -> str:
        """The federation's name."""
        return organization(self.certificate.subject)

    @property
    def federation_id(self) -> str:
        """The SHA-256 fingerprint of the authority's certificate, in lower-case hexadecimal."""
        return fingerprint(self.certificate)


def create_authority(federation: str, *, days_valid: int = AUTHORITY_DAYS, now: datetime | None = None) -> Authority:
    """Make a new authority, with a new key, for the federation of that name; it holds `days_valid` days from `now`."""
    key, start = new_key(), now or datetime.now(UTC)
    name = _name("Ward Round authority", federation)
    builder = _builder(name, name, key.public_key(), start, start + timedelta(days=days_valid))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Authority(builder.sign(key, hashes.SHA384()), key)


def read_authority(folder: Path) -> Authority:
    """Read the authority from its folder (ca.crt, ca.key).

    Raises
    ------
    KitError
        A file is missing, damaged or open to other users, the key is not the certificate's, or the certificate ended.
    """
    certificate, key = read_certificate(folder / "ca.crt"), read_private_key(folder / "ca.key")
    if public_key_bytes(certificate) != public_key_bytes(key):
        raise KitError(f"{folder}: ca.key is not the key of ca.crt: restore both from one backup")
    if has_ended(certificate):
        raise KitError(
            f"{folder}: the authority itself ended on {_day(certificate)}, and so did the federation: create a new one"
        )
    return Authority(certificate, key)


def issue_server(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    hosts: Iterable[str],
    *,
    days_valid: int = NODE_DAYS,
    now: datetime | None = None,
) -> x509.Certificate:
    """Issue the coordinator's certificate, for the DNS names and IP addresses in `hosts`. Dates as `issue_site`."""
    builder = _node_builder(authority, COORDINATOR_NAME, "server", public_key, days_valid, now)
    names = x509.SubjectAlternativeName([_alternative_name(host) for host in hosts])
    return builder.add_extension(names, critical=False).sign(authority.key, hashes.SHA384())


def issue_site(
    authority: Authority,
    site: str,
    public_key: ec.EllipticCurvePublicKey,
    *,
    days_valid: int = NODE_DAYS,
    now: datetime | None = None,
) -> x509.Certificate:
    """Issue a site's certificate, for the key that the site made.

    It holds from `CLOCK_TOLERANCE` before `now` (default: the clock's) for `days_valid` days, but never longer than the
    authority's own.

    Raises
    ------
    KitError
        `days_valid` is less than 1.
    """
    builder = _node_builder(authority, site, "site", public_key, days_valid, now)
    return builder.sign(authority.key, hashes.SHA384())


def check_issued(
    certificate: x509.Certificate, authority_certificate: x509.Certificate, purpose: Purpose, where: object
) -> None:
    """Check that `authority_certificate`'s key signed `certificate`, and for that purpose. Dates are not looked at.

    Raises
    ------
    KitError
        It is not so; the message names `where`.
    """
    try:
        certificate.verify_directly_issued_by(authority_certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise KitError(
            f"{where}: this certificate was not issued by this federation's authority "
            f"({organization(authority_certificate.subject)}, {fingerprint(authority_certificate)[:16]}): "
            "it is of another federation, or of an older one of that name"
        ) from error
    if _USES[purpose] not in _uses_of(certificate):
        wanted = "the coordinator's server" if purpose == "server" else "a site"
        raise KitError(f"{where}: this certificate is not one for {wanted}: name the right file")


def days_left(certificate: x509.Certificate, now: datetime | None = None) -> int:
    """Return the whole days until a certificate ends; negative once it has."""
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))).days


def has_ended(certificate: x509.Certificate, now: datetime | None = None) -> bool:
    """Whether a certificate has ended."""
    return certificate.not_valid_after_utc < (now or datetime.now(UTC))


def expiry_warning(
    certificate: x509.Certificate, whose: str, remedy: str = "", *, now: datetime | None = None
) -> str | None:
    """Return the one line to show from `WARNING_DAYS` before a certificate ends, or None while there is time.

    `whose` begins it ("north's certificate"); `remedy` says what to do.
    """
    left = days_left(certificate, now)
    if left >= WARNING_DAYS:
        return None
    when = (
        f"ended on {_day(certificate)}" if has_ended(certificate, now) else f"ends in {left} days, {_day(certificate)}"
    )
    return f"{whose} {when}" + (f": {remedy}" if remedy else "")


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 fingerprint, in lower-case hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def common_name(name: x509.Name) -> str:
    """Return the first common name (CN) of a subject, or nothing."""
    return _attribute(name, NameOID.COMMON_NAME)


def organization(name: x509.Name) -> str:
    """Return the first organization (O) of a subject, or nothing."""
    return _attribute(name, NameOID.ORGANIZATION_NAME)


def organizational_unit(name: x509.Name) -> str:
    """Return the first organizational unit (OU) of a subject, or nothing."""
    return _attribute(name, NameOID.ORGANIZATIONAL_UNIT_NAME)


def _uses_of(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    return next((str(attribute.value) for attribute in name.get_attributes_for_oid(oid)), "")


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


def _name(common: str, federation: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _node_builder(
    authority: Authority,
    node: str,
    purpose: Purpose,
    public_key: ec.EllipticCurvePublicKey,
    days_valid: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    if days_valid < 1:
        raise KitError(f"a certificate can't be valid for {days_valid} days: give at least 1")
    start, issuer = now or datetime.now(UTC), authority.certificate
    try:
        end = min(start + timedelta(days=days_valid), issuer.not_valid_after_utc)
    except OverflowError:
        end = issuer.not_valid_after_utc
    builder = _builder(_name(node, authority.federation), issuer.subject, public_key, start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([_USES[purpose]]), critical=False)
    issuer_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_TOLERANCE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
