"""A scenario: one study as one TOML file. What is trained on which data, split how over hospitals, compared with what.

name, description, expected, seeds
[source]     where the cases come from, and how many are held out for tests
[partition]  how they are split over hospitals
[scanners]   each hospital's own scanner, as a change of its images
[faults.KIND], [late]    what goes wrong, and who comes later
[job.*]      the tables of a job file, without sites and seed
[[arms]]     what is compared: a name, and what differs from the tables above
[grid]       "dotted.key" = [values]: their product is taken with every arm
[judge]      when and by what the runs are judged
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from common.errors import UsageError
from common.faults import explain, line_of
from common.files import read_text
from common.release import QUALITIES
from common.section import Name, Section
from simulations.faults import Kind

SourceKind = Literal[
    "npz",
    "folder",
    "catalog",
    "table",
    "heart-disease",
    "nuclei-crops",
    "nuclei-masks",
    "nuclei-boxes",
    "blood-cells",
    "hippocampus-slices",
    "hippocampus-volumes",
    "phantoms",
]
MODELS = ("best", "last")


class SourceSection(Section):
    """Where cases come from."""

    kind: SourceKind = Field(description="npz, folder, catalog, table, or one of the known data sets")
    path: str = Field("", description="below the scenario's folder or WARDROUND_DATA; not for phantoms")
    test: float = Field(0.25, ge=0, le=0.8, description="share of each hospital's patients held out for its test")
    validation: float = Field(0.0, ge=0, le=0.5, description="share that chooses the model, with judge.model = best")
    limit: int | None = Field(None, ge=1, description="use so many patients at most, drawn from the source's seed")
    seed: int | None = Field(None, ge=0, description="fixes held-out patients and phantoms for all seeds")
    arrays: str = Field("train", description="npz: first part of the arrays' names: train_images, train_labels, ...")
    unseen: str = Field("", description="npz: that of a test set that is no hospital's")
    label: str = Field("label", description="table: the column with the label")
    patient: str = Field("", description="table: the column that names the patient (default: each row is one)")
    patients: int = Field(
        300, ge=2, le=10_000_000, description="phantoms: how many people (of each hospital: see each)"
    )
    prevalence: float = Field(0.5, gt=0, lt=1, description="phantoms: how many of them are ill")


class PartitionSection(Section):
    """How cases are split over hospitals, by patient. A patient is never in two."""

    kind: Literal["column", "iid", "dirichlet", "quantity", "each"] = Field(
        "iid",
        description='by a "column"; "iid"; "dirichlet": label skew; "quantity": unequal sizes; "each": every hospital '
        "draws its own phantoms when it is asked",
    )
    column: str = Field("", description='with kind "column": hospital, scanner, site, ...')
    least: int = Field(1, ge=1, description="hospitals with fewer patients are left out (column), or not made")
    sites: int | None = Field(None, ge=1, le=100_000, description="how many hospitals (default: as sizes says)")
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="each hospital's patients (default: equal)")
    alpha: float = Field(0.5, gt=0, description="dirichlet: the smaller, the more hospitals differ in their labels")
    law: Literal["log-normal", "power"] = Field("log-normal", description="quantity: how sizes are spread")
    skew: float = Field(1.0, ge=0, le=10, description="quantity: the log-normal's sigma, or the power law's exponent")
    seed: int | None = Field(None, ge=0, description="the same partition for all seeds")

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> PartitionSection:
        if (self.kind == "column") != bool(self.column):
            raise ValueError('column is for kind = "column", which needs it')
        if self.kind == "column" and (self.sites or self.sizes):
            raise ValueError("a column makes the hospitals: leave sites and sizes out")
        if self.kind != "column" and not self.sites and not self.sizes:
            raise ValueError("say how many hospitals there are: sites, or sizes")
        if self.sites and self.sizes and len(self.sizes) != self.sites:
            raise ValueError(f"sites is {self.sites}, but sizes has {len(self.sizes)} values")
        if self.sizes and self.kind in ("quantity", "each"):
            raise ValueError(f'kind = "{self.kind}" makes the sizes: leave sizes out')
        return self

    @property
    def count(self) -> int:
        """How many hospitals are asked for."""
        return self.sites or len(self.sizes)


class ScannersSection(Section):
    """Feature shift: how much hospitals' scanners differ. Each hospital's is drawn from the seed."""

    gain: float = Field(0.0, ge=0, lt=1, description="contrast is multiplied by 1 - gain .. 1 + gain")
    offset: float = Field(0.0, ge=0, le=1, description="brightness is shifted by up to this, of full scale 1")
    gamma: float = Field(0.0, ge=0, le=2, description="intensities to the power exp(-gamma .. gamma)")
    blur: float = Field(0.0, ge=0, le=10, description="Gaussian blur of 0 .. blur pixels")
    noise: float = Field(0.0, ge=0, le=1, description="Gaussian noise of 0 .. noise, of full scale 1")
    inverted: float = Field(0.0, ge=0, le=1, description="share of the hospitals that store dense as dark")
    seed: int | None = Field(None, ge=0, description="the same scanners for all seeds")

    @property
    def any(self) -> bool:
        """Whether there is any shift at all."""
        return any(getattr(self, name) for name in ("gain", "offset", "gamma", "blur", "noise", "inverted"))


class FaultSection(Section):
    """A fault of some hospitals: `simulations.faults.Fault` says what strength is."""

    share: float | None = Field(None, ge=0, le=1, description="of the hospitals that have it, drawn from the seed")
    sites: tuple[str, ...] = Field((), description="or: which have it, by name")
    strength: float = Field(1.0, gt=0, le=1e6, description="how strong: chance, times slower, share of labels, factor")

    @model_validator(mode="after")
    def _one_way_to_say_who(self) -> FaultSection:
        if (self.share is None) == (not self.sites):
            raise ValueError("say which hospitals have the fault: share, or sites")
        return self


class LateSection(Section):
    """Hospitals that come in later."""

    round: int = Field(description="the first round that they take part in", ge=1)
    share: float | None = Field(None, ge=0, le=1, description="of the hospitals, drawn from the seed")
    sites: tuple[str, ...] = Field((), description="or: which, by name")

    @model_validator(mode="after")
    def _one_way_to_say_who(self) -> LateSection:
        if (self.share is None) == (not self.sites):
            raise ValueError("say which hospitals come later: share, or sites")
        return self


class JudgeSection(Section):
    """When and by what runs are judged: exact metrics on held-out patients."""

    every: int = Field(5, ge=1, description="rounds between the points of a learning curve")
    metric: str = Field("auc", description="what tables and plots show: auc, loss, dice, ...")
    scope: Literal["pooled", "mean", "unseen", "worst"] = Field(
        "pooled",
        description="on what: all hospitals' tests as one, the mean over hospitals, the source's own test set, "
        "or the hospital that fares worst",
    )
    model: Literal["best", "last"] = Field("last", description="best by the job's criterion on validation, or the last")
    scale: Literal["model", "site"] = Field(
        "model",
        description='tables with job.data.scale = "site": held-out rows are scaled as the model\'s training rows were, '
        'or, "site", by their own hospital\'s even for a pooled model',
    )
    sites: int = Field(100, ge=0, description="judge so many hospitals one by one at most, evenly chosen")

    @field_validator("metric")
    @classmethod
    def _metric_is_known(cls, name: str) -> str:
        if name not in QUALITIES:
            near = difflib.get_close_matches(name, QUALITIES, n=1, cutoff=0.4)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(QUALITIES)}"
            raise ValueError(f'unknown metric "{name}": {hint}')
        return name


class JobTables(Section):
    """The tables of a job file, checked when the hospitals are known."""

    task: dict[str, Any] = Field(default_factory=dict, description="what the model is to say")
    data: dict[str, Any] = Field(default_factory=dict, description="the form in which the network sees a case")
    network: dict[str, Any] = Field(default_factory=dict, description="the network")
    training: dict[str, Any] = Field(default_factory=dict, description="what a hospital does in a round")
    aggregation: dict[str, Any] = Field(default_factory=dict, description="how updates become the next model")
    privacy: dict[str, Any] = Field(default_factory=dict, description="differential privacy")


JOB_TABLES = tuple(JobTables.model_fields)
OWN_TABLES = ("source", "partition", "scanners", "faults", "late")


class ArmSection(JobTables):
    """One of what is compared: what differs from the scenario's tables."""

    name: str = Field(min_length=1, max_length=60, description="its name in tables and plots")
    pooled: bool = Field(False, description="all hospitals' cases in one place: no federation")
    local: bool = Field(False, description="each hospital alone, judged by its own model")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="values for this arm only")
    source: dict[str, Any] = Field(default_factory=dict, description="what differs in [source]")
    partition: dict[str, Any] = Field(default_factory=dict, description="what differs in [partition]")
    scanners: dict[str, Any] = Field(default_factory=dict, description="what differs in [scanners]")
    faults: dict[str, Any] = Field(default_factory=dict, description="what differs in [faults]")
    late: dict[str, Any] = Field(default_factory=dict, description="what differs in [late]")

    @model_validator(mode="after")
    def _not_both(self) -> ArmSection:
        if self.pooled and self.local:
            raise ValueError("an arm is pooled or local, not both")
        return self


class Scenario(Section):
    """A study. See the module for its tables."""

    name: Name = Field(description="the study's short name")
    description: str = Field("", max_length=4000, description="what it asks, in one paragraph")
    expected: str = Field("", max_length=4000, description="what comes out")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1, description="a run for each")
    source: SourceSection
    partition: PartitionSection = PartitionSection(sites=4)
    scanners: ScannersSection = ScannersSection()
    faults: dict[Kind, FaultSection] = Field(default_factory=dict, description="faults by their kind")
    late: LateSection | None = Field(None, description="hospitals that come in later")
    judge: JudgeSection = JudgeSection()
    job: JobTables
    arms: tuple[ArmSection, ...] = Field(min_length=1, description="what is compared; the first is what others are to")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="values to try, by dotted key")

    @model_validator(mode="after")
    def _names_differ(self) -> Scenario:
        if len({arm.name for arm in self.arms}) != len(self.arms):
            raise ValueError("two arms have the same name")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds names a seed twice")
        return self


@dataclass(frozen=True)
class ScenarioFile:
    """A scenario, the tables it was read from, and where from: `path` is what messages name."""

    scenario: Scenario
    tables: dict[str, Any]
    text: str
    path: Path

    def where(self, *location: int | str) -> str:
        """Return `FILE:LINE` of the key at `location`, or of the nearest table around it."""
        return f"{self.path}{line_of(self.text, location)}"


def read_scenario(path: Path) -> ScenarioFile:
    """Read a scenario.

    Raises
    ------
    UsageError
        It can't be read, is no TOML, or has a wrong key, type or value. One line for each fault: file, line, key, what
        is expected there, the nearest right key. What the job's own tables hold is checked when hospitals are known.
    """
    try:
        text = read_text(path)
        tables = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: the scenario can't be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    try:
        return ScenarioFile(Scenario.model_validate(tables), tables, text, path)
    except ValidationError as error:
        raise UsageError(explain(error, Scenario, str(path), text)) from error
