"""One entry of a hash-chained, signed log: how it is written, hashed, signed and read back.

An entry is one line of canonical JSON (keys sorted, no spaces, ASCII), so that every byte of it counts:

    seq    its number, from 1
    at     when it was written, ISO 8601, UTC, by the machine's clock
    kind   what it is about; the first is "opened" and its body holds the log's name and public key
    body   what it says
    prev   the `hash` of the entry before; "" in the first
    hash   SHA-256, in hexadecimal, of the canonical JSON of all the former
    sig    Ed25519 signature, in base64, of the text of `hash`

References: Haber and Stornetta, "How to time-stamp a digital document", 1991 (the chain); RFC 8032 (Ed25519).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import DataError

OPENED = "opened"
_TYPES = {"seq": int, "at": str, "kind": str, "body": dict, "prev": str, "hash": str, "sig": str}
_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Head:
    """The newest entry of a log at some moment, signed: who keeps it can tell later whether the log still holds it.

    `signature` and `public_key` (32 bytes) are in base64.
    """

    sequence: int
    hash: str
    signature: str
    public_key: str

    @property
    def signed(self) -> bool:
        """Whether the signature is that of the key that is named here."""
        return is_signed(self.hash, self.signature, self.public_key)

    def to_json(self) -> str:
        """Return the head as one line of JSON."""
        return canonical(asdict(self)).decode("ascii")

    @classmethod
    def from_json(cls, text: str) -> Head:
        """Read a head. Raises DataError if it is none; whether it is `signed` is another question."""
        try:
            fields = json.loads(text)
            head = cls(**fields)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError("this is no head of an audit log") from error
        if type(head.sequence) is not int or not all(
            isinstance(part, str) for part in (head.hash, head.signature, head.public_key)
        ):
            raise DataError("this is no head of an audit log")
        return head


@dataclass(frozen=True)
class Entry:
    """An entry whose hash fits its content. Fields as in the module's table."""

    sequence: int
    at: str
    kind: str
    body: Mapping[str, Any]
    previous: str
    hash: str
    signature: str

    def head(self, public_key: str) -> Head:
        """Return the head of a log that ends with this entry."""
        return Head(self.sequence, self.hash, self.signature, public_key)


def canonical(value: object) -> bytes:
    """Return a value as canonical JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def write_entry(
    key: Ed25519PrivateKey, before: Entry | None, *, at: str, kind: str, body: Mapping[str, Any]
) -> tuple[Entry, bytes]:
    """Return the entry that follows `before`, and its line, with the newline."""
    signed = {
        "seq": before.sequence + 1 if before else 1,
        "at": at,
        "kind": kind,
        "body": dict(body),
        "prev": before.hash if before else "",
    }
    digest = hashlib.sha256(canonical(signed)).hexdigest()
    line = canonical(signed | {"hash": digest, "sig": to_base64(key.sign(digest.encode("ascii")))})
    return read_entry(line), line + b"\n"


def read_entry(line: bytes) -> Entry:
    """Read a line, without its newline. Raises ValueError, with the reason, unless each of its bytes is as written."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error
    if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != _TYPES:
        raise ValueError("it is no entry of a log")
    if canonical(fields) != line:
        raise ValueError("it is not written as this system writes")
    if to_base64(from_base64(fields["sig"])) != fields["sig"] or len(from_base64(fields["sig"])) != _SIGNATURE_BYTES:
        raise ValueError("its signature is no signature")
    signed = {name: value for name, value in fields.items() if name not in ("hash", "sig")}
    if hashlib.sha256(canonical(signed)).hexdigest() != fields["hash"]:
        raise ValueError("its content is not what was hashed when it was written")
    return Entry(
        sequence=fields["seq"],
        at=fields["at"],
        kind=fields["kind"],
        body=fields["body"],
        previous=fields["prev"],
        hash=fields["hash"],
        signature=fields["sig"],
    )


def is_signed(digest: str, signature: str, public_key: str) -> bool:
    """Whether `signature` (base64) over the text `digest` is by the key whose 32 public bytes are given in base64."""
    try:
        _public_key(public_key).verify(from_base64(signature), digest.encode("utf-8"))
    except (InvalidSignature, ValueError):
        return False
    return True


def public_text(key: Ed25519PrivateKey) -> str:
    """Return the public half of a key: its 32 bytes in base64."""
    return to_base64(key.public_key().public_bytes_raw())


def to_base64(content: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")


def from_base64(text: str) -> bytes:
    """Return the bytes of base64 text. Raises ValueError if it is none."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("it is no base64") from error


@lru_cache(maxsize=16)
def _public_key(text: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(from_base64(text))
