"""`wardround kits ...`: the coordinator's side of the certificates. A thin skin over `certs.kits`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from certs.authority import AUTHORITY_DAYS, NODE_DAYS, expiry_warning
from certs.kits import Standing, add_site, admit, create_kits, list_standings, renew, revoke
from certs.layout import KitsFolder
from certs.pem import read_certificate
from common.federation import COORDINATOR_NAME, read_federation

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Create a federation's authority and startup kits; admit, renew and revoke sites.",
)

KitsOption = Annotated[Path, typer.Option("--kits", help="The folder that `wardround kits create` made.")]
DaysOption = Annotated[
    int,
    typer.Option(
        "--days", min=1, max=AUTHORITY_DAYS, help="Days that the certificate is valid (a site's, a server's)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def create(
    federation: Annotated[Path, typer.Argument(help="The federation's TOML file.")],
    out: Annotated[Path, typer.Option(help="Where to make the kits. Nothing may be there yet.")] = Path("kits"),
    days: DaysOption = NODE_DAYS,
    authority_days: Annotated[
        int, typer.Option(min=1, max=10 * AUTHORITY_DAYS, help="Days that the authority is valid.")
    ] = AUTHORITY_DAYS,
) -> None:
    """Create a federation: its authority, the coordinator's certificate and key, and a kit for each site.

    Example: wardround kits create federation.toml --out kits
    """
    described = read_federation(federation)
    create_kits(described, out, days_valid=days, authority_days=authority_days)
    typer.echo(f"{described.name}: kits made in {out}")
    typer.echo(f"  {out / 'authority'}: decides who is in the federation. Keep it offline, and a backup of it.")
    typer.echo(f"  {out / 'coordinator'}: for the coordinator's machine")
    for name in described.site_names:
        typer.echo(f"  {out / 'sites' / name}: give it to {name}, who runs `wardround site enrol` on it")


@app.command("admit")
def admit_(
    request: Annotated[Path, typer.Argument(help="The request that the site sent, NAME.request.pem.")],
    kits: KitsOption = Path("kits"),
    days: DaysOption = NODE_DAYS,
) -> None:
    """Admit a site: issue the certificate it asks for, and put it on the coordinator's roster.

    Example: wardround kits admit north.request.pem --kits kits
    """
    _hand_back(admit(kits, request, days_valid=days), kits)


@app.command("renew")
def renew_(
    name: Annotated[str, typer.Argument(help=f'The site\'s name, or "{COORDINATOR_NAME}".')],
    request: Annotated[
        Path | None, typer.Option(help="The site's new request, when it made a new key (default: the same key).")
    ] = None,
    kits: KitsOption = Path("kits"),
    days: DaysOption = NODE_DAYS,
) -> None:
    """Issue a new certificate for one site, or for the coordinator. Everybody else's stays as it is.

    Example: wardround kits renew north
    """
    certificate = renew(kits, name, request, days_valid=days)
    if name == COORDINATOR_NAME:
        typer.echo(f"{certificate}: renewed; it is in use once the coordinator is started again")
        _warn_of(certificate, name)
        return
    _hand_back(certificate, kits)


@app.command("revoke")
def revoke_(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    kits: KitsOption = Path("kits"),
) -> None:
    """Put a site out. Its key is never admitted again; it may enrol anew with a new key.

    Example: wardround kits revoke north
    """
    kept = revoke(kits, name)
    typer.echo(f"{name}: revoked; its certificate is kept as {kept}")
    typer.echo(f"If the coordinator is on another machine, copy this folder there: {KitsFolder.at(kits).roster}")


@app.command("add-site")
def add_site_(
    name: Annotated[str, typer.Argument(help="The new site's name.")],
    title: Annotated[str, typer.Option(help="The hospital's full name, for people.")] = "",
    contact: Annotated[str, typer.Option(help="Whom to write to about this site.")] = "",
    kits: KitsOption = Path("kits"),
) -> None:
    """Add a site to the federation and make its kit.

    Example: wardround kits add-site west --title "West Hospital"
    """
    folder = add_site(kits, name, title=title, contact=contact)
    typer.echo(f"{folder}: give it to {name}, who runs `wardround site enrol` on it")


@app.command("list")
def list_(kits: KitsOption = Path("kits"), as_json: JsonOption = False) -> None:
    """List who is admitted and until when. Warns of what ends within a month.

    Example: wardround kits list --json
    """
    standings = list_standings(kits)
    if as_json:
        typer.echo(json.dumps([_row(standing) for standing in standings], indent=2))
    else:
        Console().print(_table(standings))
    for standing in standings:
        if standing.warning:
            typer.echo(f"warning: {standing.warning}", err=True)


def _hand_back(certificate: Path, kits: Path) -> None:
    name, roster = certificate.stem, KitsFolder.at(kits).roster
    typer.echo(f"{certificate}: send it back to {name}, who installs it with `wardround site enrol --certificate`")
    typer.echo(f"{name} is on the roster. If the coordinator is on another machine, copy this folder there: {roster}")
    _warn_of(certificate, name)


def _warn_of(certificate: Path, name: str) -> None:
    """Say at once when a new certificate ends soon, as one does when the authority itself is near its end."""
    if warning := expiry_warning(read_certificate(certificate), f"{name}'s new certificate"):
        typer.echo(f"warning: {warning}", err=True)


def _row(standing: Standing) -> dict[str, str | int | None]:
    ends = standing.not_after.isoformat() if standing.not_after else None
    return {**dataclasses.asdict(standing), "not_after": ends}


def _table(standings: list[Standing]) -> Table:
    table = Table("role", "name", "status", "until", "days left")
    for standing in standings:
        until = f"{standing.not_after:%Y-%m-%d}" if standing.not_after else ""
        left = "" if standing.days_left is None else str(standing.days_left)
        table.add_row(standing.role, standing.name, standing.status, until, left)
    return table
