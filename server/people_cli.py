"""`wardround people`: who may use the dashboard and the API. What is done here is in the audit log, too."""

from __future__ import annotations

import dataclasses
import getpass
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from common.errors import UsageError
from common.kit import find_kit

if TYPE_CHECKING:
    from server.actions import Actions
    from server.people import People
    from server.roles import Person, Role

HELP = "Say who may use the dashboard and the API, and as what."
app = typer.Typer(no_args_is_help=True, add_completion=False, help=HELP)

KitOption = Annotated[
    Path | None, typer.Option("--kit", help="The coordinator's kit folder (default: $WARDROUND_KIT, else here).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The person's name, as they sign in.")]
StdinOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input and do not ask for it.")
]
ROLES_HELP = "viewer (reads), coordinator (also runs and models) or admin (also people and the audit log)."


@app.command()
def add(
    name: NameArgument,
    role: Annotated[str, typer.Option(help=ROLES_HELP)] = "viewer",
    display: Annotated[str, typer.Option(help="The name as people know it.")] = "",
    openid: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help='The provider\'s "sub" of them, in place of a password.')
    ] = None,
    password_stdin: StdinOption = False,
    kit: KitOption = None,
) -> None:
    """Let somebody use the dashboard. Their password is asked for, twice.

    Example: wardround people add anna --role admin --display "Anna Berg" --kit kits/coordinator
    """
    actions, people, terminal = _open(kit)
    secret = None if openid is not None else _password(password_stdin)
    subject = None
    if openid is not None:
        from server.dashboard.oidc import subject_of
        from server.dashboard.settings import read_settings

        settings = read_settings(find_kit(kit, "coordinator")).openid
        if settings is None:
            raise UsageError("--openid: the kit's dashboard.toml has no [openid]: add it first")
        subject = subject_of(settings.issuer, openid)
    kept = actions.add_person(terminal, name, cast("Role", role), display=display, password=secret, subject=subject)
    typer.echo(f"{kept} may sign in as {people.get(kept).role}")


@app.command("list")
def list_(kit: KitOption = None, as_json: JsonOption = False) -> None:
    """List the people who may use the dashboard.

    Example: wardround people list --json
    """
    from server.report import moment

    found = _open(kit)[1].list()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(line) for line in found], indent=2))
    elif not found:
        typer.echo("Nobody yet: wardround people add NAME --role admin")
    else:
        table = Table("name", "role", "signs in with", "last seen (UTC)", "added by", box=None)
        for line in found:
            seen = "shut out" if line.disabled else moment(line.seen)
            table.add_row(line.name, line.role, line.signs_in, seen, line.by)
        Console().print(table)


@app.command()
def role(name: NameArgument, role: Annotated[str, typer.Argument(help=ROLES_HELP)], kit: KitOption = None) -> None:
    """Give a person another role, at once.

    Example: wardround people role vera coordinator
    """
    actions, _, terminal = _open(kit)
    actions.set_role(terminal, name, cast("Role", role))
    typer.echo(f"{name} is {role} now")


@app.command()
def password(name: NameArgument, password_stdin: StdinOption = False, kit: KitOption = None) -> None:
    """Give a person another password, and end their sessions.

    Example: wardround people password anna
    """
    actions, people, terminal = _open(kit)
    people.get(name)
    actions.set_password(terminal, name, _password(password_stdin))
    typer.echo(f"{name} has a new password, and is signed out everywhere")


@app.command()
def disable(name: NameArgument, kit: KitOption = None) -> None:
    """Shut a person out: their sessions and tokens end at once.

    Example: wardround people disable vera
    """
    actions, _, terminal = _open(kit)
    actions.disable_person(terminal, name)
    typer.echo(f"{name} is shut out; to let them in again: wardround people enable {name}")


@app.command()
def enable(name: NameArgument, kit: KitOption = None) -> None:
    """Let a person in again who was shut out. Their tokens stay revoked.

    Example: wardround people enable vera
    """
    actions, _, terminal = _open(kit)
    actions.disable_person(terminal, name, False)
    typer.echo(f"{name} may sign in again")


@app.command("sign-out")
def sign_out(name: NameArgument, kit: KitOption = None) -> None:
    """End all sessions of a person, at once.

    Example: wardround people sign-out vera
    """
    actions, _, terminal = _open(kit)
    typer.echo(f"{actions.sign_out_everywhere(terminal, name)} sessions of {name} are ended")


@app.command()
def token(
    name: NameArgument,
    label: Annotated[str, typer.Option("--for", metavar="TEXT", help="What the token is for.")],
    scope: Annotated[list[str], typer.Option(help="read, metrics, run, models, people or audit; several times.")],
    days: Annotated[int, typer.Option(help="Days until it ends.")] = 30,
    kit: KitOption = None,
) -> None:
    """Make a token for a person's scripts and print it, this once.

    Example: wardround people token anna --for "nightly runs" --scope read --scope run --days 90
    """
    actions, _, terminal = _open(kit)
    line, secret = actions.issue_token(terminal, label, scope, days, whose=name)
    typer.echo(secret)
    ends = time.strftime("%Y-%m-%d", time.gmtime(line.ends))
    typer.echo(f"token {line.id} of {name} for {label}: ends on {ends}; it is shown this once", err=True)


@app.command()
def tokens(
    name: Annotated[str, typer.Argument(help="Whose tokens (default: everybody's).")] = "",
    revoke: Annotated[int | None, typer.Option(metavar="ID", help="End this token, at once.")] = None,
    kit: KitOption = None,
    as_json: JsonOption = False,
) -> None:
    """List tokens, or end one.

    Example: wardround people tokens anna
             wardround people tokens --revoke 3
    """
    from server.report import moment

    actions, people, terminal = _open(kit)
    if revoke is not None:
        actions.revoke_token(terminal, revoke)
        typer.echo(f"token {revoke} is revoked")
        return
    found = people.tokens(name)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(line) for line in found], indent=2))
        return
    table = Table("id", "person", "for", "scopes", "ends (UTC)", "last used (UTC)", box=None)
    for line in found:
        ends = "revoked" if line.revoked else moment(line.ends)
        table.add_row(str(line.id), line.person, line.name, " ".join(line.scopes), ends, moment(line.used))
    Console().print(table)


def _open(kit: Path | None) -> tuple[Actions, People, Person]:
    """The door to everything, and the person at the coordinator's own terminal: whoever may read its key may all."""
    from server.actions import Actions
    from server.people import People
    from server.registry import open_registry
    from server.roles import Person, scopes_of

    found = find_kit(kit, "coordinator")
    registry = open_registry(found)
    people = People(registry.database)
    # No name of a person has a colon: nobody can be taken for the terminal.
    terminal = f"terminal:{getpass.getuser()}"
    person = Person(terminal, terminal, "admin", scopes_of("admin"), "session")
    return Actions(registry, found, people), people, person


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for a password on: use --password-stdin")
    first = getpass.getpass("Password (12 characters or more): ")
    if getpass.getpass("The same again: ") != first:
        raise UsageError("the two are not the same: nothing was changed")
    return first
