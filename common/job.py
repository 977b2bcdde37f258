"""The job: what is to be trained, on what, by whom, how, and how private. TOML in, canonical JSON and a digest out.

A job is data only. The same job has the same digest on every machine: the digest is the SHA-256 of its canonical JSON
(every default written out, keys sorted, no spaces), so spelling out a default or moving a key changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from common.bins import Trait
from common.errors import JobError
from common.faults import explain
from common.files import read_text
from common.section import Name as Name
from common.section import Section as Section
from common.strategies import Parameters, read_parameters
from common.tasks.parameters import PARAMETERS as TASK_PARAMETERS
from common.tasks.parameters import TaskParameters, kind_of, read_task_parameters

SMALLEST = 8
"""Fewest pixels of an image along an axis."""
MPP, TILES = 0.5, 16
"""How slides are cut unless a job says otherwise."""


class TaskSection(Section):
    """What the model is to say about an image."""

    kind: Name = Field("classification", description="the task, by name in the table of tasks")
    labels: tuple[str, ...] = Field(
        (),
        description="the label values, in the order of the model's outputs; two of them: binary, the second is "
        "positive. For segmentation and detection: the structures' names",
    )
    multilabel: bool = Field(
        False, description="classification: whether an image can have several labels at once (or none)"
    )
    subgroups: tuple[Trait, ...] = Field(
        (),
        description="the test split's metrics are told for these groups of patients too, under each site's policy: "
        '"sex", "age" (by decade), "maker" (of the scanner); with DP each of them adds to the noise of all',
    )
    parameters: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="the task's own parameters (`wardround job tasks` lists them)"
    )

    @property
    def known_parameters(self) -> TaskParameters:
        """The task's parameters, defaults filled in; empty for a task from elsewhere."""
        return read_task_parameters(self.kind, self.parameters)

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> TaskSection:
        if len(set(self.labels)) != len(self.labels) or any(not label.strip() for label in self.labels):
            raise ValueError("labels must be different and not empty")
        if len(set(self.subgroups)) != len(self.subgroups):
            raise ValueError("subgroups names a trait twice")
        if self.multilabel and self.kind != "classification" and self.kind in TASK_PARAMETERS:
            raise ValueError(f"multilabel is for classification: leave it out with {self.kind}")
        fewest = kind_of(self.kind).fewest_labels
        if len(self.labels) < (1 if self.multilabel else fewest):
            some = "one value" if fewest == 1 else "two values (one with multilabel)"
            raise ValueError(f"labels needs at least {some}")
        return self

    @model_validator(mode="after")
    def _parameters_are_the_tasks(self) -> TaskSection:
        _ = self.known_parameters
        return self


class DataSection(Section):
    """Which collection at each site, and the form in which the network sees it."""

    collection: Name = Field(description="the collection's name at every site")
    size: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (64, 64),
        min_length=2,
        max_length=3,
        description="input size in pixels: [rows, columns], or with slices (of a bag: images) before them",
    )
    bag: Literal["none", "slide", "study", "patient"] = Field(
        "none",
        description='what makes one case of many images: "slide": its tiles, "study" or "patient": all 2D images of it',
    )
    mpp: float = Field(MPP, gt=0, le=1000, description="slides: micrometres a pixel of a tile (0.5 is about 20x)")
    tiles: int = Field(
        TILES,
        ge=1,
        le=4096,
        description="slides without a bag: so many tiles of each are cases (of a slide that has fewer some twice)",
    )
    spacing: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        (),
        max_length=3,
        description="mm between pixels, in the order of size: images are brought to it, then cropped or padded about "
        "the middle to size (default: stretched to size, whatever they measure)",
    )
    patch: tuple[Annotated[int, Field(ge=8, le=4096)], ...] = Field(
        (),
        max_length=3,
        description="train on random patches of this many pixels, and predict whole images window by window "
        "(default: whole images)",
    )
    channels: Literal[1, 2, 3] = Field(
        1, description="1 for grey, 3 for colour, 2 for complex (real and imaginary part): reconstruction of raw data"
    )
    augment: Literal["none", "light", "strong"] = Field(
        "none",
        description='"light": small shifts and, for images, flips; "strong": also small rotations, zooms, and changes '
        "of brightness, contrast and noise",
    )
    features: tuple[str, ...] = Field(
        (), description='a table\'s columns, instead of images; "cp=2" is 1 where column cp is 2, else 0'
    )
    scale: Literal["unit", "standard", "site"] = Field(
        "unit",
        description='"unit": images in [0, 1], tables as they are; "standard": images (x - 0.5) / 0.25, tables by '
        'means and deviations; "site": by mean and deviation of the site\'s own training split (not with DP)',
    )
    means: tuple[float, ...] = Field((), description='with scale "standard": each feature\'s mean, a public constant')
    deviations: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description='with scale "standard": each feature\'s standard deviation, a public constant'
    )

    @property
    def table(self) -> bool:
        """Whether cases are rows of a table, and not images."""
        return bool(self.features)

    @property
    def bagged(self) -> bool:
        """Whether a case is a bag of images."""
        return self.bag != "none"

    @model_validator(mode="after")
    def _size_is_that_of_images(self) -> DataSection:
        if self.bagged and (self.table or len(self.size) != 3):
            raise ValueError("a bag needs a size of three numbers, [images, rows, columns], and no features")
        if self.bagged and (self.spacing or self.patch):
            raise ValueError("a bag has neither spacing nor patch: leave them out; tiles of slides have mpp")
        if min(self.size[1:] if self.bagged else self.size) < SMALLEST:
            raise ValueError(f"size: an image has at least {SMALLEST} pixels along each axis")
        return self

    @model_validator(mode="after")
    def _axes_agree(self) -> DataSection:
        for name, given in (("spacing", self.spacing), ("patch", self.patch)):
            if given and len(given) != len(self.size):
                raise ValueError(f"{name} has {len(given)} numbers, but size has {len(self.size)}: one for each axis")
            if given and self.table:
                raise ValueError(f"{name} is for images: leave it out with a table")
        if any(part > whole for part, whole in zip(self.patch, self.size, strict=False)):
            raise ValueError(f"patch {list(self.patch)} is larger than size {list(self.size)}")
        return self

    @model_validator(mode="after")
    def _constants_fit_the_features(self) -> DataSection:
        if len(set(self.features)) != len(self.features):
            raise ValueError("features names a column twice")
        wanted = len(self.features) if self.table and self.scale == "standard" else 0
        if not len(self.means) == len(self.deviations) == wanted:
            raise ValueError(
                'means and deviations need one value for each feature with scale = "standard", and none without: '
                f"{wanted} are expected, got {len(self.means)} and {len(self.deviations)}"
            )
        if self.scale == "site" and not self.table:
            raise ValueError('scale = "site" is for tables: images have "unit" and "standard"')
        if self.table and self.augment != "none":
            raise ValueError('augment is for images: leave it out, or set it to "none"')
        return self


class NetworkSection(Section):
    """The network, by name, and its parameters."""

    name: Name = Field("small-cnn", description="the network, by name in the table of networks")
    parameters: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="the network's own parameters (width, dropout, ...)"
    )


class TrainingSection(Section):
    """What a site does in a round."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description='"sgd" or "adamw"')
    learning_rate: float = Field(0.05, gt=0, le=100, description="step size of the site's optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD (no effect on adamw)")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay")
    batch_size: int = Field(
        32, ge=1, le=65536, description="images a step (with DP: the expected number of units a step)"
    )
    local_epochs: float = Field(1.0, gt=0, le=1000, description="passes over the site's training data in a round")
    local_steps: int | None = Field(
        None, ge=1, description="steps in a round, whatever a site's size (default: as local_epochs says)"
    )
    averaging: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the mean of the weights over a round's steps, which is what leaves (0: the last weights)",
    )
    mixed_precision: bool = Field(
        True, description="use mixed precision where there is a GPU (no effect on a CPU, nor with privacy)"
    )


class AggregationSection(Section):
    """How updates become the next global model, and when a round closes."""

    strategy: Name = Field("fedavg", description="the strategy, by name in the table of strategies")
    rounds: int = Field(10, ge=1, le=100_000, description="number of rounds")
    parameters: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="the strategy's own parameters (`wardround job strategies` lists them)"
    )
    proximal_mu: float = Field(0.0, ge=0, le=1e6, description="FedProx's mu: weight of the pull to the global model")
    weighting: Literal["examples", "sites"] = Field(
        "examples", description='what an update counts by: "examples", or "sites" (each the same)'
    )
    sites_per_round: int | None = Field(
        None, ge=1, description="how many sites train in a round, drawn anew from the seed (default: all)"
    )
    local_layers: tuple[str, ...] = Field(
        (),
        description='tensors that stay at each site, by name with "*" (with "fedbn" and "fedrep" there is a default)',
    )
    evaluate_every: int = Field(
        1, ge=1, description="sites evaluate the model that they are sent in every so many rounds, and in the last"
    )
    min_sites: int = Field(1, ge=1, description="quorum: fewest sites whose update a round needs")
    min_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="quorum: smallest share of all known training cases that a round's updates must cover",
    )
    deadline_seconds: float | None = Field(
        None, gt=0, description="close a round after this time (default: wait for all)"
    )
    approval_seconds: float = Field(
        604800,
        ge=0,
        description="how long a run waits for sites where a person must approve it; then they count as refused",
    )
    criterion: Name = Field(
        "auc",
        description="the validation metric by which the best model is kept (default: the task's: auc, dice, ...)",
    )
    max_failed_rounds: int = Field(3, ge=1, description="rounds in a row without quorum before the run stops as failed")

    @property
    def keeps_layers(self) -> bool:
        """Whether any layer stays at the sites: named by the job, or the strategy's default."""
        return bool(self.local_layers or self.known_parameters.keeps)

    @property
    def known_parameters(self) -> Parameters:
        """The strategy's parameters, defaults filled in; empty for a strategy from elsewhere."""
        return read_parameters(self.strategy, self.parameters, self.proximal_mu)

    @model_validator(mode="after")
    def _parameters_are_the_strategys(self) -> AggregationSection:
        parameters, taken = self.known_parameters, self.sites_per_round
        if taken is not None and self.min_sites > taken:
            raise ValueError(f"min_sites is {self.min_sites}, but only {taken} sites train in a round")
        if self.strategy == "cyclic" and (self.min_sites > 1 or taken not in (None, 1)):
            raise ValueError('strategy "cyclic" has one site in a round: leave min_sites and sites_per_round out')
        if self.strategy == "fedbuff" and self.min_sites > getattr(parameters, "K", 1):
            raise ValueError(f"min_sites is {self.min_sites}, more than the K updates that make a model")
        return self


class PrivacySection(Section):
    """Differential privacy at each site."""

    mechanism: Literal["none", "dp-sgd", "central"] = Field(
        "none",
        description='"dp-sgd": noise at the sites; "central": by a coordinator that they trust, for a site as a whole',
    )
    unit: Literal["patient", "image"] = Field(
        "patient", description="what is protected: a patient (all images) or one image"
    )
    epsilon: float = Field(8.0, gt=0, le=1000, description="the whole run's epsilon at each site, at most")
    delta: float = Field(1e-5, gt=0, lt=0.1, description="the whole run's delta")
    clip_norm: float = Field(
        1.0, gt=0, description="largest L2 norm of one unit's gradient (central: of a site's update)"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description='central: "adaptive" lets clip_norm, the largest norm of a site\'s update, follow the updates',
    )
    target_quantile: float = Field(
        0.5, gt=0, lt=1, description="central, adaptive: the share of updates that are not to be clipped"
    )
    max_images_per_patient: int = Field(16, ge=1, description="a patient's images used in one step, at most")
    augmentations: int = Field(
        1,
        ge=1,
        le=256,
        description="views of each image in its unit's gradient, each augmented anew; they are clipped together, once",
    )
    engine: Name = Field(
        "auto",
        description='how clipped gradients are made: "plain", "bookkeeping", "vmap", "hooks", "ghost", or "auto": '
        "the fastest that is right",
    )
    secure_noise: bool = Field(False, description="draw the noise from a cryptographic generator")
    physical_batch: int = Field(64, ge=1, description="images in memory at once; no effect on the result")


class Job(Section):
    """One training, declared. See the sections for each key's meaning."""

    name: Name = Field(description="the study's short name")
    description: str = Field("", max_length=2000, description="what it is for, in a sentence or two")
    sites: tuple[Name, ...] = Field(
        min_length=1, description="the sites that take part, by their names in the federation"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial model, batches and augmentation")
    task: TaskSection
    data: DataSection
    network: NetworkSection = NetworkSection()
    training: TrainingSection = TrainingSection()
    aggregation: AggregationSection = AggregationSection()
    privacy: PrivacySection = PrivacySection()

    @model_validator(mode="before")
    @classmethod
    def _criterion_is_the_tasks(cls, given: Any) -> Any:
        """Write the task's own criterion in where the job names none, so that it is part of the digest."""
        task, aggregation = (given.get(name) for name in ("task", "aggregation")) if isinstance(given, dict) else (0, 0)
        if not isinstance(task, dict) or not isinstance(aggregation, dict | None) or "criterion" in (aggregation or {}):
            return given
        kind = task.get("kind", "classification")
        return given | {"aggregation": {**(aggregation or {}), "criterion": kind_of(str(kind)).criterion}}

    @model_validator(mode="after")
    def _task_fits_the_data(self) -> Job:
        if self.data.patch and kind_of(self.task.kind).truth == "label":
            raise ValueError(f"data.patch is for tasks that say something of each place: not for {self.task.kind}")
        if self.data.table and kind_of(self.task.kind).truth != "label":
            raise ValueError(f"data.features: {self.task.kind} is of images, not of a table's rows")
        if self.task.subgroups and self.data.table:
            raise ValueError("task.subgroups: a table's rows have no scanner's header: leave it out with data.features")
        if self.task.subgroups and self.privacy.unit == "image":
            raise ValueError(
                'task.subgroups: an image can move its patient to another group: needs privacy.unit = "patient"'
            )
        if self.data.channels == 2 and kind_of(self.task.kind).truth != "image":
            raise ValueError(f"data.channels: complex images are for reconstruction: {self.task.kind} has 1 or 3")
        return self

    @model_validator(mode="after")
    def _sites_fit_the_quorum(self) -> Job:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("sites names a site twice")
        if self.aggregation.min_sites > len(self.sites):
            raise ValueError(
                f"aggregation.min_sites is {self.aggregation.min_sites}, but the job names only {len(self.sites)} sites"
            )
        return self

    @model_validator(mode="after")
    def _views_of_an_image_differ(self) -> Job:
        if self.privacy.augmentations > 1 and self.data.augment == "none":
            raise ValueError("privacy.augmentations above 1 needs data.augment: else all views are the same")
        return self

    @model_validator(mode="after")
    def _training_fits_the_strategy(self) -> Job:
        training, strategy = self.training, self.aggregation.strategy
        if self.aggregation.known_parameters.plain_steps and (
            training.optimizer != "sgd" or training.momentum > 0 or training.averaging > 0
        ):
            raise ValueError(
                f'strategy "{strategy}" needs plain SGD: training.optimizer = "sgd", momentum = 0 and averaging = 0'
            )
        if strategy == "fednova" and training.optimizer != "sgd":
            raise ValueError('strategy "fednova" normalises steps of SGD: set training.optimizer = "sgd"')
        if self.data.scale == "site" and self.private:
            raise ValueError(
                'data.scale = "site" rests on every patient, and nothing bounds that: with DP use "unit", or for '
                'tables "standard" with public means and deviations'
            )
        return self

    @property
    def private(self) -> bool:
        """Whether the sites train with differential privacy, so that nothing exact leaves them."""
        return self.privacy.mechanism == "dp-sgd"

    def canonical_json(self) -> str:
        """Return the job as canonical JSON: every default written out, keys sorted, no spaces, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the canonical JSON, in lower-case hexadecimal. Computed once: a job may name 10,000 sites."""
        return hashlib.sha256(self.canonical_json().encode("ascii")).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with the fields of `update` in place of its own, and a digest of its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied


def read_job(path: Path) -> Job:
    """Read a job from a TOML file.

    Raises
    ------
    JobError
        The file can't be read, is no TOML, or holds a wrong key, type or value. The message has one line for each
        fault: file, line, key, what is expected there, and the nearest right key.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise JobError(f"{path}: the job can't be read: {error.strerror}") from error
    return parse_job(text, source=str(path))


def parse_job(text: str, source: str = "job") -> Job:
    """Read a job from TOML text; `source` names it in messages. Raises JobError as `read_job` does."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{source}: not valid TOML: {error}") from error
    return _validated(table, source, text)


def job_from_json(text: str, source: str = "job") -> Job:
    """Read a job from its canonical JSON, as it came over the wire. Raises JobError."""
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise JobError(f"{source}: not valid JSON: {error}") from error
    return _validated(table, source, "")


def _validated(table: Any, source: str, text: str) -> Job:
    try:
        return Job.model_validate(table)
    except ValidationError as error:
        raise JobError(explain(error, Job, source, text)) from error


def key_table() -> list[tuple[str, str, str]]:
    """Return every key of a job by its dotted name, with its default as JSON ("" if it has none) and its meaning."""
    rows = []
    for name, field in Job.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            rows += [
                (f"{name}.{key}", _default(inner), inner.description or "")
                for key, inner in section.model_fields.items()
            ]
        else:
            rows.append((name, _default(field), field.description or ""))
    return rows


def describe_keys() -> dict[str, str]:
    """Return every key of a job by its dotted name with its one line of meaning."""
    return {key: meaning for key, _, meaning in key_table()}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return json.dumps(field.get_default(call_default_factory=True))
