"""`wardround simulate`: a study as one file. A thin skin over `simulations.sweep`."""

from __future__ import annotations

import difflib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from common.errors import RunError, UsageError

SHIPPED = Path(__file__).parent / "scenarios"
HELP = "Run a study of simulated hospitals: strategies, partitions, privacy and faults, compared over seeds."
simulate = typer.Typer(add_completion=False, help=HELP)


class GridChoice(StrEnum):
    """What hospitals run on."""

    process = "process"
    ray = "ray"


@simulate.command()
def _simulate(
    scenario: Annotated[str, typer.Argument(help="A scenario's TOML file, or a shipped one's name.")] = "",
    out: Annotated[Path, typer.Option(help="Where results go; what is there already is not run again.")] = Path(
        "results"
    ),
    grid: Annotated[GridChoice, typer.Option(help="Hospitals in this process, or on Ray.")] = GridChoice.process,
    workers: Annotated[int | None, typer.Option(min=1, help="With Ray: how many processes (default: all).")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this arm only (again for more).")] = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu" or "cuda".')] = "auto",
    mlflow: Annotated[Path | None, typer.Option(help="Also log the runs to this MLflow folder.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Also log the runs to this TensorBoard folder.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped scenarios.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run what is missing of a scenario; write tables, figures and one HTML report to OUT/NAME.

    Every arm at every point of the grid with every seed is a run. What is done is kept: Ctrl-C ends it, and the same
    command goes on. Paths of data are below the scenario's folder, or below WARDROUND_DATA.

    Example: wardround simulate first-steps
             wardround simulate --list
             wardround simulate scenario.toml --out results --grid ray
    """
    if list_:
        _list(as_json)
        return
    from simulations.scenario import read_scenario
    from simulations.sweep import sweep
    from simulations.tracking import check_installed, log_to_mlflow, log_to_tensorboard
    from simulations.trial import Settings

    check_installed(mlflow=mlflow is not None, tensorboard=tensorboard is not None)
    file = read_scenario(_find(scenario))
    settings = Settings(grid.value, workers, device)
    found = sweep(file, out, settings, Console(stderr=True), only or ())
    if mlflow is not None:
        log_to_mlflow(mlflow, file.scenario.name, found.results)
    if tensorboard is not None:
        log_to_tensorboard(tensorboard, found.results)
    _show(found, file, as_json)
    if found.interrupted:
        typer.echo(
            f"Stopped: {len(found.results)} of {found.runs} runs are done and kept; the same command goes on.", err=True
        )
        raise typer.Exit(130)
    if found.failed:
        raise RunError(f"{found.failed} of {len(found.results)} runs failed: {found.folder / 'summary.md'} says why")


def _find(name: str) -> Path:
    """Return a scenario's file. Raises UsageError when there is none."""
    if not name:
        raise UsageError("name a scenario's TOML file, or a shipped one: wardround simulate --list shows them")
    shipped = SHIPPED / f"{name}.toml"
    if Path(name).is_file() or not shipped.is_file():
        path = Path(name)
        if not path.exists() and path.suffix != ".toml":
            near = difflib.get_close_matches(name, [found.stem for found in SHIPPED.glob("*.toml")], n=1, cutoff=0.4)
            hint = f'did you mean "{near[0]}"?' if near else "wardround simulate --list shows those that there are"
            raise UsageError(f'there is no file and no shipped scenario "{name}": {hint}')
        return path
    return shipped


def _list(as_json: bool) -> None:
    from simulations.arms import expand
    from simulations.scenario import read_scenario

    files = [read_scenario(path) for path in sorted(SHIPPED.glob("*.toml"))]
    if as_json:
        shown = [
            {"name": file.scenario.name, "runs": len(expand(file)), "data": file.scenario.source.path,
             "description": file.scenario.description, "expected": file.scenario.expected}
            for file in files
        ]  # fmt: skip
        typer.echo(json.dumps(shown, indent=2))
        return
    console = Console(highlight=False)
    for file in files:
        scenario = file.scenario
        needs = f"needs {scenario.source.path}" if scenario.source.path else "needs no data"
        console.print(f"[bold]{scenario.name}[/]  ({len(expand(file))} runs, {needs})")
        console.print(scenario.description, markup=False)
        console.print(f"Expected: {scenario.expected}\n", markup=False)


def _show(found: Any, file: Any, as_json: bool) -> None:
    from simulations.comparison import caution
    from simulations.simulation_report import failures, summary_table

    if as_json:
        typer.echo(json.dumps(_as_data(found, file), indent=2))
        return
    if not found.results:
        return
    console = Console(highlight=False)
    console.print(summary_table(file, found.lines))
    for line in (caution(found.lines), *failures(found.results)):
        console.print(line, markup=False) if line else None
    console.print(f"{found.folder / 'report.html'} has the figures.", markup=False, soft_wrap=True)


def _as_data(found: Any, file: Any) -> dict[str, Any]:
    judge = file.scenario.judge
    lines = [
        {
            "arm": line.arm, "varied": dict(line.varied), "mean": line.mean, "deviation": line.deviation,
            "seeds": {str(seed): value for seed, value in line.values.items()}, "failed": line.failed,
            "others": dict(line.others), "epsilon": line.epsilon, "megabytes": line.megabytes,
            "seconds": line.seconds, "difference": line.difference, "p_t": line.t, "p_wilcoxon": line.wilcoxon,
        }
        for line in found.lines
    ]  # fmt: skip
    return {
        "scenario": file.scenario.name, "metric": judge.metric, "scope": judge.scope, "runs": found.runs,
        "done": len(found.results), "ran": found.ran, "failed": found.failed, "interrupted": found.interrupted,
        "summary": lines, "report": str(found.folder / "report.html"),
    }  # fmt: skip
