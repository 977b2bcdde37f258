"""Keys, certificates and requests in their files: read with errors a person can use, and put into bytes."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import KitError

LARGEST_FILE = 64 * 1024
"""Bytes. Nothing that is read here comes near it."""

_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
# Each was seen when a valid file had one byte changed.
_DAMAGE = (ValueError, TypeError, LookupError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)
_CERTIFICATE, _REQUEST = "CERTIFICATE", "CERTIFICATE REQUEST"
_NAMES = {_CERTIFICATE: "a certificate", _REQUEST: "a certificate request", "PUBLIC KEY": "a public key"}


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key: ECDSA on P-384, the curve that Flower's node authentication takes."""
    return ec.generate_private_key(ec.SECP384R1())


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate. Raises KitError if the file is missing, unreadable, or something else."""
    content = _read(path, _CERTIFICATE)
    try:
        certificate = x509.load_pem_x509_certificate(content)
        # These are parsed only when asked for: a damaged one must be found here.
        key, _, _ = certificate.public_key(), certificate.subject, certificate.extensions
        _, _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _DAMAGE as error:
        raise KitError(f"{path}: the certificate is damaged: ask for it again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KitError(f"{path}: this certificate is not for an elliptic-curve key: Ward Round did not issue it")
    return certificate


def read_request(path: Path) -> x509.CertificateSigningRequest:
    """Read a PEM certificate request. Raises KitError if the file is missing, unreadable, or something else."""
    content = _read(path, _REQUEST)
    try:
        request = x509.load_pem_x509_csr(content)
        _, _, _ = request.public_key(), request.subject, request.is_signature_valid
    except _DAMAGE as error:
        raise KitError(f"{path}: the request is damaged: ask the site to send it again") from error
    return request


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key on P-384, in OpenSSH's format or in PKCS#8 PEM.

    Raises
    ------
    KitError
        It is missing, unreadable, no such key, or other users of the machine can read it.
    """
    content = _content(path)
    refuse_if_open_to_others(path)
    openssh = b"-----BEGIN OPENSSH PRIVATE KEY-----" in content
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    try:
        key = load(content, None)
    except TypeError as error:
        raise KitError(
            f"{path}: this key is locked with a passphrase, which an unattended service can't type"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KitError(f"{path}: this is no private key, or it is damaged: restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KitError(f"{path}: this private key is not one on the curve P-384: Ward Round did not make it")
    return key


def is_open_to_others(path: Path) -> bool:
    """Whether anybody but the owner may read, write or enter `path`."""
    return bool(path.stat().st_mode & 0o077)


def refuse_if_open_to_others(path: Path) -> None:
    """Raise KitError if anybody but the owner may read the key in `path`."""
    if is_open_to_others(path):
        mode = path.stat().st_mode & 0o777
        raise KitError(f"{path}: other users of this machine can get at this key (mode {mode:04o}): chmod 600 {path}")


def certificate_bytes(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def request_bytes(request: x509.CertificateSigningRequest) -> bytes:
    """Return a certificate request as PEM."""
    return request.public_bytes(serialization.Encoding.PEM)


def openssh_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in OpenSSH's format, the one that `flower-supernode` takes."""
    return _private_bytes(key, serialization.PrivateFormat.OpenSSH)


def pkcs8_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PKCS#8 PEM, the form that gRPC takes."""
    return _private_bytes(key, serialization.PrivateFormat.PKCS8)


def public_key_bytes(holder: x509.Certificate | x509.CertificateSigningRequest | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the holder's public key as SubjectPublicKeyInfo PEM: byte for byte what Flower compares node keys by."""
    return holder.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _read(path: Path, wanted: str) -> bytes:
    """The file's bytes, if its first PEM block is what is wanted and no private key is in it."""
    content = _content(path)
    labels = [label.decode().removeprefix("NEW ") for label in _LABEL.findall(content)]
    if any(label.endswith("PRIVATE KEY") for label in labels):
        raise KitError(
            f"{path}: this holds a private key, not {_NAMES[wanted]}: it must never leave the machine it was made on; "
            "if it has, revoke it and enrol with a new one"
        )
    if not labels or labels[0] != wanted:
        found = f"this is {_NAMES[labels[0]]}" if labels and labels[0] in _NAMES else "this is no PEM file"
        raise KitError(f"{path}: {found}, not {_NAMES[wanted]}: name the right file")
    return content


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise KitError(f"{path}: there is no such file") from error
    except OSError as error:
        raise KitError(f"{path}: it can't be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise KitError(f"{path}: too large to be a key or a certificate: name the right file")
    return content
