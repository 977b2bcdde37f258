"""What a job's privacy would cost, before anything runs: noise, epsilon over the rounds, and the signal that is left.

Everything here follows from the job and from the number of units at each site, public or guessed; nothing is asked of a
site and nothing is spent. The numbers are those of the accountant and of the sampling that the sites use themselves.

The signal. A step's noise on the mean gradient has a norm of about sigma C sqrt(d) / B (d parameters, B units a step);
the mean of clipped gradients has at most C. Over T steps and K sites a steady direction adds up T K times, noise only
its root, so what counts in the end is

    noise share = sigma sqrt(d) / (B sqrt(T K))

the norm of all noise over the largest norm of all signal. It is a rule of thumb for choosing among jobs, not a promise:
real gradients are shorter than C and turn as they go. (Bassily, Smith and Thakurta, FOCS 2014, for how sqrt(d) enters.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.errors import RefusedError
from common.job import Job
from common.privacy import Spending, epsilon_of, noise_for, rdp_epsilon_of, sampling_rate
from common.selection import planned_steps, rounds_of, steps_from, steps_of_round

GUESS = 500
"""Units that a site is taken to have when nobody says."""
GOOD, HOPELESS = 0.15, 0.6
"""Noise shares: real chest X-rays at 0.1 lost 0.02 of AUC (README.md); above 0.6 noise outweighs most signal."""
CURVE_POINTS = 20
SMALL_BATCH = 32


@dataclass(frozen=True)
class SitePlan:
    """One site's part: `units` in training (`guessed` or known), and what a run takes of them.

    `curve` is (round, epsilon) at up to `CURVE_POINTS` rounds, `rdp_epsilon` the run's by the older accountant.
    `refusal` says why the run does not fit there, "" if it does; then the other numbers are those of the nearest job.
    """

    site: str
    units: int
    guessed: bool
    sample_rate: float
    steps_per_round: int
    steps: int
    noise_multiplier: float = 0.0
    epsilon: float = 0.0
    rdp_epsilon: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    noise_share: float = math.inf
    refusal: str = ""


@dataclass(frozen=True)
class PrivacyPlan:
    """The whole job: each site's part, the share of noise in the model that all make together, and warnings."""

    job: Job
    parameters: int
    sites: tuple[SitePlan, ...]
    noise_share: float
    verdict: str
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether no site has to refuse."""
        return not any(site.refusal for site in self.sites)


def plan_privacy(
    job: Job, parameters: int, *, units: Mapping[str, int], left: Mapping[str, float] | None = None
) -> PrivacyPlan:
    """Return the plan of a job with local differential privacy, for a network of so many trainable parameters.

    `units` are the patients (or images, as the job's unit is) in the training split of the sites that are known; `left`
    the epsilon that a site still allows one run, where that is known. A job without privacy has a plan without sites.
    """
    if job.privacy.mechanism == "central":
        return _central(job, parameters)
    if not job.private:
        none = ("the job has no differential privacy: what leaves may tell of single patients",)
        return PrivacyPlan(job, parameters, (), 0.0, "no noise is added", none)
    sites = tuple(_site(job, parameters, site, units.get(site), (left or {}).get(site)) for site in job.sites)
    together = [site for site in sites if not site.refusal] or list(sites)
    share = math.sqrt(sum((site.units * site.noise_share) ** 2 for site in together)) / sum(
        site.units for site in together
    )
    return PrivacyPlan(job, parameters, sites, share, _verdict(share), _warnings(job, sites))


def _central(job: Job, parameters: int) -> PrivacyPlan:
    """The coordinator's own noise: its norm over the largest norm that all sites' clipped updates have together."""
    sites, rounds = len(job.sites), job.aggregation.rounds
    noise = noise_for(job.privacy.epsilon, job.privacy.delta, 1.0, rounds)
    share = noise * math.sqrt(parameters) / (sites * math.sqrt(rounds))
    said = (
        f"the coordinator adds the noise (multiplier {noise:.2f} in each of {rounds} rounds) and sees exact updates: "
        "the sites' policies must trust it",
        f"a whole site is protected among {sites}: with few sites, noise at the sites (dp-sgd) leaves far more signal",
    )
    return PrivacyPlan(job, parameters, (), share, _verdict(share), said)


def _site(job: Job, parameters: int, site: str, units: int | None, left: float | None) -> SitePlan:
    privacy, known = job.privacy, units or GUESS
    allowed = privacy.epsilon if left is None else min(privacy.epsilon, left)
    rate = sampling_rate(job.training.batch_size, known)
    each = planned_steps(job, known)
    steps = steps_from(job, site, 1, each)
    nothing, refusal = SitePlan(site, known, units is None, rate, each, steps), ""
    if left is not None and left < privacy.epsilon:
        refusal = f"the run needs epsilon {privacy.epsilon:g}, {left:g} is left"
        if left <= 0:
            return replace(nothing, refusal=f"{refusal}: no job fits")
        refusal += f": the nearest job that fits has privacy.epsilon = {left:g}"
    try:
        noise = noise_for(allowed, privacy.delta, rate, steps)
    except RefusedError as error:
        return replace(nothing, refusal=str(error))
    whole = [Spending(noise, rate, steps)]
    share = noise * math.sqrt(parameters) / (min(job.training.batch_size, known) * math.sqrt(steps))
    return replace(
        nothing,
        noise_multiplier=noise,
        epsilon=epsilon_of(whole, privacy.delta),
        rdp_epsilon=rdp_epsilon_of(whole, privacy.delta),
        curve=_curve(job, site, noise, rate, each),
        noise_share=share,
        refusal=refusal,
    )


def _curve(job: Job, site: str, noise: float, rate: float, each: int) -> tuple[tuple[int, float], ...]:
    rounds, steps = job.aggregation.rounds, steps_of_round(job, each)
    points = sorted({max(1, round(rounds * point / CURVE_POINTS)) for point in range(1, CURVE_POINTS + 1)})
    after = {number: steps * (rounds_of(job, site, 1) - rounds_of(job, site, number + 1)) for number in points}
    return tuple((number, epsilon_of([Spending(noise, rate, after[number])], job.privacy.delta)) for number in points)


def _verdict(share: float) -> str:
    if share < GOOD:
        return "good: little of the model is noise"
    if share < HOPELESS:
        return "hard: expect to lose accuracy; larger batches, more patients, a smaller network or more epsilon help"
    return "hopeless: the noise drowns what is learnt; a much smaller network, more patients or more epsilon are needed"


def _warnings(job: Job, sites: tuple[SitePlan, ...]) -> tuple[str, ...]:
    """What a reviewer would object to."""
    privacy, found = job.privacy, []
    small = [site.site for site in sites if privacy.delta > 1 / site.units]
    if small:
        found.append(
            f"delta {privacy.delta:g} is over one in the number of units at {', '.join(small)}: it should be well below"
        )
    full = [site.site for site in sites if site.sample_rate == 1.0]
    if full:
        found.append(f"a batch takes everybody at {', '.join(full)}: sampling fewer a step would need less noise")
    if job.training.batch_size < SMALL_BATCH:
        found.append(f"batches of {job.training.batch_size} are small for DP-SGD: noise falls with the batch size")
    if privacy.unit == "image":
        found.append("single images are protected, not patients: one with k images may lose up to k times epsilon")
    if privacy.epsilon > 10:
        found.append(f"epsilon {privacy.epsilon:g} promises little: the literature calls up to about 8 meaningful")
    return tuple(found)
