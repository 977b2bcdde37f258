"""Tokens, with which scripts of a person ask: each has scopes and an end, and only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select, update

from common.errors import NotFoundError, UsageError
from server.database import Database
from server.roles import SCOPES, Person, scopes_of
from server.schema import people, tokens

LONGEST_TOKEN_DAYS = 366
TOKEN_MARK = "wr_"  # noqa: S105 - what tokens begin with, so that scanners of leaked secrets find them
STAMP_SECONDS = 30.0
"""How much later a session or token must be used again for that to be written down."""


@dataclass(frozen=True)
class TokenLine:
    """A token in a list, without its secret. Times are seconds since 1970 UTC."""

    id: int
    person: str
    name: str
    scopes: tuple[str, ...]
    created: float
    ends: float
    used: float | None
    revoked: bool


class Tokens:
    """The tokens of the people who may use this coordinator."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def issue_token(self, person: str, name: str, scopes: Iterable[str], days: float) -> tuple[TokenLine, str]:
        """Make a token for a person's scripts; return it and its secret, which is nowhere else.

        Raises NotFoundError, or UsageError for an unknown scope, one beyond the person's role, or a wrong time.
        """
        self.check_token(person, scopes, days)
        secret, now = TOKEN_MARK + secrets.token_urlsafe(32), time.time()
        values = {"person": person, "name": name, "scopes": sorted(set(scopes)), "created": now}
        with self._database.write() as connection:
            row = insert(tokens).values(**values, ends=now + days * 86400, hash=hash_of(secret), revoked=False)
            number = connection.execute(row.returning(tokens.c.id)).scalar_one()
        return self.token_line(number), secret

    def check_token(self, person: str, scopes: Iterable[str], days: float) -> None:
        """Raise NotFoundError or UsageError unless `issue_token` could make such a token."""
        wanted = set(scopes)
        with self._database.read() as connection:
            role = connection.execute(select(people.c.role).where(people.c.name == person)).scalar()
        if role is None:
            raise NotFoundError(f'there is no person "{person}": see `wardround people list`')
        if not wanted or not wanted <= set(SCOPES):
            raise UsageError(f"a token has one or more of the scopes {', '.join(SCOPES)}")
        if beyond := wanted - scopes_of(role):
            raise UsageError(f'{person} is a {role}: the scope "{min(beyond)}" is beyond that role')
        if not 0 < days <= LONGEST_TOKEN_DAYS:
            raise UsageError(f"a token ends after 1 to {LONGEST_TOKEN_DAYS} days")

    def token(self, secret: str, address: str = "") -> Person | None:
        """Return whose token it is and what it may do, or None when it has ended or was revoked."""
        return self.token_of_hash(hash_of(secret), address)

    def token_of_hash(self, token_hash: str, address: str = "") -> Person | None:
        """Return whose token it is by `Person.session`, as `token` does."""
        now, ours = time.time(), tokens.c.hash == token_hash
        columns = (tokens.c.scopes, tokens.c.ends, tokens.c.used, tokens.c.revoked)
        whose = (people.c.name, people.c.display, people.c.role, people.c.disabled)
        with self._database.read() as connection:
            row = connection.execute(select(*columns, *whose).select_from(tokens.join(people)).where(ours)).first()
        if row is None or row.revoked or row.disabled or now > row.ends:
            return None
        if row.used is None or now > row.used + STAMP_SECONDS:
            with self._database.write() as connection:
                connection.execute(update(tokens).where(ours).values(used=now))
        scopes = scopes_of(row.role) & frozenset(row.scopes)
        return Person(row.name, row.display, row.role, scopes, "token", token_hash, address)

    def tokens(self, person: str = "") -> tuple[TokenLine, ...]:
        """Return the tokens of a person (or, for "", of everybody), the newest first."""
        query = select(tokens).order_by(tokens.c.id.desc())
        if person:
            query = query.where(tokens.c.person == person)
        with self._database.read() as connection:
            return tuple(_token(row) for row in connection.execute(query))

    def token_line(self, number: int) -> TokenLine:
        """Return a token by its id. Raises NotFoundError."""
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.id == number)).first()
        if row is None:
            raise NotFoundError(f"there is no token {number}")
        return _token(row)

    def revoke_token(self, number: int) -> None:
        """End a token at once."""
        with self._database.write() as connection:
            connection.execute(update(tokens).where(tokens.c.id == number).values(revoked=True))


def hash_of(secret: str) -> str:
    """Return what is kept of a session's or token's secret: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _token(row: Row[Any]) -> TokenLine:
    times = (row.created, row.ends, row.used)
    return TokenLine(row.id, row.person, row.name, tuple(row.scopes), *times, row.revoked)
