"""What this hospital allows a job to do. No policy means refusal, not freedom.

The policy is `policy.toml` in the site's kit, written by the data steward. It is read again for every message, so a
stricter policy takes effect at once, also for runs under way.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import RefusedError, UsageError
from common.faults import explain
from common.files import read_text
from common.job import Job
from common.release import Basis

FILE_NAME = "policy.toml"

DEFAULT_POLICY = """\
# What this hospital allows a job to do. Whatever is not allowed here is refused.
# It is read again for every message: a change takes effect at once.

collections = []             # the collections that jobs may train on; [] allows none, ["*"] all
tasks = ["classification"]   # the kinds of task allowed
networks = ["*"]             # the networks allowed, by name; ["*"] all
strategies = ["*"]           # the strategies allowed, by name; ["*"] all
require_privacy = true       # refuse a job without differential privacy
image_unit = false           # allow a job to protect single images rather than whole patients
max_epsilon_per_run = 8.0    # largest epsilon that one run may spend
max_epsilon_for_life = 10.0  # largest epsilon that all runs together may spend on one collection
max_delta = 1e-5             # largest delta
secure_noise = false         # insist on noise from a cryptographic generator
min_patients = 20            # smallest number of patients in the training split
min_evaluation_patients = 5  # below this, no evaluation metric leaves (the training still may)
metrics = "noised"           # how metrics on validation and test splits may leave: "noised", "exact" or "none"
releasable_splits = []       # splits declared releasable, e.g. ["test"]: their metrics leave exactly, unless "none"
counts = "noised"            # how the number of training patients may leave: "noised", or "public": exactly
"""


class Policy(BaseModel):
    """A hospital's policy. Every field has the meaning that `DEFAULT_POLICY` states beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    collections: tuple[str, ...]
    tasks: tuple[str, ...] = ("classification",)
    networks: tuple[str, ...] = ("*",)
    strategies: tuple[str, ...] = ("*",)
    require_privacy: bool = True
    image_unit: bool = False
    max_epsilon_per_run: float = Field(8.0, gt=0)
    max_epsilon_for_life: float = Field(10.0, gt=0)
    max_delta: float = Field(1e-5, gt=0, lt=1)
    secure_noise: bool = False
    min_patients: int = Field(20, ge=1)
    min_evaluation_patients: int = Field(5, ge=1)
    metrics: Literal["noised", "exact", "none"] = "noised"
    releasable_splits: tuple[Literal["validation", "test"], ...] = ()
    counts: Literal["noised", "public"] = "noised"


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
        table = tomllib.loads(text)
    except FileNotFoundError as error:
        raise RefusedError(f"no {FILE_NAME}: this site has no policy, so it refuses every job") from error
    except OSError as error:
        raise UsageError(f"{path}: the policy can't be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    try:
        return Policy.model_validate(table)
    except ValidationError as error:
        raise UsageError(explain(error, Policy, str(path), text).replace("\n", "; ")) from error


def check_job(policy: Policy, job: Job) -> None:
    """Check what needs no look at the data. Raises RefusedError with every reason in one line."""
    privacy = job.privacy
    reasons = [
        _unless_listed("collection", job.data.collection, policy.collections),
        _unless_listed("task", job.task.kind, policy.tasks),
        _unless_listed("network", job.network.name, policy.networks),
        _unless_listed("strategy", job.aggregation.strategy, policy.strategies),
    ]
    if job.private:
        if privacy.epsilon > policy.max_epsilon_per_run:
            reasons.append(f"epsilon {privacy.epsilon:g} is over the policy's {policy.max_epsilon_per_run:g} per run")
        if privacy.delta > policy.max_delta:
            reasons.append(f"delta {privacy.delta:g} is over the policy's {policy.max_delta:g}")
        if privacy.unit == "image" and not policy.image_unit:
            reasons.append("the policy protects patients, but the job's unit is the image")
        if policy.secure_noise and not privacy.secure_noise:
            reasons.append("the policy wants noise from a cryptographic generator (privacy.secure_noise = true)")
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


def count_basis(policy: Policy, job: Job) -> Basis:
    """Return on what basis the number of training units leaves."""
    if not job.private:
        return "exact"
    return "declared" if policy.counts == "public" else "noised"


def _unless_listed(what: str, name: str, allowed: tuple[str, ...]) -> str:
    if name in allowed or "*" in allowed:
        return ""
    return f'the policy does not allow the {what} "{name}"'
