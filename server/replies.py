"""Whether a site's answer may be used: everything that needs knowledge of the run. One bad answer costs one turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from common.bins import LABEL, histogram
from common.errors import UpdateError
from common.job import Job
from common.release import Statistics
from common.selection import planned_steps
from common.update import Answer, Request, Tensors, check_tensors
from server.aggregation import MAX_WEIGHT
from server.strategies.strategy import Gathering

JUMP = 0.5
"""The largest relative change of a site's count of examples between rounds: data may be added, not conjured up."""
JUMP_FLOOR = 10


@dataclass(frozen=True)
class Summed(Answer):
    """An answer whose update was checked and summed where it was made, by a grid that `SumsUpdates`.

    Only a grid in this process can make one: no wire carries it.
    """


@runtime_checkable
class SumsUpdates(Protocol):
    """A grid whose nodes sum the updates of a round among themselves."""

    def take_sums(self) -> list[Gathering]:
        """Return the sums of the exchange that has just closed; they are given once."""


def check_answer(answer: Answer, request: Request, site: str) -> None:
    """Check that `answer` comes from `site` and, unless it says no, answers `request`.

    Raises UpdateError with the reason.
    """
    if answer.site != site:
        raise UpdateError(f'{site}: the answer bears the name "{answer.site[:64]}"')
    if answer.status != "ok":
        return  # a site that can't read the request can't say what it answers
    if answer.job_digest != request.job.digest:
        raise UpdateError(f"{site}: the answer is for job {answer.job_digest[:12]}, not {request.job.digest[:12]}")
    if answer.number != request.number:
        raise UpdateError(f"{site}: the answer is for round {answer.number}, not {request.number}")


def check_update(answer: Answer, job: Job, model: Tensors, known: int | None) -> Tensors:
    """Return the tensors of an answer to a training request, checked against the model and the count known so far.

    Raises
    ------
    UpdateError
        No tensors, another architecture, NaN or infinity, a count that is out of range, contradicts the site's own
        metrics, or differs from `known` by more than half, or steps that are not the job's.
    """
    site, count = answer.site, answer.examples
    if answer.tensors is None:
        raise UpdateError(f"{site}: the answer has no update")
    if not 1 <= count <= MAX_WEIGHT:
        raise UpdateError(f"{site}: a count of {count} examples is not between 1 and {MAX_WEIGHT}")
    metrics = answer.metrics
    stated = metrics.get("train.images", metrics.get("train.patients", count))
    if stated != count:
        raise UpdateError(f"{site}: the count of examples is {count}, but its metrics say {stated:g}")
    if known is not None and abs(count - known) > max(JUMP * known, JUMP_FLOOR):
        raise UpdateError(f"{site}: the count of examples jumped from {known} to {count}")
    taken, planned = metrics.get("train.steps"), planned_steps(job, count)
    if taken is not None and taken != planned:  # FedNova and SCAFFOLD divide by it: nothing to be taken on trust
        raise UpdateError(f"{site}: it says that it took {taken:g} steps, and the job has {planned} for its count")
    check_tensors(answer.tensors, model, site)
    return answer.tensors


def check_statistics(answer: Answer, job: Job) -> Statistics:
    """Return the statistics of an answer. Raises UpdateError when there are none, or they do not fit the job."""
    found = answer.numbers.statistics
    if found is None or found.label is None:
        raise UpdateError(f"{answer.site}: the answer has no statistics")
    if len(found.label) != (wanted := len(histogram(LABEL, job.task.labels).bins)):
        raise UpdateError(f"{answer.site}: the histogram of labels has {len(found.label)} bins, not {wanted}")
    if job.private and (found.basis != "noised" or not found.deviation):
        raise UpdateError(f"{answer.site}: the job asks for noised statistics, and these are {found.basis}")
    return found


def norm_of_update(tensors: Tensors, model: Tensors) -> float:
    """Return the L2 norm of what training moved: the difference of the floating-point tensors from the model's."""
    moved = ((tensor - model[name]).ravel() for name, tensor in tensors.items() if tensor.dtype.kind == "f")
    return math.sqrt(sum(float(np.dot(delta, delta)) for delta in moved))
