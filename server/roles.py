"""Who may do what: roles of people, scopes of tokens, and the one table that relates them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from common.errors import ForbiddenError

Role = Literal["viewer", "coordinator", "admin"]
Scope = Literal["read", "metrics", "run", "models", "people", "audit"]
ROLES: tuple[Role, ...] = get_args(Role)
SCOPES: tuple[Scope, ...] = get_args(Scope)

NEEDS: Mapping[Scope, Role] = {
    "read": "viewer",
    "metrics": "viewer",
    "run": "coordinator",
    "models": "coordinator",
    "people": "admin",
    "audit": "admin",
}
"""The least role that each scope needs. A role includes those before it in `ROLES`.

`read`: the federation, runs and models; `metrics`: Prometheus' numbers; `run`: checking, planning, starting, stopping
and resuming runs; `models`: fetching model files and deciding on their stage; `people`: people, their roles and their
tokens; `audit`: the audit log.
"""


@dataclass(frozen=True)
class Person:
    """Somebody who is signed in. `scopes` are those that the role has and, by a token, the token has too.

    `session` is the hash that names the session or token, `address` where it is used from.
    """

    name: str
    display: str
    role: Role
    scopes: frozenset[str]
    via: Literal["session", "token"]
    session: str = ""
    address: str = ""

    def may(self, scope: Scope) -> bool:
        """Whether this person, this way, may do what `scope` names."""
        return scope in self.scopes

    def require(self, scope: Scope) -> None:
        """Raise ForbiddenError unless the person may do what `scope` names, saying which role or scope is missing."""
        if self.may(scope):
            return
        if scope in scopes_of(self.role):
            raise ForbiddenError(f'this token has no scope "{scope}": use one that has it')
        raise ForbiddenError(f'{self.name} is a {self.role}: this needs the role "{NEEDS[scope]}"; ask an admin')

    def require_session(self) -> None:
        """Raise ForbiddenError for a token: passwords and tokens are changed by who is signed in with a password."""
        if self.via != "session":
            raise ForbiddenError("a token can't do this: sign in")


def scopes_of(role: Role) -> frozenset[str]:
    """Return every scope that a role has."""
    rank = ROLES.index(role)
    return frozenset(scope for scope, least in NEEDS.items() if ROLES.index(least) <= rank)
