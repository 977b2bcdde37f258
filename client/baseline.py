"""A site's own model: the job's network trained on the site's data alone, to compare. Nothing leaves the site."""

from __future__ import annotations

from dataclasses import dataclass

from client.evaluation import evaluate
from client.pull import towards
from client.site import Site
from client.training import Mechanism, plan_steps, train_round
from common.errors import DataError
from common.job import Job
from common.networks import load_tensors, tensors_of
from common.privacy import noise_for
from common.update import Tensors


@dataclass(frozen=True)
class Alone:
    """A model trained at one site: rounds trained, the kept model, and its metrics on the site's test split."""

    rounds: int
    tensors: Tensors
    metrics: dict[str, float]


def train_alone(site: Site, job: Job) -> Alone:
    """Train as the federation would, same rounds and mechanism, but with this site's updates only.

    The model kept is the best on the site's own validation split by the job's criterion, as in the federation. With DP
    the noise is that of the job's own epsilon; the ledger is not charged, because nothing is released.

    Raises
    ------
    DataError
        The collection has no test split, or can't be read.
    """
    bench = site.bench(job)
    validation, test = bench.splits.get("validation"), bench.splits.get("test")
    if test is None:
        raise DataError(f'collection "{job.data.collection}" has no test split at {site.name}: import more patients')
    cases, rounds = bench.training.cases, job.aggregation.rounds
    plan = plan_steps(job, cases)
    mechanism = None
    if job.private:
        privacy = job.privacy
        noise = noise_for(privacy.epsilon, privacy.delta, plan.sample_rate, plan.steps_per_round * rounds)
        mechanism = Mechanism(noise_multiplier=noise, sample_rate=plan.sample_rate)
    best, best_value = tensors_of(bench.network), float("-inf")
    for number in range(1, rounds + 1):
        start = tensors_of(bench.network)
        train_round(
            bench.network,
            cases,
            bench.training.targets,
            bench.task,
            job,
            number,
            mechanism=mechanism,
            pull=towards(job, start),
            device=site.device,
            cache=bench.cache,
        )
        value = float(number)  # without a validation metric the last model is kept
        if validation is not None:
            metrics = evaluate(bench.network, validation, bench.task, site.device)
            value = metrics.get(f"eval.{job.aggregation.criterion}", value)
        if value >= best_value:
            best, best_value = tensors_of(bench.network), value
    load_tensors(bench.network, best)
    return Alone(rounds, best, evaluate(bench.network, test, bench.task, site.device))
