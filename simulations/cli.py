"""`wardround demo`: a whole federation on this machine. A thin skin over `simulations.demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

HELP = "Train a whole federation of hospitals on this machine, to see how it works."
demo = typer.Typer(add_completion=False, help=HELP)


@demo.command()
def _demo(
    sites: Annotated[int, typer.Option(min=2, max=32, help="How many hospitals.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="How many rounds.")] = 10,
    data: Annotated[
        Path | None, typer.Option(help="A folder of your own images with labels.csv: split into hospitals by patient.")
    ] = None,
    allow_identified: Annotated[
        bool, typer.Option("--allow-identified", help="With --data: also use files whose headers identify the patient.")
    ] = False,
    keep: Annotated[Path | None, typer.Option(help="A new folder in which to leave everything, images too.")] = None,
    no_privacy: Annotated[bool, typer.Option("--no-privacy", help="Train without differential privacy.")] = False,
    patients: Annotated[
        float, typer.Option(min=0.05, max=100, help="Phantom hospitals of so many times the usual patients.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the phantom images, the split and the model.")] = 0,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Serve no dashboard meanwhile.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON (progress goes to standard error).")
    ] = False,
) -> None:
    """Make hospitals with certificates, keys and DICOM of phantoms; train one model across them; compare.

    The coordinator and the sites are processes of their own that speak TLS gRPC on loopback, as in a real federation.
    Ctrl-C ends them all.

    Example: wardround demo
             wardround demo --sites 5 --rounds 20 --keep demo
    """
    from simulations.demo import DemoOptions, run_demo

    options = DemoOptions(
        sites=sites, rounds=rounds, private=not no_privacy, data=data, allow_identified=allow_identified,
        keep=keep, patients=patients, seed=seed, dashboard=not no_dashboard,
    )  # fmt: skip
    try:
        result = run_demo(options, Console(stderr=as_json))
    except KeyboardInterrupt:
        typer.echo("\nStopped. No process is left running.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result.as_data(), indent=2))
