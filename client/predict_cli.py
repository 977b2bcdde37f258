"""`wardround predict`: a model on images, by a hospital with a model's file, or where the coordinator's kit is."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from client.options import JsonOption
from common.errors import UsageError

app = typer.Typer(add_completion=False)


class Which(StrEnum):
    """Which of a run's models."""

    BEST = "best"
    LAST = "last"


@app.command()
def predict(
    images: Annotated[
        Path, typer.Argument(metavar="IN", help="A DICOM, NIfTI, PNG or JPEG file, or a folder, read recursively.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that the results are written into.")],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="The run whose model is used (the start of its name).")
    ] = None,
    which: Annotated[Which, typer.Option(help="Which of the run's models.")] = Which.BEST,
    model: Annotated[Path | None, typer.Option(help="A model's file, as the coordinator handed it out.")] = None,
    job: Annotated[Path | None, typer.Option(help="The job of a model's file that does not hold it.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also write where the network looked, as overlays (Grad-CAM).")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Put the results in the place of those that are there.")
    ] = False,
    device: Annotated[str, typer.Option(help='Where to compute: "auto", "cpu" or "cuda".')] = "auto",
    kit: Annotated[
        Path | None,
        typer.Option(
            help="With --run: the coordinator's kit folder (default: $WARDROUND_KIT, else the current folder)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a model says of images, as DICOM that a PACS takes: drafts, and no medical device's.

    Labels become a report (SR, TID 1500), masks a segmentation (SEG), boxes a report's regions, reconstructions a
    derived MR series, each of the study and patient of its images. NIfTI gets NIfTI, PNG gets PNG; results.csv has it
    all in a table, results.json says where it comes from. No network is needed.

    Boxes are those from the score on that the job calls a finding: its task.parameters.threshold, by default 0.3. A
    reconstruction takes its image as fully sampled, and is made of a part of its k-space.

    Example: wardround predict --model model.safetensors /data/new results
             wardround predict --run chest-260101-a1b2c3 --kit kits/coordinator /data/new results
    """
    from client.results.output import check_free
    from client.results.predict import predict as write_results
    from common.job import read_job
    from common.model_file import read_saved
    from common.wiring import kept_model

    if (run is None) == (model is None):
        raise UsageError("name a run with --run, or a model's file with --model: one of the two")
    check_free(out, overwrite=overwrite)
    path = model if model is not None else kept_model(run or "", kit, which.value)
    saved = read_saved(path, read_job(job) if job is not None else None)
    done = write_results(saved, images, out, explain=explain, overwrite=overwrite, device=device)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(done), indent=2))
        return
    for file, reason in done.refused:
        typer.echo(f"not used: {file}: {reason}", err=True)
    typer.echo(f"{done.sources} images, volumes or series: {len(done.files)} files in {out}. They are drafts.")
