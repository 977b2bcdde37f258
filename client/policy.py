"""What this hospital allows a job to do. No policy means refusal, not freedom.

The policy is `policy.toml` in the site's kit, written by the data steward. It is read again for every message, so a
stricter policy takes effect at once, also for runs under way.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tomlkit.exceptions import TOMLKitError

from common.errors import RefusedError, UsageError, WaitingError
from common.faults import explain
from common.files import read_text
from common.job import Job
from common.release import Basis
from common.statistics import counts_only

FILE_NAME = "policy.toml"

HOURS = r"^$|^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


class Policy(BaseModel):
    """A hospital's policy. The defaults are what a site has as installed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    collections: tuple[str, ...] = Field(
        description='the collections that jobs may train on; [] allows none, ["*"] all'
    )
    tasks: tuple[str, ...] = Field(
        ("classification",), description='the kinds of task allowed; "statistics" lets counts of patients leave'
    )
    networks: tuple[str, ...] = Field(("*",), description='the networks allowed, by name; ["*"] all')
    strategies: tuple[str, ...] = Field(("*",), description='the strategies allowed, by name; ["*"] all')
    approval: Literal["none", "each-job"] = Field(
        "none", description='"each-job": a person must approve every job (wardround site approve)'
    )
    hours: str = Field("", pattern=HOURS, description='local time in which jobs may work, as "18:00-07:00"; "" always')
    require_privacy: bool = Field(True, description="refuse a job without differential privacy")
    trust_coordinator: bool = Field(
        False, description="allow central privacy: the coordinator, and it alone, sees this site's exact updates"
    )
    image_unit: bool = Field(False, description="allow a job to protect single images rather than whole patients")
    max_epsilon_per_run: float = Field(8.0, gt=0, description="largest epsilon that one run may spend")
    max_epsilon_for_life: float = Field(
        10.0, gt=0, description="largest epsilon that all runs together may spend on one collection"
    )
    max_delta: float = Field(1e-5, gt=0, lt=1, description="largest delta")
    secure_noise: bool = Field(False, description="insist on noise from a cryptographic generator")
    min_patients: int = Field(20, ge=1, description="smallest number of patients in the training split")
    min_evaluation_patients: int = Field(
        5, ge=1, description="below this, no evaluation metric leaves (the training still may)"
    )
    metrics: Literal["noised", "exact", "none"] = Field(
        "noised", description='how metrics on validation and test splits may leave: "noised", "exact" or "none"'
    )
    releasable_splits: tuple[Literal["validation", "test"], ...] = Field(
        (), description='splits declared releasable, as ["test"]: their metrics leave exactly, unless "none"'
    )
    counts: Literal["noised", "public"] = Field(
        "noised", description='how the number of training patients may leave: "noised", or "public": exactly'
    )
    machine: bool = Field(
        True,
        description="tell the coordinator this software's version, the name of the GPU, and how long each job took",
    )
    faces: Literal["keep", "refuse", "remove"] = Field(
        "keep",
        description='faces in head CT and MRI of which de-identified copies are made: "keep", "refuse" or "remove"',
    )


def change_policy(text: str, changes: Mapping[str, str], source: str) -> str:
    """Return the text of a policy file with some values changed; comments, order and all else stay.

    `changes` are TOML values by key; a word that is no TOML stands for itself, in quotes.

    Raises
    ------
    UsageError
        The text is no TOML, a key is unknown, or a value is wrong: as a whole, the policy would not be valid.
    """
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise UsageError(f"{source}: not valid TOML: {error}") from error
    for name, value in changes.items():
        try:
            document[name] = tomlkit.value(value)
        except TOMLKitError:
            document[name] = value
    changed = tomlkit.dumps(document)
    parse_policy(changed, source)
    return changed


def policy_text(policy: Policy) -> str:
    """Return the policy as the text of a policy file, each line with its meaning."""
    values = {name: f"{name} = {tomlkit.item(value).as_string()}" for name, value in _plain(policy).items()}
    width = max(map(len, values.values()))
    lines = [f"{line:<{width}}  # {Policy.model_fields[name].description}" for name, line in values.items()]
    return "\n".join((*HEADING, "", *lines, ""))


def _plain(policy: Policy) -> dict[str, object]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in policy}


HEADING = (
    "# What this hospital allows a job to do. Whatever is not allowed here is refused.",
    "# It is read again for every message: a change takes effect at once.",
)
DEFAULT_POLICY = policy_text(Policy(collections=()))
"""The policy as installed: it allows no collection yet."""


@dataclass(frozen=True)
class Cohort:
    """How many patients a job would train on and be evaluated on at this site."""

    training_patients: int
    evaluation_patients: int


def read_policy(kit_folder: Path) -> Policy:
    """Read the kit's policy.

    Raises
    ------
    RefusedError
        There is no policy: everything is refused.
    UsageError
        The policy can't be read, or has a wrong key or value.
    """
    path = kit_folder / FILE_NAME
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise RefusedError(f"no {FILE_NAME}: this site has no policy, so it refuses every job") from error
    except OSError as error:
        raise UsageError(f"{path}: the policy can't be read: {error.strerror}") from error
    return parse_policy(text, str(path))


def faces_policy(kit_folder: Path) -> Literal["keep", "refuse", "remove"]:
    """Return what the policy says of faces; as installed, where there is none. Raises UsageError for a wrong policy."""
    try:
        return read_policy(kit_folder).faces
    except RefusedError:
        return Policy(collections=()).faces


def parse_policy(text: str, source: str) -> Policy:
    """Read a policy from the text of a policy file. Raises UsageError, in one line, for a wrong key or value."""
    try:
        return Policy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise UsageError(explain(error, Policy, source, text).replace("\n", "; ")) from error


def check_job(policy: Policy, job: Job) -> None:
    """Check what needs no look at the data. Raises RefusedError with every reason in one line."""
    privacy = job.privacy
    reasons = [
        _unless_listed("collection", job.data.collection, policy.collections),
        _unless_listed("task", job.task.kind, policy.tasks),
    ]
    if not counts_only(job):  # which has no network, and nothing to combine
        reasons.append(_unless_listed("network", job.network.name, policy.networks))
        reasons.append(_unless_listed("strategy", job.aggregation.strategy, policy.strategies))
    if job.private:
        if privacy.epsilon > policy.max_epsilon_per_run:
            reasons.append(f"epsilon {privacy.epsilon:g} is over the policy's {policy.max_epsilon_per_run:g} per run")
        if privacy.delta > policy.max_delta:
            reasons.append(f"delta {privacy.delta:g} is over the policy's {policy.max_delta:g}")
        if privacy.unit == "image" and not policy.image_unit:
            reasons.append("the policy protects patients, but the job's unit is the image")
        if policy.secure_noise and not privacy.secure_noise:
            reasons.append("the policy wants noise from a cryptographic generator (privacy.secure_noise = true)")
    elif privacy.mechanism == "central":
        if not policy.trust_coordinator:
            reasons.append("the policy does not trust the coordinator with exact updates, as central privacy needs")
    elif policy.require_privacy:
        reasons.append("the policy requires differential privacy, but the job has none")
    if found := [reason for reason in reasons if reason]:
        raise RefusedError("; ".join(found))


def check_cohort(policy: Policy, cohort: Cohort) -> None:
    """Check that enough patients take part. Raises RefusedError; the message does not give the number."""
    if cohort.training_patients < policy.min_patients:
        raise RefusedError(
            f"fewer patients in the training split than the policy's smallest cohort, {policy.min_patients}"
        )


def metrics_basis(policy: Policy, job: Job, split: str, evaluation_patients: int) -> Basis | None:
    """Return on what basis metrics on a split with so many patients may leave; None where they may not.

    A job without privacy, which the policy must allow, sends exact metrics as it sends exact updates.
    """
    if policy.metrics == "none" or evaluation_patients < policy.min_evaluation_patients:
        return None
    if not job.private:
        return "exact"
    return "declared" if policy.metrics == "exact" or split in policy.releasable_splits else "noised"


def check_hours(policy: Policy, now: datetime.time) -> None:
    """Check that jobs may work at `now`, local time; the end of the hours is excluded, and they may pass midnight.

    Raises WaitingError: the run goes on when the time has come.
    """
    if not policy.hours:
        return
    start, end = (datetime.time.fromisoformat(text) for text in policy.hours.split("-"))
    within = start <= now < end if start < end else now >= start or now < end
    if not within:
        raise WaitingError(f"this site works on jobs from {start:%H:%M} to {end:%H:%M} of its local time")


def count_basis(policy: Policy, job: Job) -> Basis:
    """Return on what basis the number of training units leaves."""
    if not job.private:
        return "exact"
    return "declared" if policy.counts == "public" else "noised"


def statistics_basis(policy: Policy, job: Job) -> Basis:
    """Return on what basis statistics leave: with noise, or exactly where the policy declares counts public.

    Raises RefusedError: the job wants exact counts, and the policy does not let them leave.
    """
    if job.private:
        return "noised"
    if policy.counts != "public":
        raise RefusedError("the policy lets no exact count leave: ask for statistics with differential privacy")
    return "declared"


def _unless_listed(what: str, name: str, allowed: tuple[str, ...]) -> str:
    if name in allowed or "*" in allowed:
        return ""
    return f'the policy does not allow the {what} "{name}"'
