"""`wardround audit verify` and `wardround audit export`: a thin skin over `client.verification` and `client.papers`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.options import JsonOption, KitOption
from common.errors import UsageError
from common.files import read_text
from common.kit import find_kit

if TYPE_CHECKING:
    from common.audit import Head

verify = typer.Typer(add_completion=False)
export = typer.Typer(add_completion=False)

WitnessOption = Annotated[
    Path | None,
    typer.Option(help="A file of heads of this log that were kept elsewhere: JSON, one a line. It must hold them all."),
]


@verify.command()
def _verify(
    kit: KitOption = None,
    witness: WitnessOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that no entry of a site's audit log was changed, removed, moved or forged, and that the ledger agrees.

    Each fault is one line with its name. Exit code 1 if there is any. A log that was cut off cleanly, or put back from
    an older copy together with the ledger, is noticed only with a witness: a head that was kept elsewhere.

    Example: wardround audit verify --kit kits/sites/north --witness head.json
    """
    from client.verification import verify_site

    verdict = verify_site(find_kit(kit, "site").folder, _heads(witness))
    if as_json:
        found = {
            "ok": verdict.ok,
            "site": verdict.name,
            "entries": len(verdict.entries),
            "from": verdict.entries[0].at if verdict.entries else None,
            "to": verdict.entries[-1].at if verdict.entries else None,
            "faults": [dataclasses.asdict(fault) for fault in verdict.faults],
            "ledger": {"entries": len(verdict.rows), "agrees": not verdict.ledger, "problem": verdict.ledger},
            "public_key": verdict.public_key,
            "head": dataclasses.asdict(verdict.head) if verdict.head else None,
        }
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo("\n".join(verdict.lines()))
    if not verdict.ok:
        raise typer.Exit(1)


@export.command()
def _export(
    out: Annotated[Path, typer.Option(help="A folder for report.html, report.md and head.json; or one .html or .md.")],
    kit: KitOption = None,
    witness: WitnessOption = None,
) -> None:
    """Write the report that a data protection officer can read without help: what was allowed, what left, what it cost.

    Example: wardround audit export --kit kits/sites/north --out report
    """
    from client.papers import write_report

    for path in write_report(find_kit(kit, "site"), out, _heads(witness)):
        typer.echo(str(path))


def _heads(path: Path | None) -> list[Head]:
    """Read a file of heads, one a line."""
    from common.audit import Head
    from common.errors import DataError

    if path is None:
        return []
    try:
        heads = [Head.from_json(line) for line in read_text(path).splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"{path}: the witness can't be read: {error.strerror}") from error
    except DataError as error:
        raise UsageError(f"{path}: {error}: give the JSON that was kept, one head a line") from error
    if not heads:
        raise UsageError(f"{path}: there is no head in this file")
    return heads
