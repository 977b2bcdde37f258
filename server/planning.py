"""A job's privacy plan as the coordinator can make it: with the counts that its earlier runs know."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import select

from common.job import Job
from common.plan import PrivacyPlan, plan_privacy
from server.registry import Registry
from server.schema import run_sites, runs

NEWEST_RUNS = 200
"""In how many of the newest runs counts are looked for."""


def plan_job(job: Job, known: Mapping[str, int] | None = None, left: Mapping[str, float] | None = None) -> PrivacyPlan:
    """Return the job's plan. Builds its network to count parameters (imports torch); nothing is sent.

    `known` are training patients (or images, as the job's unit is) by site, `left` the epsilon a site still allows.
    """
    from common.networks import build_network

    network = build_network(job)
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return plan_privacy(job, parameters, units=known or {}, left=left)


def counts_of_earlier_runs(registry: Registry, job: Job) -> dict[str, int]:
    """Return each site's newest count in a run on the same collection that protected the same unit."""
    newest = select(runs.c.id, runs.c.job).order_by(runs.c.id.desc()).limit(NEWEST_RUNS).subquery()
    query = select(newest.c.job, run_sites.c.site, run_sites.c.examples).join(
        run_sites, run_sites.c.run_id == newest.c.id
    )
    counts: dict[str, int] = {}
    with registry.database.read() as connection:
        rows = connection.execute(query.where(run_sites.c.examples.is_not(None)).order_by(newest.c.id.desc())).all()
    wanted = (job.data.collection, job.privacy.unit, "dp-sgd")
    for row in rows:
        earlier = json.loads(row.job)
        privacy = earlier["privacy"]
        if row.site in job.sites and (earlier["data"]["collection"], privacy["unit"], privacy["mechanism"]) == wanted:
            counts.setdefault(row.site, row.examples)
    return counts
