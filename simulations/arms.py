"""A scenario's runs: every arm at every point of the grid with every seed, each with all its tables and its job."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from common.errors import UsageError
from common.faults import explain
from common.job import Job, PrivacySection, key_table
from simulations.faults import Kind
from simulations.populations import POOLED
from simulations.scenario import (
    JOB_TABLES,
    OWN_TABLES,
    ArmSection,
    FaultSection,
    JudgeSection,
    LateSection,
    PartitionSection,
    ScannersSection,
    ScenarioFile,
    SourceSection,
)

ArmKind = Literal["federated", "pooled", "local"]
ALONE = {"strategy": "fedavg", "parameters": {}, "proximal_mu": 0.0, "sites_per_round": None, "local_layers": (), "min_sites": 1}  # fmt: skip  # noqa: E501
"""What is left of aggregation where there is one site."""
SECTIONS: dict[str, type[BaseModel]] = {
    "source": SourceSection,
    "partition": PartitionSection,
    "scanners": ScannersSection,
    "late": LateSection,
}
FREE = ("network.parameters.", "aggregation.parameters.")
KINDS: tuple[Kind, ...] = ("drop-out", "straggler", "label-flip", "poison")


@dataclass(frozen=True)
class Cell:
    """One run to be: the arm, the grid's point (`varied`), the seed, and all tables as they are there."""

    arm: str
    place: int
    kind: ArmKind
    varied: Mapping[str, Any]
    seed: int
    source: SourceSection
    partition: PartitionSection
    scanners: ScannersSection
    faults: Mapping[Kind, FaultSection]
    late: LateSection | None
    judge: JudgeSection
    job: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The arm and the point, for people."""
        return ", ".join(part for part in (self.arm, point(self.varied)) if part)


def point(varied: Mapping[str, Any]) -> str:
    """Return a point of the grid for people: the last part of each key, and of those that need it the last two."""
    keys = [key.split(".") for key in varied]
    words = ["/".join(key[-2:]) if key[0] in OWN_TABLES and len(key) > 1 else key[-1] for key in keys]
    return ", ".join(f"{word} = {shown(value)}" for word, value in zip(words, varied.values(), strict=True))


def shown(value: Any) -> str:
    """Return a value as people would write it."""
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def expand(file: ScenarioFile, only: Sequence[str] = ()) -> tuple[Cell, ...]:
    """Return all runs of a scenario, seeds outermost; only those of the arms named in `only`, if any.

    Raises
    ------
    UsageError
        `only` names no arm; a key of the grid is none of a job's or scenario's; a table is wrong with what an arm or
        the grid puts into it.
    """
    scenario = file.scenario
    names = [arm.name for arm in scenario.arms]
    if unknown := next((name for name in only if name not in names), None):
        raise UsageError(f'{file.path} has no arm "{unknown}": {_nearest(unknown, names)}')
    _check_keys(file, ("grid",), scenario.grid)
    for place, arm in enumerate(scenario.arms):
        _check_keys(file, ("arms", place, "grid"), arm.grid)
    return tuple(
        _cell(file, place, arm, point, seed)
        for seed in scenario.seeds
        for place, arm in enumerate(scenario.arms)
        if not only or arm.name in only
        for point in _points({**scenario.grid, **arm.grid})
    )


def job_of(file: ScenarioFile, cell: Cell, sites: Sequence[str]) -> Job:
    """Return the job of a run on these hospitals.

    Raises UsageError with one line for each fault: file, line, arm, key and what is expected there.
    """
    tables = {name: dict(cell.job.get(name, {})) for name in JOB_TABLES}
    tables["data"].setdefault("collection", file.scenario.name)
    if cell.kind != "federated":
        tables["aggregation"] |= ALONE
    try:
        job = Job.model_validate({"name": "simulation", "sites": tuple(sites), "seed": cell.seed, **tables})
    except ValidationError as error:
        raise UsageError("\n".join(_faults(file, cell, error))) from error
    # What has no effect must make no other run of it.
    return job if job.privacy.mechanism != "none" else job.model_copy(update={"privacy": PrivacySection()})


def alone(job: Job, site: str) -> Job:
    """Return the job of a hospital that trains by itself."""
    return job.model_copy(update={"sites": (site,)})


def sites_of(cell: Cell, hospitals: Sequence[str]) -> tuple[str, ...]:
    """Return the sites that the run's job names."""
    return (POOLED,) if cell.kind == "pooled" else tuple(hospitals)


def _points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _cell(file: ScenarioFile, place: int, arm: ArmSection, point: Mapping[str, Any], seed: int) -> Cell:
    tables = {name: file.tables.get(name, {}) for name in OWN_TABLES}
    if "partition" not in file.tables:
        tables["partition"] = file.scenario.partition.model_dump(exclude_unset=True)
    tables |= file.tables.get("job", {})
    given = file.tables["arms"][place]
    tables = _merged(tables, {name: given[name] for name in (*OWN_TABLES, *JOB_TABLES) if name in given})
    for key, value in point.items():
        tables = _merged(tables, _nested(key, value))
    own = {name: _section(file, arm, place, name, tables.get(name, {})) for name in SECTIONS}
    kinds = _known_kinds(file, arm, tables["faults"])
    return Cell(
        arm.name, place, "pooled" if arm.pooled else "local" if arm.local else "federated", point, seed,
        own["source"], own["partition"], own["scanners"],
        {kind: _section(file, arm, place, f"faults.{kind}", tables["faults"][kind]) for kind in kinds},
        own["late"], file.scenario.judge, {name: tables.get(name, {}) for name in JOB_TABLES},
    )  # fmt: skip


def _known_kinds(file: ScenarioFile, arm: ArmSection, faults: Mapping[str, Any]) -> list[Kind]:
    if unknown := next((kind for kind in faults if kind not in KINDS), None):
        raise UsageError(f'{file.path}: arm "{arm.name}": there is no fault "{unknown}": {_nearest(unknown, KINDS)}')
    return [kind for kind in KINDS if kind in faults]


def _section(file: ScenarioFile, arm: ArmSection, place: int, name: str, table: Any) -> Any:
    """Check a table of the scenario's own with what an arm and the grid put into it."""
    if name == "late" and not table:
        return None
    model = FaultSection if name.startswith("faults.") else SECTIONS[name]
    try:
        return model.model_validate(table)
    except ValidationError as error:
        where = file.where("arms", place, *name.split("."))
        raise UsageError(explain(error, model, f'{where}: arm "{arm.name}": [{name}]')) from error


def _faults(file: ScenarioFile, cell: Cell, error: ValidationError) -> list[str]:
    """Say each fault of a job where it stands: in the arm, in the grid, or in the scenario's job."""
    places: dict[str, tuple[int | str, ...]] = {}
    for fault in error.errors():
        places.setdefault(".".join(part for part in fault["loc"] if isinstance(part, str)), fault["loc"])
    texts = explain(error, Job, "").splitlines()
    return [
        f'{file.where(*_location(file, cell, location))}: arm "{cell.title}"{text}'
        for location, text in zip(places.values(), texts, strict=True)
    ]


def _location(file: ScenarioFile, cell: Cell, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    dotted = ".".join(map(str, location))
    if varied := next((key for key in cell.varied if dotted and key.removeprefix("job.").startswith(dotted)), None):
        return ("grid", *varied.split("."))
    inside: Any = file.tables["arms"][cell.place]
    for part in location:
        if not isinstance(inside, dict) or part not in inside:
            return ("job", *location)
        inside = inside[part]
    return ("arms", cell.place, *location)


def _check_keys(file: ScenarioFile, where: tuple[int | str, ...], grid: Mapping[str, Sequence[Any]]) -> None:
    known = _known_keys()
    for key, values in grid.items():
        if key.removeprefix("job.") not in known and not key.removeprefix("job.").startswith(FREE):
            raise UsageError(
                f'{file.where(*where, *key.split("."))}: no job and no scenario has the key "{key}" that the grid '
                f"varies: {_nearest(key, sorted(known))}"
            )
        if not values:
            raise UsageError(f'{file.where(*where, *key.split("."))}: the grid has no value for "{key}"')


def _known_keys() -> set[str]:
    jobs = {key for key, _, _ in key_table() if key.split(".")[0] in JOB_TABLES}
    own = {f"{name}.{key}" for name, model in SECTIONS.items() for key in model.model_fields}
    return jobs | own | {f"faults.{kind}.{key}" for kind in KINDS for key in FaultSection.model_fields}


def _nested(key: str, value: Any) -> dict[str, Any]:
    nested: Any = value
    for part in reversed(key.removeprefix("job.").split(".")):
        nested = {part: nested}
    return dict(nested)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f'did you mean "{near[0]}"?'
    last = name.rsplit(".", 1)[-1]
    same = [key for key in known if key.rsplit(".", 1)[-1] == last]
    return f'did you mean "{same[0]}"?' if same else f"there are {', '.join(known[:8])}{', ...' if known[8:] else ''}"
