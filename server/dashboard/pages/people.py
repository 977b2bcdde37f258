"""People: for everybody their own password and tokens; for an admin everybody, and what they may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from common.web import tables, words
from common.web.forms import Field, button, confirmed, html, tell
from common.web.frame import Piece, Pieces, follow, sheet
from common.web.tables import Column, Heading, badge
from server.dashboard.pages.desk import Desk
from server.people import PersonLine, TokenLine
from server.roles import NEEDS, ROLES, Person, Role, scopes_of

MEANINGS = {
    "viewer": "sees everything but the audit log",
    "coordinator": "also starts, stops and resumes runs, fetches models and decides on them",
    "admin": "also adds people, changes roles and reads the audit log",
}


def add(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/people")
    async def people(request: Request) -> None:
        with desk.page(request, "People", "/people") as person:
            pieces = await Pieces(lambda: pieces_of(desk, person)).load()
            if person.may("people"):
                with sheet("Everybody"):
                    pieces.put("people")
                    _manage(desk, person)
                with sheet("Add a person"):
                    _add(desk, person)
            with sheet("Your tokens"):
                pieces.put("tokens")
                _tokens(desk, person)
            with sheet("Your password"):
                _password(desk, person)
            follow(desk.feed, pieces.refresh)


def pieces_of(desk: Desk, person: Person) -> Mapping[str, Piece]:
    """Return the page's pieces."""
    everybody = desk.people.list() if person.may("people") else ()
    heads: list[Heading] = ["Name", "Shown as", "Role", "Signs in with", "State", "Last seen", "Added", "By"]
    tokens = desk.people.tokens("" if person.may("people") else person.name)
    token_heads: list[Heading] = [
        Column("Number", number=True),
        "Token",
        "Of",
        "Scopes",
        "Made",
        "Ends",
        "Last used",
        "State",
    ]
    return {
        "people": tables.table(f"{len(everybody)} people", heads, [_person(line) for line in everybody]),
        "tokens": tables.table(
            "Tokens let scripts in by the API; only their hashes are kept", token_heads, [_token(line) for line in tokens],
            empty="No token yet.",
        ),
    }  # fmt: skip


def _person(line: PersonLine) -> Sequence[object]:
    state = badge("disabled", "bad") if line.disabled else badge("active", "good")
    return (
        line.name, line.display, line.role, line.signs_in, state, words.when(line.seen), words.when(line.created), line.by,
    )  # fmt: skip


def _token(line: TokenLine) -> Sequence[object]:
    state = badge("revoked", "bad") if line.revoked else badge("valid until its end", "good")
    return (
        line.id, line.name, line.person, ", ".join(line.scopes), words.when(line.created), words.when(line.ends),
        words.when(line.used), state,
    )  # fmt: skip


def _manage(desk: Desk, person: Person) -> None:
    with ui.element("div").classes("form").style("margin-top: 14px"):
        name = Field("Change the person", placeholder="name", autocomplete="off")
        role = Field("New role", ROLES[0], options=ROLES)

        async def change() -> None:
            await desk.act(
                person,
                lambda who: desk.actions.set_role(who, name.value, cast(Role, role.value)),
                "The role is changed.",
            )

        async def shut(disabled: bool) -> None:
            text = "They are signed out at once, and can't come back until they are let in again."
            if disabled and not await confirmed("Shut this person out?", text, "Shut out", kind="bad"):
                return
            done = "They are shut out." if disabled else "They may sign in again."
            await desk.act(person, lambda who: desk.actions.disable_person(who, name.value, disabled), done)

        async def out() -> None:
            await desk.act(
                person, lambda who: desk.actions.sign_out_everywhere(who, name.value), "All their sessions are ended."
            )

        with ui.element("div").classes("row-of").style("grid-column: 1 / -1"):
            button("Change the role", change)
            button("Sign out everywhere", out, kind="plain")
            button("Let in again", lambda: shut(False), kind="plain")
            button("Shut out", lambda: shut(True), kind="bad")


def _add(desk: Desk, person: Person) -> None:
    told = Markup("").join(Markup("<li><strong>{}</strong> {}</li>").format(role, MEANINGS[role]) for role in ROLES)
    html(Markup('<ul class="soft">{}</ul>').format(told))
    with ui.element("div").classes("form"):
        name = Field("Name to sign in with", autocomplete="off", maxlength="64")
        display = Field("Shown as", autocomplete="off", maxlength="200")
        role = Field("Role", ROLES[0], options=ROLES)
        password = Field("First password (12 characters or more)", kind="password", autocomplete="new-password")

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


def _tokens(desk: Desk, person: Person) -> None:
    scopes = [scope for scope in NEEDS if scope in scopes_of(person.role)]
    with ui.element("div").classes("form").style("margin-top: 14px"):
        name = Field("What the token is for", autocomplete="off", maxlength="100")
        wanted = Field(f"Scopes, with commas ({', '.join(scopes)})", "read", autocomplete="off")
        days = Field("Days until it ends", "90", kind="number", min="1", max="366")
        number = Field("Number of a token to end", kind="number", min="1")
        shown = ui.element("div").props('role="status"').style("grid-column: 1 / -1")

        async def issue() -> None:
            asked = [scope.strip() for scope in wanted.value.split(",") if scope.strip()]
            length = float(days.value) if days.value.replace(".", "", 1).isdigit() else 0.0
            made = await desk.act(person, lambda who: desk.actions.issue_token(who, name.value, asked, length))
            if made is not None:
                shown.clear()
                with shown:
                    html(Markup("{}").format(tables.note(Markup(
                        "Copy it now, it is not shown again: <code>{}</code>").format(made[1]))))  # fmt: skip

        async def revoke() -> None:
            which = int(number.value) if number.value.isdigit() else 0
            await desk.act(person, lambda who: desk.actions.revoke_token(who, which), "The token is ended.")

        with ui.element("div").classes("row-of").style("grid-column: 1 / -1"):
            button("Make a token", issue)
            button("End the token", revoke, kind="plain")


def _password(desk: Desk, person: Person) -> None:
    with ui.element("div").classes("form"):
        old = Field("Password now", kind="password", autocomplete="current-password")
        new = Field("New password (12 characters or more)", kind="password", autocomplete="new-password")
        again = Field("The new one again", kind="password", autocomplete="new-password")

        async def go() -> None:
            if new.value != again.value:
                tell("the two new passwords are not the same: type them again", bad=True)
                return
            await desk.act(
                person,
                lambda who: desk.actions.set_password(who, person.name, new.value, old=old.value),
                "The password is changed: sign in again with it.",
            )

        button("Change the password", go)
