"""Which sites take part in a round: drawn from the job's seed, so that every side knows it beforehand.

Because a site can tell in which rounds it will be asked, its noise is calibrated for those and no more.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from common.job import Job

CYCLIC = "cyclic"


def chosen(job: Job, number: int) -> tuple[str, ...]:
    """Return the sites of round `number` (from 1), in the job's order.

    All of them; or `aggregation.sites_per_round`, drawn without replacement; or, for strategy "cyclic", one, in turn.
    """
    if job.aggregation.strategy == CYCLIC:
        return (job.sites[(number - 1) % len(job.sites)],)
    wanted = job.aggregation.sites_per_round
    if wanted is None or wanted >= len(job.sites):
        return job.sites
    return tuple(job.sites[place] for place in _drawn(job.seed, number, len(job.sites), wanted))


def rounds_of(job: Job, site: str, first: int) -> int:
    """Return in how many rounds, from round `first` to the last, `site` takes part."""
    rounds = job.aggregation.rounds
    if job.aggregation.strategy != CYCLIC and job.aggregation.sites_per_round is None:
        return max(0, rounds - first + 1)
    return sum(site in chosen(job, number) for number in range(first, rounds + 1))


@lru_cache(maxsize=4096)
def _drawn(seed: int, number: int, sites: int, wanted: int) -> tuple[int, ...]:
    random = np.random.default_rng([seed, number, sites])
    return tuple(int(place) for place in np.sort(random.choice(sites, wanted, replace=False)))
