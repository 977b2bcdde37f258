"""What an admin changes about one person, in a dialog."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from nicegui import ui

from common.errors import NotFoundError
from common.web.forms import Field, button, confirmed, dialog, tell
from server.dashboard.pages.desk import Desk
from server.people import PersonLine
from server.roles import ROLES, Person, Role


async def change_person(desk: Desk, person: Person, name: str) -> None:
    """Ask what is to be changed about the person called `name`, and do it."""
    try:
        line = desk.people.get(name)
    except NotFoundError as error:
        tell(str(error), bad=True)
        return
    with dialog(f"Change {line.name}") as box:
        with ui.element("div").classes("form"):
            _role(desk, person, line)
        if line.signs_in != "OpenID" and line.name != person.name:  # one's own needs the old one
            with ui.element("div").classes("form").style("margin-top: 12px"):
                _password(desk, person, line)
        with ui.element("div").classes("row-of").style("margin-top: 16px"):
            _doors(desk, person, line)
            button("Close", lambda: box.submit(None), kind="plain")
    await box


def _role(desk: Desk, person: Person, line: PersonLine) -> None:
    role = Field("Role", line.role, options=ROLES)

    def change(who: Person) -> None:
        desk.actions.set_role(who, line.name, cast(Role, role.value))

    button("Change the role", lambda: desk.act(person, change, f"{line.name}'s role is changed."))


def _password(desk: Desk, person: Person, line: PersonLine) -> None:
    password = Field("New password", hint="12 or more", kind="password", autocomplete="new-password", maxlength="1000")

    def change(who: Person) -> None:
        desk.actions.set_password(who, line.name, password.value)

    button("Set the password", lambda: desk.act(person, change, f"{line.name} has another password."))


def _doors(desk: Desk, person: Person, line: PersonLine) -> None:
    def act(action: Callable[[Person], object], done: str) -> Callable[[], object]:
        return lambda: desk.act(person, action, done)

    async def shut() -> None:
        text = "They are signed out at once, their tokens end, and they can't come back until they are let in again."
        if await confirmed("Shut this person out?", text, "Shut out", kind="bad"):
            await desk.act(person, lambda who: desk.actions.disable_person(who, line.name), f"{line.name} is shut out.")

    button(
        "Sign out everywhere",
        act(lambda who: desk.actions.sign_out_everywhere(who, line.name), f"{line.name}'s sessions are ended."),
        kind="plain",
    )
    if line.disabled:
        letting_in = act(lambda who: desk.actions.disable_person(who, line.name, False), f"{line.name} may sign in.")
        button("Let in again", letting_in, kind="plain")
    else:
        button("Shut out", shut, kind="bad")
