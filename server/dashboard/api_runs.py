"""The API's endpoints about runs and models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse, PlainTextResponse

from common.errors import UpdateError
from common.files import sha256_file
from common.release import group_title
from server.actions import Actions
from server.dashboard import schemas
from server.dashboard.schemas import After, JobText, Limit, Model, Number, Offset, RunName, Search
from server.dashboard.security import Needs
from server.readmodel import ReadModel
from server.records import LogLine, RunDetail, RunStatus, Stage
from server.roles import Person
from server.views import Listing, RoundLine, RunLine

Reader = Annotated[Person, Depends(Needs("read"))]
Runner = Annotated[Person, Depends(Needs("run"))]
Keeper = Annotated[Person, Depends(Needs("models"))]


def runs_router(read: ReadModel, actions: Actions) -> APIRouter:
    """Return the endpoints about runs."""
    router = APIRouter(tags=["runs"])
    _add_run_views(router, read)

    @router.post("/runs", status_code=201)
    def start(wanted: JobText, person: Runner) -> schemas.RunNamed:
        """Check a job and queue a run of it."""
        return schemas.RunNamed(run=actions.start(person, wanted.toml))

    @router.post("/jobs/check")
    def check(wanted: JobText, _: Runner) -> schemas.JobChecked:
        """Check a job as starting it would; nothing is kept."""
        job = actions.check(wanted.toml)
        return schemas.JobChecked(name=job.name, digest=job.digest, job=job)

    @router.post("/jobs/plan")
    def plan(wanted: JobText, person: Runner) -> schemas.Plan:
        """Return what a job's privacy would cost; nothing is sent to a site and nothing spent."""
        found = actions.plan(person, wanted.toml)
        return schemas.Plan(
            job=found.job.digest,
            parameters=found.parameters,
            sites=found.sites,
            noise_share=found.noise_share,
            verdict=found.verdict,
            warnings=found.warnings,
            fits=found.fits,
        )

    @router.post("/runs/{run}/stop")
    def stop(run: RunName, person: Runner) -> schemas.RunNamed:
        """Stop a run; what it has committed stays, and it can be resumed."""
        actions.stop(person, run)
        return schemas.RunNamed(run=run)

    @router.post("/runs/{run}/resume")
    def resume(run: RunName, person: Runner) -> schemas.RunNamed:
        """Let a run go on after its last committed round."""
        actions.resume(person, run)
        return schemas.RunNamed(run=run)

    return router


def _add_run_views(router: APIRouter, read: ReadModel) -> None:
    @router.get("/runs")
    def runs(
        _: Reader, text: Search = "", status: RunStatus | Literal[""] = "", offset: Offset = 0, limit: Limit = 50
    ) -> Listing[RunLine]:
        """Return runs, the newest first; those whose name, job or strategy contains `text`, of one `status`."""
        return read.runs(text=text, status=status, offset=offset, limit=limit)

    @router.get("/runs/{run}")
    def run(run: RunName, _: Reader) -> schemas.RunAnswer:
        """Return a run: its job, epsilon by site, models and warnings."""
        view = read.run(run)
        return schemas.RunAnswer(
            line=view.line,
            job=view.job,
            toml=view.toml,
            round_count=len(view.rounds),
            spends=view.spends,
            models=tuple(Model.of(line) for line in view.models),
            warnings=view.warnings,
            sent=view.sent,
            received=view.received,
        )

    @router.get("/runs/{run}/rounds")
    def rounds(run: RunName, _: Reader, offset: Offset = 0, limit: Limit = 50) -> Listing[RoundLine]:
        """Return a run's rounds, the oldest first, with every site's turn in them."""
        found = read.run(run).rounds
        return Listing(found[offset : offset + limit], len(found), offset, limit)

    @router.get("/runs/{run}/detail")
    def detail(run: RunName, _: Reader, offset: Offset = 0, limit: Limit = 500) -> RunDetail:
        """Return a run as the registry keeps it, as `wardround runs show --json` has it, and some of its rounds."""
        found = read.detail(run)
        numbers = {line.kind: line.id for line in read.run(run).models}
        addresses = {kind: f"/api/v1/models/{number}/file" for kind, number in numbers.items()}
        addressed = tuple(replace(model, path=addresses.get(model.kind, "")) for model in found.models)
        return replace(found, rounds=found.rounds[offset : offset + limit], models=addressed)

    @router.get("/runs/{run}/log")
    def run_log(run: RunName, _: Reader, after: After = 0, limit: Limit = 200) -> tuple[LogLine, ...]:
        """Return the newest lines of a run's log, the oldest of them first."""
        read.run(run)
        return read.log(run, after=after, limit=limit)

    @router.get("/runs/{run}/diff/{other}")
    def diff(run: RunName, other: RunName, _: Reader) -> tuple[schemas.Difference, ...]:
        """Return the keys in which two runs' jobs differ."""
        return tuple(schemas.Difference(key=key, one=one, other=two) for key, one, two in read.diff(run, other))

    @router.get("/log")
    def log(_: Reader, after: After = 0, limit: Limit = 200) -> tuple[LogLine, ...]:
        """Return the newest lines of the coordinator's log that belong to no run."""
        return read.log(after=after, limit=limit)

    @router.get("/participation")
    def participation(_: Reader, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> tuple[RoundLine, ...]:
        """Return the newest training rounds of all runs: who took part, how long it took, why not."""
        return read.participation(limit)


def models_router(read: ReadModel, actions: Actions) -> APIRouter:
    """Return the endpoints about models."""
    router = APIRouter(tags=["models"])

    @router.get("/models")
    def models(
        _: Reader, text: Search = "", stage: Stage | Literal[""] = "", offset: Offset = 0, limit: Limit = 50
    ) -> schemas.Models:
        """Return the models of runs that have ended, the newest first."""
        found = read.models(text=text, stage=stage, offset=offset, limit=limit)
        items = tuple(Model.of(line) for line in found.items)
        return schemas.Models(items=items, total=found.total, offset=found.offset, limit=found.limit)

    @router.get("/models/{number}")
    def model(number: Number, _: Reader) -> schemas.ModelAnswer:
        """Return a model with where it comes from and its metrics by site."""
        view = read.model(number)
        return schemas.ModelAnswer(
            model=Model.of(view.line),
            judged_on=view.judged_on,
            metrics={site: dict(metrics) for site, metrics in view.metrics.items()},
            groups=tuple(
                schemas.GroupMetrics(
                    trait=trait,
                    bin=place,
                    title=group_title(trait, place),
                    metrics={site: dict(metrics) for site, metrics in told.items()},
                )
                for (trait, place), told in view.groups.items()
            ),
            run=view.run.line,
            spends=view.run.spends,
        )

    @router.get("/models/{number}/card", response_class=PlainTextResponse)
    def card(number: Number, _: Reader) -> PlainTextResponse:
        """Return the model's card, in Markdown."""
        return PlainTextResponse(read.card(number), media_type="text/markdown")

    @router.get(
        "/models/{number}/file",
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "The safetensors file."}},
    )
    def file(number: Number, person: Keeper) -> FileResponse:
        """Return the model's safetensors file, after comparing it with the SHA-256 that the registry kept."""
        run, kept = actions.download(person, number)
        return _file_of(run, Path(kept.path), kept.sha256)

    @router.post("/models/{number}/stage")
    def stage(number: Number, wish: schemas.StageWish, person: Keeper) -> Model:
        """Put a model into a stage; who did it, when and why is kept."""
        actions.stage(person, number, wish.stage, wish.note)
        return Model.of(read.model(number).line)

    return router


def _file_of(run: str, path: Path, sha256: str) -> FileResponse:
    try:
        if sha256_file(path) != sha256:
            raise UpdateError(f"{path.name} of {run}: not the file that the registry kept: restore it from a backup")
    except OSError as error:
        raise UpdateError(
            f"{path.name} of {run}: can't be read ({error.strerror}): restore it from a backup"
        ) from error
    headers = {"X-Content-SHA256": sha256}
    return FileResponse(path, media_type="application/octet-stream", filename=f"{run}-{path.name}", headers=headers)
