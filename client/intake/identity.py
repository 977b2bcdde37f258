"""Pseudonyms and splits, keyed with the site's own secret.

The catalog keeps no identity, only `HMAC-SHA256(secret, kind, identity)`: without the secret nobody can tell whose a
pseudonym is, nor check a guess. The secret is made on first use and never leaves the kit's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.files import write_atomically

FILE_NAME = "pseudonym.key"
SPLITS = ("train", "validation", "test")
_KEY_BYTES = 32


@dataclass(frozen=True, repr=False)
class Pseudonyms:
    """Makes pseudonyms with a site's secret. The same identity has the same pseudonym, at this site only."""

    secret: bytes

    def of(self, kind: str, identity: str) -> str:
        """Return the pseudonym (128 bits, hexadecimal) of an identity; `kind` ("patient", ...) keeps kinds apart."""
        text = unicodedata.normalize("NFC", identity.strip("\0 "))
        return self._mac(kind, text).hex()[:32]

    def split(self, patient: str, seed: int, fractions: tuple[float, float, float]) -> str:
        """Return a patient's split, from the secret, the seed and the patient's pseudonym alone.

        Guarantees: it does not depend on which other patients there are, so it stays when data is added, and with
        many patients the splits have the sizes of `fractions` (train, validation, test).
        """
        draw = int.from_bytes(self._mac(f"split {seed}", patient)[:8], "big") / 2**64
        if draw < fractions[0]:
            return SPLITS[0]
        return SPLITS[1] if draw < fractions[0] + fractions[1] else SPLITS[2]

    @property
    def fingerprint(self) -> str:
        """Tells one secret from another without giving it away."""
        return self._mac("fingerprint", "").hex()[:32]

    def _mac(self, kind: str, text: str) -> bytes:
        return hmac.digest(self.secret, kind.encode() + b"\0" + text.encode("utf-8", "surrogateescape"), hashlib.sha256)


def open_pseudonyms(kit_folder: Path) -> Pseudonyms:
    """Open the site's pseudonyms; the secret is made (0600) when there is none.

    Raises
    ------
    DataError
        The secret can't be read or written, or is damaged.
    """
    path = kit_folder / FILE_NAME
    try:
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # another process was first: its secret is the one
                write_atomically(path, secrets.token_bytes(_KEY_BYTES), mode=0o600, overwrite=False)
        secret = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the secret of the pseudonyms can't be used: {error.strerror}") from error
    if len(secret) != _KEY_BYTES:
        raise DataError(f"{path}: the secret of the pseudonyms is damaged: restore it from a backup")
    return Pseudonyms(secret)
