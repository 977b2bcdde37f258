"""The API's endpoints about people, their tokens, and the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from common.errors import UsageError
from server.actions import Actions
from server.dashboard import schemas
from server.dashboard.schemas import AuditEntry, AuditPage, Limit, Number, Offset, PersonAnswer, PersonName, TokenAnswer
from server.dashboard.security import Needs, NeedsSession, signed_in
from server.people import People
from server.readmodel import ReadModel
from server.roles import Person

Admin = Annotated[Person, Depends(Needs("people"))]
Anybody = Annotated[Person, Depends(signed_in)]
ByHand = Annotated[Person, Depends(NeedsSession())]


def people_router(read: ReadModel, actions: Actions, people: People) -> APIRouter:
    """Return the endpoints about people, tokens and the audit log."""
    router = APIRouter(tags=["people"])
    _add_tokens(router, actions, people)

    @router.get("/people")
    def everybody(_: Admin) -> tuple[PersonAnswer, ...]:
        """Return who may use this coordinator."""
        return tuple(PersonAnswer.model_validate(line) for line in people.list())

    @router.post("/people", status_code=201)
    def add(new: schemas.NewPerson, person: Admin) -> PersonAnswer:
        """Add somebody."""
        name = actions.add_person(person, new.name, new.role, display=new.display, password=new.password)
        return PersonAnswer.model_validate(people.get(name))

    @router.patch("/people/{name}")
    def change(name: PersonName, wish: schemas.PersonChange, person: Admin) -> PersonAnswer:
        """Change a person's role, or shut them out: their sessions and tokens end at once."""
        if wish.role is None and wish.disabled is None:
            raise UsageError('say what is to be changed: "role" or "disabled"')
        if wish.role is not None:
            actions.set_role(person, name, wish.role)
        if wish.disabled is not None:
            actions.disable_person(person, name, wish.disabled)
        return PersonAnswer.model_validate(people.get(name))

    @router.put("/people/{name}/password", status_code=204)
    def password(name: PersonName, wish: schemas.NewPassword, person: ByHand) -> None:
        """Give oneself (or, as an admin, another) a new password; that person's sessions end."""
        actions.set_password(person, name, wish.password, old=wish.old)

    @router.post("/people/{name}/sign-out")
    def sign_out(name: PersonName, person: Anybody) -> schemas.SignedOut:
        """End all of one's own sessions, or (an admin) those of another."""
        return schemas.SignedOut(sessions=actions.sign_out_everywhere(person, name))

    @router.get("/audit")
    def audit(_: Annotated[Person, Depends(Needs("audit"))], offset: Offset = 0, limit: Limit = 100) -> AuditPage:
        """Return entries of the coordinator's audit log, the newest first."""
        found = read.audit(offset=offset, limit=limit)
        items = tuple(AuditEntry.model_validate(entry) for entry in found.items)
        return AuditPage(items=items, total=found.total, offset=offset, limit=limit)

    return router


def _add_tokens(router: APIRouter, actions: Actions, people: People) -> None:
    @router.get("/tokens")
    def tokens(
        person: Anybody, everybody: Annotated[bool, Query(description="Those of all people (admins).")] = False
    ) -> tuple[TokenAnswer, ...]:
        """Return one's own tokens, or everybody's, without their secrets."""
        if everybody:
            person.require("people")
        return tuple(TokenAnswer.model_validate(line) for line in people.tokens("" if everybody else person.name))

    @router.post("/tokens", status_code=201)
    def issue(wish: schemas.NewToken, person: ByHand) -> schemas.TokenIssued:
        """Make a token for one's own scripts, or (an admin) for another's."""
        line, secret = actions.issue_token(person, wish.name, list(wish.scopes), wish.days, whose=wish.person)
        return schemas.TokenIssued(token=TokenAnswer.model_validate(line), secret=secret)

    @router.delete("/tokens/{number}", status_code=204)
    def revoke(number: Number, person: Anybody) -> None:
        """End a token at once: one's own, or (an admin) another's."""
        actions.revoke_token(person, number)
