"""A job that counts and trains nothing: how it is told from others, and made of one that trains.

It is a job like any other, so that the same policy, person and ledger stand before it; its task is "statistics".
"""

from __future__ import annotations

from common.errors import JobError
from common.job import AggregationSection, DataSection, Job, PrivacySection, TaskSection

STATISTICS = "statistics"
"""The task's name, by which a policy allows it."""
DEADLINE = 600.0
"""Seconds after which a site that does not answer is left out, unless the job says otherwise."""


def counts_only(job: Job) -> bool:
    """Return whether the job asks for statistics, and for no training."""
    return job.task.kind == STATISTICS


def statistics_job(
    name: str,
    sites: tuple[str, ...],
    collection: str,
    labels: tuple[str, ...],
    *,
    epsilon: float | None,
    delta: float = 1e-5,
    wait: float = DEADLINE,
) -> Job:
    """Return a job for statistics of a collection; with `epsilon` None it asks for exact counts."""
    privacy = PrivacySection() if epsilon is None else _noised(epsilon, delta)
    return Job(
        name=name,
        description="Counts of patients by label, scanner, acquisition, age and sex.",
        sites=sites,
        task=TaskSection(kind=STATISTICS, labels=labels),
        data=DataSection(collection=collection),
        aggregation=AggregationSection(rounds=1, deadline_seconds=wait),
        privacy=privacy,
    )


def statistics_of(job: Job, *, epsilon: float | None, delta: float | None = None) -> Job:
    """Return the job for statistics of what `job` would train on. Raises JobError for a table's collection."""
    if job.data.table:
        raise JobError("statistics are of images: this job's collection is a table")
    wait = job.aggregation.deadline_seconds or DEADLINE
    delta = job.privacy.delta if delta is None else delta
    name, labels = f"{job.name[:50]}-statistics", job.task.labels
    return statistics_job(name, job.sites, job.data.collection, labels, epsilon=epsilon, delta=delta, wait=wait)


def _noised(epsilon: float, delta: float) -> PrivacySection:
    return PrivacySection(mechanism="dp-sgd", epsilon=epsilon, delta=delta, secure_noise=True)
