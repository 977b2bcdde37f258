"""`wardround kits ...`: the federation's authority."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True, help="Create a federation's authority and startup kits; admit, renew and revoke sites."
)

KitsOption = Annotated[Path, typer.Option("--kits", help="The folder that `kits create` made.")]


@app.command()
def create(
    federation: Annotated[Path, typer.Argument(help="The federation's TOML file.")],
    out: Annotated[Path, typer.Option(help="The new folder.")] = Path("kits"),
) -> None:
    """Create the authority, the coordinator's kit, and a kit for each site.

    Example: wardround kits create federation.toml --out kits
    """
    from certs.kits import create_kits
    from common.federation import read_federation

    found = read_federation(federation)
    create_kits(found, out)
    typer.echo(f"{out}/authority: the authority of {found.name}; keep it offline")
    typer.echo(f"{out}/coordinator: for the coordinator's machine; it holds the server's private key")
    for site in found.sites:
        typer.echo(f"{out}/sites/{site.name}: for the site; it holds no secret")


@app.command("add-site")
def add_site(
    name: Annotated[str, typer.Argument(help="The new site's name.")],
    kits: KitsOption = Path("kits"),
    title: Annotated[str, typer.Option(help="The hospital's name for people.")] = "",
    contact: Annotated[str, typer.Option(help="Whom to ask there.")] = "",
) -> None:
    """Add a site to the federation and make its kit; the others' kits stay as they are.

    Example: wardround kits add-site west --kits kits
    """
    from pydantic import ValidationError

    from certs.kits import add_site as add
    from common.errors import UsageError
    from common.federation import SiteEntry

    try:
        site = SiteEntry(name=name, title=title, contact=contact)
    except ValidationError as error:
        raise UsageError(f'"{name}" can\'t be a site\'s name: letters, digits, ".", "_" and "-" only') from error
    typer.echo(f"{add(kits, site)}: give this folder to the site")


@app.command()
def admit(
    request: Annotated[Path, typer.Argument(help="The request that `wardround site enrol` made.")],
    kits: KitsOption = Path("kits"),
) -> None:
    """Sign a site's request and let it connect.

    Example: wardround kits admit north.request.pem --kits kits
    """
    from certs.kits import admit as sign

    typer.echo(f"{sign(kits, request)}: send this certificate back to the site")


@app.command()
def renew(
    name: Annotated[str, typer.Argument(help='The site\'s name, or "coordinator".')],
    kits: KitsOption = Path("kits"),
    request: Annotated[Path | None, typer.Option(help="A new request of the site: its key changes too.")] = None,
) -> None:
    """Issue a new certificate for one site, or for the coordinator's server.

    Example: wardround kits renew north --kits kits
    """
    from certs.kits import renew as issue

    target = issue(kits, name, request)
    where = "start the coordinator again" if name == "coordinator" else "send this certificate to the site"
    typer.echo(f"{target}: {where}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    kits: KitsOption = Path("kits"),
) -> None:
    """Take one site off the roster for good: its key can't connect again.

    Example: wardround kits revoke north --kits kits
    """
    from certs.kits import revoke as take_off

    take_off(kits, name)
    typer.echo(f"{name}: revoked; a running coordinator shuts it out within seconds")


@app.command("list")
def list_(
    kits: KitsOption = Path("kits"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the federation's sites: who is admitted, and until when.

    Example: wardround kits list --json
    """
    from certs.authority import expiry_warning, read_certificate
    from certs.kits import open_authority, read_roster

    authority = open_authority(kits)
    roster = read_roster(authority.roster)
    rows = [
        {
            "site": site.name,
            "admitted": site.name in roster,
            "until": roster[site.name].not_after.isoformat() if site.name in roster else None,
        }
        for site in authority.federation.sites
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        table = Table("site", "admitted", "certificate until")
        for row in rows:
            table.add_row(str(row["site"]), "yes" if row["admitted"] else "no", str(row["until"] or "")[:10])
        Console().print(table)
    folder = kits / "coordinator"
    ends = [(folder / "server.crt", "coordinator"), *((authority.roster / f"{name}.crt", name) for name in roster)]
    for path, name in ends:
        if warning := expiry_warning(read_certificate(path), name, f"wardround kits renew {name}"):
            typer.echo(f"warning: {warning}", err=True)
