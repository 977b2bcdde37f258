"""People: for everybody their own password and tokens; for an admin everybody, and what they may do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import cast

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.errors import SignInError, SlowDownError, UsageError
from common.web import tables, words
from common.web.forms import Field, Ticks, button, confirmed, html, on_pick, tell
from common.web.frame import Piece, Pieces, follow, sheet
from common.web.tables import Heading, badge
from server.dashboard.pages.desk import Desk
from server.dashboard.pages.person import change_person
from server.people import PersonLine
from server.roles import NEEDS, ROLES, Person, Role, scopes_of
from server.tokens import TokenLine

MEANINGS: Mapping[Role, str] = {
    "viewer": "sees everything but the audit log",
    "coordinator": "also starts, stops and resumes runs, fetches models and decides on them",
    "admin": "also adds people, changes roles and reads the audit log",
}
LONG = "12 characters or more"


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/people")
    async def people(request: Request) -> None:
        with desk.page(request, "People", "/people") as person:
            pieces = await Pieces(lambda: pieces_of(desk, person)).load()
            if person.may("people"):
                with sheet("Everybody") as box:
                    pieces.put("people")
                on_pick(box, lambda name: change_person(desk, person, name))
                with sheet("Add a person"):
                    _add(desk, person)
            with sheet("Everybody's tokens" if person.may("people") else "Your tokens") as box:
                pieces.put("tokens")
            on_pick(box, lambda number: _end_token(desk, person, number))
            with sheet("Make a token for your scripts"):
                html('<p class="soft"><a href="/api/v1/docs">What scripts can do by the API</a></p>')
                _make_token(desk, person)
            with sheet("Your password and sessions"):
                _password(desk, person)
            follow(desk.feed, pieces.refresh)


def pieces_of(desk: Desk, person: Person) -> Mapping[str, Piece]:
    """Return the page's pieces."""
    everybody = desk.people.list() if person.may("people") else ()
    heads: list[Heading] = ["Name", "Shown as", "Role", "Signs in with", "State", "Last seen", "Added", "By", "Change"]
    tokens = desk.people.tokens("" if person.may("people") else person.name)
    token_heads: list[Heading] = ["Token", "Of", "Scopes", "Made", "Ends", "Last used", "State", "End it"]
    return {
        "people": tables.table(f"{len(everybody)} people", heads, [_person(line) for line in everybody]),
        "tokens": tables.table(
            "Tokens let scripts in by the API; only their hashes are kept",
            token_heads,
            [_token(line) for line in tokens],
            empty="No token yet.",
        ),
    }


def _person(line: PersonLine) -> Sequence[object]:
    return (
        line.name,
        line.display,
        line.role,
        line.signs_in,
        badge("shut out", "bad") if line.disabled else badge("active", "good"),
        words.when(line.seen),
        words.when(line.created),
        line.by,
        tables.pick("Change", line.name, f"Change {line.name}"),
    )


def _token(line: TokenLine) -> Sequence[object]:
    state = "ended by hand" if line.revoked else "ran out" if line.ends < time.time() else "valid"
    return (
        line.name,
        line.person,
        ", ".join(line.scopes),
        words.when(line.created),
        words.when(line.ends),
        words.when(line.used),
        badge(state, "good" if state == "valid" else ""),
        tables.pick("End", line.id, f"End the token {line.name} of {line.person}") if state == "valid" else None,
    )


def _add(desk: Desk, person: Person) -> None:
    told = (Markup("<li><strong>{}</strong> {}</li>").format(role, MEANINGS[role]) for role in ROLES)
    html(Markup('<ul class="soft">{}</ul>').format(Markup("").join(told)))
    with ui.element("div").classes("form"):
        name = Field("Name to sign in with", autocomplete="off", maxlength="64", autocapitalize="none")
        display = Field("Shown as", autocomplete="off", maxlength="200")
        role = Field("Role", ROLES[0], options=ROLES)
        password = _secret_field("First password", "new-password", LONG)

        async def go() -> None:
            added = await desk.act(
                person,
                lambda who: desk.actions.add_person(
                    who, name.value, cast(Role, role.value), display=display.value, password=password.value
                ),
            )
            if added is not None:
                tell(f"{added} may sign in now.")
                for field in (name, display, password):
                    field.show("")

        button("Add the person", go)


def _make_token(desk: Desk, person: Person) -> None:
    scopes = [scope for scope in NEEDS if scope in scopes_of(person.role)]
    with ui.element("div").classes("form"):
        name = Field("What it is for", autocomplete="off", maxlength="100")
        days = Field("Days until it ends", "90", kind="number", min="1", max="366")
        wanted = Ticks("What it may do", scopes, ["read"])
        shown = ui.element("div").props('role="status"').style("grid-column: 1 / -1")

        async def issue() -> None:
            made = await desk.act(
                person, lambda who: desk.actions.issue_token(who, name.value, list(wanted.value), _days(days.value))
            )
            if made is not None:
                name.show("")
                shown.clear()
                with shown:
                    html(_secret(made[1]))

        button("Make the token", issue)


def _secret(secret: str) -> Markup:
    return tables.note(
        Markup(
            "Copy it now, it is not shown again: <code>{}</code> "
            '<button type="button" class="button plain small" data-copy="{}">Copy</button>'
        ).format(secret, secret),
        "good",
    )


def _days(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError("say after how many days the token ends") from error


async def _end_token(desk: Desk, person: Person, number: str) -> None:
    if number.isdigit() and await confirmed(
        "End this token?", "Scripts that use it are refused at once, and for good.", "End it", kind="bad"
    ):
        await desk.act(person, lambda who: desk.actions.revoke_token(who, int(number)), "The token is ended.")


def _password(desk: Desk, person: Person) -> None:
    with ui.element("div").classes("form"):
        old = _secret_field("Password now", "current-password")
        new = _secret_field("New password", "new-password", LONG)
        again = _secret_field("The new one again", "new-password")

        def change(who: Person) -> None:
            if new.value != again.value:
                raise UsageError("the two new passwords are not the same: type them again")
            try:
                desk.actions.set_password(who, who.name, new.value, old=old.value)
            except SlowDownError:
                raise
            except SignInError as error:
                raise UsageError("the password that you have now is another: nothing was changed") from error

        async def out() -> None:
            if await confirmed("Sign out everywhere?", "All your sessions end, this one too.", "Sign out"):
                await desk.act(person, lambda who: desk.actions.sign_out_everywhere(who, who.name))

        button("Change the password", lambda: desk.act(person, change, "Changed: sign in again with the new one."))
        button("Sign out everywhere", out, kind="plain")


def _secret_field(label: str, autocomplete: str, hint: str = "") -> Field:
    return Field(label, hint=hint, kind="password", autocomplete=autocomplete, maxlength="1000")
