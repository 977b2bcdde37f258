"""Passwords: hashed with Argon2id, guessed at only slowly."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import unicodedata
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, func, insert, select

from common.errors import SlowDownError, UsageError
from server.database import Database
from server.schema import attempts

SHORTEST, LONGEST = 12, 500
"""Characters of a password."""
WINDOW_SECONDS = 300.0
LIMITS = {"name": 5, "address": 20}
"""Failed sign-ins in a window, for one name and from one address (many people may share a hospital's)."""
_AT_ONCE = threading.BoundedSemaphore(2)
"""A hash takes 64 MiB: a crowd at the door waits and does not fill the memory."""


class Passwords:
    """Makes and checks hashes. Whether there is a hash to check against can't be told from the time that it takes."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()  # Argon2id, RFC 9106's second recommendation

    @cached_property
    def _nobodys(self) -> str:
        return self._hasher.hash(secrets.token_hex())

    def hash(self, password: str) -> str:
        """Return the hash of a password. Raises UsageError as `check` does."""
        self.check(password)
        with _AT_ONCE:
            return self._hasher.hash(_normalised(password).encode("utf-8", "surrogatepass"))

    def check(self, password: str) -> None:
        """Raise UsageError when the password is too short or too long."""
        if not SHORTEST <= len(_normalised(password)) <= LONGEST:
            raise UsageError(
                f"a password has {SHORTEST} to {LONGEST} characters: a few words that only you put together"
            )

    def fits(self, password: str, hashed: str | None) -> bool:
        """Whether the password is that of the hash; False for None, after the same time."""
        nobodys = self._nobodys  # made before it is known whether it is needed
        against = hashed or nobodys
        given = _normalised(password[: 2 * LONGEST]).encode("utf-8", "surrogatepass")
        with _AT_ONCE:
            try:
                return self._hasher.verify(against, given) and hashed is not None
            except (VerificationError, InvalidHashError):
                return False

    def is_old(self, hashed: str) -> bool:
        """Whether the hash was made with other parameters than are used today."""
        return self._hasher.check_needs_rehash(hashed)


class Attempts:
    """Failed sign-ins, counted in the registry so that a restart forgives nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, name: str, address: str) -> None:
        """Count an attempt as failed, until `forget`. Raises SlowDownError when there were too many.

        Counting comes before checking, so that many at once can't all pass while none is counted.
        """
        now = time.time()
        with self._database.write() as connection:
            connection.execute(delete(attempts).where(attempts.c.at < now - WINDOW_SECONDS))
            for kind, text in (("name", name), ("address", address)):
                query = select(func.count(), func.min(attempts.c.at)).where(attempts.c.key == _key(kind, text))
                count, first = connection.execute(query).one()
                if count >= LIMITS[kind]:
                    wait = max(1, round(first + WINDOW_SECONDS - now))
                    raise SlowDownError(f"too many failed sign-ins: wait {wait} seconds and try again", wait)
            for kind, text in (("name", name), ("address", address)):
                connection.execute(insert(attempts).values(key=_key(kind, text), at=now))

    def forget(self, name: str, address: str) -> None:
        """Take back the newest attempt, which was no failure; what failed before for this name no longer counts."""
        with self._database.write() as connection:
            connection.execute(delete(attempts).where(attempts.c.key == _key("name", name)))
            own = select(func.max(attempts.c.id)).where(attempts.c.key == _key("address", address))
            connection.execute(delete(attempts).where(attempts.c.id == own.scalar_subquery()))


def _key(kind: str, text: str) -> str:
    """Hashed, since people type passwords where the name belongs."""
    return f"{kind}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


def _normalised(password: str) -> str:
    """One form for what keyboards write in several (RFC 8265 asks for NFC)."""
    return unicodedata.normalize("NFC", password)
