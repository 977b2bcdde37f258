"""People and how they are known: their roles, sessions and tokens. All SQL about them is here.

Guarantees: of passwords, sessions and tokens only hashes are kept. A session ends when nothing was done in it for
`idle` seconds, at the latest after `longest`; ending one, disabling its person or changing the role has effect at the
next request.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from common.errors import NotFoundError, SignInError, UsageError
from server.database import Database
from server.passwords import Attempts, Passwords
from server.roles import ROLES, Person, Role, scopes_of
from server.schema import people, sessions, tokens
from server.tokens import STAMP_SECONDS, Tokens, hash_of
from server.tokens import TokenLine as TokenLine

IDLE_SECONDS, LONGEST_SECONDS = 30 * 60.0, 12 * 3600.0
UNKNOWN = "the name or the password is wrong"
ENDED = "the session has ended: sign in again"
_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")


@dataclass(frozen=True)
class PersonLine:
    """A person in a list. `seen` is when a session of theirs was last used, `signs_in` how they do."""

    name: str
    display: str
    role: Role
    signs_in: str
    disabled: bool
    created: float
    by: str
    seen: float | None


class People(Tokens):
    """The people who may use this coordinator. Several processes may have the registry open."""

    def __init__(self, database: Database, *, idle: float = IDLE_SECONDS, longest: float = LONGEST_SECONDS) -> None:
        super().__init__(database)
        self._idle, self._longest = idle, longest
        self._passwords, self._attempts = Passwords(), Attempts(database)

    # Who there is. (How tokens are made and known: `server.tokens`.)

    def add(
        self,
        name: str,
        role: Role,
        *,
        by: str,
        display: str = "",
        password: str | None = None,
        subject: str | None = None,
    ) -> str:
        """Add a person with a password, or with the `subject` of an OpenID provider; return the name as it is kept.

        Raises UsageError for a name that is taken or is none, an unknown role, or a password that is too short.
        """
        self.check_new(name, role, password)
        name = checked_name(name)
        hashed = self._passwords.hash(password) if password is not None else None
        values = {"name": name, "display": display or name, "role": role, "password": hashed, "subject": subject}
        with self._database.write() as connection:
            try:
                connection.execute(insert(people).values(**values, disabled=False, created=time.time(), by=by))
            except IntegrityError as error:
                raise UsageError("another person has this name, or signs in with this identity") from error
        return name

    def check_new(self, name: str, role: Role, password: str | None) -> None:
        """Raise UsageError unless `add` could add such a person."""
        kept = checked_name(name)
        check_role(role)
        if password is not None:
            self._passwords.check(password)
        with self._database.read() as connection:
            if _row(connection, kept) is not None:
                raise UsageError(f'there is a person "{kept}" already: see `wardround people list`')

    def list(self) -> tuple[PersonLine, ...]:
        """Return everybody, by name."""
        with self._database.read() as connection:
            newest = select(sessions.c.person, func.max(sessions.c.seen).label("seen")).group_by(sessions.c.person)
            seen = newest.subquery()
            joined = people.outerjoin(seen, people.c.name == seen.c.person)
            query = select(people, seen.c.seen).select_from(joined).order_by(people.c.name)
            return tuple(_line(row) for row in connection.execute(query))

    def get(self, name: str) -> PersonLine:
        """Return one person. Raises NotFoundError."""
        for line in self.list():
            if line.name == name:
                return line
        raise NotFoundError(f'there is no person "{name}": see `wardround people list`')

    def set_role(self, name: str, role: Role) -> None:
        """Give a person another role, at once. Raises NotFoundError, or UsageError for the last admin."""
        check_role(role)
        self._change(name, keeps_admin=role == "admin", role=role)

    def set_disabled(self, name: str, disabled: bool) -> None:
        """Shut a person out and end their sessions and tokens, or let them in again. Raises as `set_role`."""
        self._change(name, keeps_admin=not disabled, disabled=disabled)
        if disabled:
            self.end_sessions(name)
            with self._database.write() as connection:
                connection.execute(update(tokens).where(tokens.c.person == name).values(revoked=True))

    def set_password(self, name: str, password: str) -> None:
        """Give a person another password and end their sessions. Raises NotFoundError, UsageError."""
        self._change(name, keeps_admin=True, password=self._passwords.hash(password))
        self.end_sessions(name)

    def _change(self, name: str, *, keeps_admin: bool, **values: Any) -> None:
        with self._database.write() as connection:
            row = _row(connection, name)
            if row is None:
                raise NotFoundError(f'there is no person "{name}": see `wardround people list`')
            if row.role == "admin" and not row.disabled and not keeps_admin:
                admins = select(people.c.name).where(people.c.role == "admin", people.c.disabled.is_(False))
                if len(connection.execute(admins.with_for_update()).all()) == 1:
                    raise UsageError(f"{name} is the only admin: make another one first")
            connection.execute(update(people).where(people.c.name == name).values(**values))

    # How they are known.

    def verify(self, name: str, password: str, address: str) -> str:
        """Return the person's name as it is kept. Raises SignInError when name or password is wrong, or SlowDownError.

        Takes the same time whether or not there is such a person.
        """
        name = name.strip().lower()
        self._attempts.begin(name, address)
        row = None
        if _NAME.fullmatch(name):
            with self._database.read() as connection:
                row = _row(connection, name)
        hashed = row.password if row is not None and not row.disabled else None
        if not self._passwords.fits(password, hashed):
            raise SignInError(UNKNOWN)
        self._attempts.forget(name, address)
        if hashed is not None and self._passwords.is_old(hashed):
            with self._database.write() as connection:
                again = self._passwords.hash(password)
                connection.execute(update(people).where(people.c.name == name).values(password=again))
        return name

    def with_subject(self, subject: str) -> PersonLine | None:
        """Return who signs in with this identity of an OpenID provider, if anybody does."""
        with self._database.read() as connection:
            name = connection.execute(select(people.c.name).where(people.c.subject == subject)).scalar()
        return self.get(name) if name is not None else None

    def open_session(self, name: str, address: str, agent: str = "") -> str:
        """Begin a session of a person; return the secret that names it. Raises SignInError for one shut out."""
        secret, now = secrets.token_urlsafe(32), time.time()
        with self._database.write() as connection:
            row = _row(connection, name)
            if row is None or row.disabled:
                raise SignInError(UNKNOWN)
            over = (sessions.c.ends < now) | (sessions.c.seen < now - self._idle)
            connection.execute(delete(sessions).where(over))
            values = {
                "created": now,
                "seen": now,
                "ends": now + self._longest,
                "address": address,
                "agent": agent[:200],
            }
            connection.execute(insert(sessions).values(token_hash=hash_of(secret), person=name, **values))
        return secret

    def session(self, secret: str, address: str = "", *, touch: bool = True) -> Person | None:
        """Return whose session it is, or None when it has ended. With `touch`, the person did something just now."""
        return self.session_of_hash(hash_of(secret), address, touch=touch)

    def session_of_hash(self, token_hash: str, address: str = "", *, touch: bool = True) -> Person | None:
        """Return whose session it is by `Person.session`, as `session` does."""
        now, ours = time.time(), sessions.c.token_hash == token_hash
        with self._database.read() as connection:
            row = connection.execute(select(sessions, people).select_from(sessions.join(people)).where(ours)).first()
        if row is None or row.disabled or now > row.ends or now > row.seen + self._idle:
            return None
        if touch and now > row.seen + STAMP_SECONDS:
            with self._database.write() as connection:
                connection.execute(update(sessions).where(ours).values(seen=now))
        return Person(row.name, row.display, row.role, scopes_of(row.role), "session", token_hash, address)

    def end_session(self, token_hash: str) -> None:
        """End one session, by `Person.session`, at once."""
        with self._database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.token_hash == token_hash))

    def end_sessions(self, name: str) -> int:
        """End all sessions of a person at once; return how many there were."""
        with self._database.write() as connection:
            return connection.execute(delete(sessions).where(sessions.c.person == name)).rowcount


def checked_name(name: str) -> str:
    """Return a person's name in lower case. Raises UsageError if it can't be one."""
    lower = name.strip().lower()
    if not _NAME.fullmatch(lower):
        raise UsageError("a person's name has 1 to 64 of a-z, 0-9 and . _ @ + -, and begins with a letter or digit")
    return lower


def check_role(role: str) -> None:
    """Raise UsageError unless there is such a role."""
    if role not in ROLES:
        raise UsageError(f'there is no role "{role}": it is one of {", ".join(ROLES)}')


def _row(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(select(people).where(people.c.name == name)).first()


def _line(row: Row[Any]) -> PersonLine:
    signs_in = "password" if row.password is not None else ("OpenID" if row.subject is not None else "not yet")
    return PersonLine(
        row.name, row.display, cast(Role, row.role), signs_in, row.disabled, row.created, row.by, row.seen
    )
