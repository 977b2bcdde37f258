"""What the API takes and gives, beside the views that it gives as they are. Times are seconds since 1970 UTC."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path as InPath
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from common.job import Job
from common.plan import SitePlan
from server.actions import LONGEST_JOB, LONGEST_NOTE
from server.passwords import LONGEST, SHORTEST
from server.records import Stage
from server.roles import Role, Scope
from server.tokens import LONGEST_TOKEN_DAYS
from server.views import Interval, ModelLine, RunLine, SiteSpend, StageChange

LARGEST_NUMBER = 2**31 - 1
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
NO_ZERO = r"^[^\x00]*$"

RunName = Annotated[str, InPath(max_length=200, description="The run's full name.")]
PersonName = Annotated[str, InPath(max_length=200, description="The person's name.")]
Number = Annotated[int, InPath(ge=1, le=LARGEST_NUMBER)]
Offset = Annotated[int, Query(ge=0, le=LARGEST_NUMBER, description="How many to leave out at the beginning.")]
Limit = Annotated[int, Query(ge=1, le=500, description="At most so many.")]
After = Annotated[int, Query(ge=0, le=LARGEST_NUMBER, description="Only what comes after this line.")]
Search = Annotated[str, Query(max_length=200, description="Only what contains this text.")]


class Body(BaseModel):
    """What is sent to the API: a key that it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JobText(Body):
    """A job as its TOML file has it."""

    toml: str = Field(max_length=LONGEST_JOB, pattern=NO_ZERO, description="The text of the job's TOML file.")


class StageWish(Body):
    """The stage that a model is to be put into."""

    stage: Stage
    note: str = Field("", max_length=LONGEST_NOTE, pattern=NO_ZERO, description="Why.")


class NewPerson(Body):
    """Somebody to be added. Without a password, they sign in with the OpenID `subject`, or not yet."""

    name: str = Field(max_length=64, pattern=PRINTABLE)
    role: Role
    display: str = Field("", max_length=200, pattern=PRINTABLE, description="The name as people know it.")
    password: str | None = Field(None, min_length=SHORTEST, max_length=LONGEST)


class PersonChange(Body):
    """What is to be changed of a person."""

    role: Role | None = None
    disabled: bool | None = None


class NewPassword(Body):
    """A new password; `old` is needed for one's own."""

    password: str = Field(min_length=SHORTEST, max_length=LONGEST)
    old: str = Field("", max_length=LONGEST)


class NewToken(Body):
    """A token to be made, for oneself or (an admin) for another `person`."""

    name: str = Field(min_length=1, max_length=120, pattern=PRINTABLE, description="What it is for.")
    scopes: tuple[Scope, ...] = Field(min_length=1, max_length=20)
    days: int = Field(30, ge=1, le=LONGEST_TOKEN_DAYS, description="Days until it ends.")
    person: str = Field("", max_length=64, pattern=PRINTABLE)


class Answer(BaseModel):
    """What the API gives; made from the value that has the same attributes."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Problem(Answer):
    """An error (RFC 9457). `detail` is one line: what is wrong and what to do; `faults` those of a job, if several."""

    type: str
    title: str
    status: int
    detail: str
    faults: tuple[str, ...] = ()


class Health(Answer):
    """Whether the dashboard works, and whether a coordinator does."""

    status: Literal["ok"]
    coordinator_running: bool


class Session(Answer):
    """Who asks. `csrf` is what changes by cookie must bring in the header `X-CSRF-Token`; "" for a token."""

    name: str
    display: str
    role: Role
    scopes: tuple[str, ...]
    via: Literal["session", "token"]
    csrf: str


class RunNamed(Answer):
    """A run that was started, stopped or resumed."""

    run: str


class JobChecked(Answer):
    """A job without fault: its digest, and every key that it did not say itself."""

    name: str
    digest: str
    job: Job


class Plan(Answer):
    """What a job's privacy would cost. `noise_share` and `verdict`: how much of what is learnt is noise."""

    job: str
    parameters: int
    sites: tuple[SitePlan, ...]
    noise_share: float
    verdict: str
    warnings: tuple[str, ...]
    fits: bool


class Model(Answer):
    """A model that a run left."""

    id: int
    run: str
    run_status: str
    job_name: str
    kind: str
    round: int
    score: float | None
    criterion: str
    created: float
    bytes: int
    sha256: str
    digest: str
    code_version: str
    stage: Stage
    changes: tuple[StageChange, ...]

    @classmethod
    def of(cls, line: ModelLine) -> Model:
        """Return what the API gives of a model."""
        return cls.model_validate(line)


class Models(Answer):
    """A page of models."""

    items: tuple[Model, ...]
    total: int
    offset: int
    limit: int


class GroupMetrics(Answer):
    """Metrics of the patients in one bin of a trait, by site (all together under "") and metric."""

    trait: str
    bin: int
    title: str
    metrics: dict[str, dict[str, Interval]]


class ModelAnswer(Answer):
    """A model with its metrics: by site (all together under "") and metric, of the split `judged_on`; and by group."""

    model: Model
    judged_on: str
    metrics: dict[str, dict[str, Interval]]
    groups: tuple[GroupMetrics, ...]
    run: RunLine
    spends: tuple[SiteSpend, ...]


class RunAnswer(Answer):
    """A run without its rounds. `sent` and `received` are bytes of tensors."""

    line: RunLine
    job: Job
    toml: str
    round_count: int
    spends: tuple[SiteSpend, ...]
    models: tuple[Model, ...]
    warnings: tuple[str, ...]
    sent: int
    received: int


class Difference(Answer):
    """A key in which two jobs differ, with the value of each as TOML, "" where it has none."""

    key: str
    one: str
    other: str


class PersonAnswer(Answer):
    """A person of this coordinator."""

    name: str
    display: str
    role: Role
    signs_in: str
    disabled: bool
    created: float
    by: str
    seen: float | None


class TokenAnswer(Answer):
    """A token, without its secret."""

    id: int
    person: str
    name: str
    scopes: tuple[str, ...]
    created: float
    ends: float
    used: float | None
    revoked: bool


class TokenIssued(Answer):
    """A new token. The `secret` is shown this once."""

    token: TokenAnswer
    secret: str


class SignedOut(Answer):
    """How many sessions were ended."""

    sessions: int


class AuditEntry(Answer):
    """An entry of the coordinator's audit log."""

    sequence: int
    at: str
    kind: str
    body: dict[str, Any]
    hash: str


class AuditPage(Answer):
    """A page of the coordinator's audit log, the newest first."""

    items: tuple[AuditEntry, ...]
    total: int
    offset: int
    limit: int
