"""Which sites take part in a round: drawn from the job's seed, so that every side knows it beforehand.

Because a site can tell in which rounds it will be asked, its noise is calibrated for those and no more.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from common.job import Job
from common.privacy import sampling_rate, steps_per_round
from common.strategies import Cyclic, Ditto, FedRep


def chosen(job: Job, number: int) -> tuple[str, ...]:
    """Return the sites of round `number` (from 1), in the job's order.

    All of them; or `aggregation.sites_per_round`, drawn without replacement; or, for strategy "cyclic", one, in turn.
    """
    if isinstance(cyclic := job.aggregation.known_parameters, Cyclic):
        cycle, place = divmod(number - 1, len(job.sites))
        return (job.sites[_order(job.seed, cycle, len(job.sites))[place] if cyclic.shuffle else place],)
    wanted = job.aggregation.sites_per_round
    if wanted is None or wanted >= len(job.sites):
        return job.sites
    return tuple(job.sites[place] for place in _drawn(job.seed, number, len(job.sites), wanted))


def rounds_of(job: Job, site: str, first: int) -> int:
    """Return in how many rounds, from round `first` to the last, `site` takes part."""
    rounds = job.aggregation.rounds
    if not isinstance(job.aggregation.known_parameters, Cyclic) and job.aggregation.sites_per_round is None:
        return max(0, rounds - first + 1)
    return sum(site in chosen(job, number) for number in range(first, rounds + 1))


def planned_steps(job: Job, count: int) -> int:
    """Return how many steps train the common model in a round at a site with so many images, or (with DP) units."""
    training = job.training
    if training.local_steps is not None:
        return training.local_steps
    if job.private:
        return steps_per_round(training.local_epochs, sampling_rate(training.batch_size, count))
    return max(1, round(training.local_epochs * math.ceil(count / training.batch_size)))


def steps_of_round(job: Job, steps: int) -> int:
    """Return how many steps of DP-SGD a round takes that trains the common model for `steps`.

    FedRep trains the head before the body, Ditto a model of the site's own after the common one: all of them touch the
    patients, and what they make shows in what is released, so all of them are paid for.
    """
    parameters = job.aggregation.known_parameters
    if isinstance(parameters, FedRep):
        return steps + (parameters.head_steps or steps)
    return 2 * steps if isinstance(parameters, Ditto) else steps


def steps_from(job: Job, site: str, first: int, steps: int) -> int:
    """Return how many steps of DP-SGD `site` takes from round `first` to the last; at least one round's."""
    return steps_of_round(job, steps) * max(1, rounds_of(job, site, first))


def evaluates(job: Job, number: int) -> bool:
    """Return whether the model that is sent in round `number` is evaluated at the sites before they train."""
    return (number - 1) % job.aggregation.evaluate_every == 0


def evaluations_from(job: Job, site: str, first: int) -> int:
    """Return how often `site` evaluates on "validation" from round `first` on, the last model included."""
    rounds = range(first, job.aggregation.rounds + 1)
    return 1 + sum(evaluates(job, number) and site in chosen(job, number) for number in rounds)


@lru_cache(maxsize=64)
def _order(seed: int, cycle: int, sites: int) -> tuple[int, ...]:
    return tuple(int(place) for place in np.random.default_rng([seed, cycle, sites]).permutation(sites))


@lru_cache(maxsize=4096)
def _drawn(seed: int, number: int, sites: int, wanted: int) -> tuple[int, ...]:
    random = np.random.default_rng([seed, number, sites])
    return tuple(int(place) for place in np.sort(random.choice(sites, wanted, replace=False)))
