"""`wardround models ...`: models handed out, in the formats that others take."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from server.cli import JsonOption, KitOption

app = typer.Typer(no_args_is_help=True, add_completion=False)


class Format(StrEnum):
    """A format that models are exported in."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    BUNDLE = "bundle"


class Which(StrEnum):
    """Which of a run's models."""

    BEST = "best"
    LAST = "last"


@app.callback()
def _models() -> None:
    """Export a run's model: for a hospital, for ONNX, as a MONAI bundle."""


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or the start of it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file (of a bundle: the folder) that is made.")],
    kind: Annotated[
        Format, typer.Option("--format", help="safetensors: for wardround predict; onnx; bundle: MONAI's.")
    ] = Format.SAFETENSORS,
    which: Annotated[Which, typer.Option(help="Which of the run's models.")] = Which.BEST,
    kit: KitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's model to a file, load it back, and say how far its outputs are from the model's own.

    Example: wardround models export chest-260101-a1b2c3 chest.safetensors --kit kits/coordinator
             wardround models export chest chest-bundle --format bundle
    """
    from server.export.formats import export_model
    from server.kept import kept_model

    found = export_model(kept_model(run, kit, which.value), out, kind.value)
    if as_json:
        typer.echo(json.dumps({"file": str(out), "format": kind.value, "largest_difference": found}))
        return
    typer.echo(f"{out}: loaded back; its outputs differ from the model's by at most {found:.2g}")
