"""The privacy budget of each collection: what every run spent, what all spent together, and what still fits.

Spendings are composed by the accountant, never added up: two runs of epsilon 4 cost less than 8 together. So "what is
left" is found by asking the accountant how large one further run may be. Limits hold for each split by itself, because
the splits of a collection have no patient in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from client.account import Account
from client.privacy.ledger import Entry, Ledger, counts_for_life
from client.privacy.rows import Row
from common.errors import RefusedError
from common.privacy import Spending, epsilon_of, noise_for
from common.selection import steps_from

if TYPE_CHECKING:
    from client.training import Plan  # torch, which a look at the budget does not need

CURVE_POINTS = 40
"""Most points of a budget's curve over time: each is an accounting of its own."""


@dataclass(frozen=True)
class RunCost:
    """What one run has spent on a split: epsilon at `delta`, since when (ISO 8601, UTC), rounds it trained in."""

    run: str
    job_digest: str
    since: str
    unit: str
    epsilon: float
    delta: float
    rounds: int


@dataclass(frozen=True)
class Budget:
    """The budget of one split of a collection, at `delta`.

    `spent` is the epsilon of all runs together, those on collections that share patients (`sharing`) included; `limit`
    the policy's for life; `fits` the largest epsilon of one further run, as a single release; `history` the epsilon
    spent for life over time, at up to `CURVE_POINTS` entries of the ledger.
    """

    collection: str
    split: str
    delta: float
    runs: tuple[RunCost, ...]
    spent: float
    limit: float
    fits: float
    sharing: tuple[str, ...]
    history: tuple[tuple[str, float], ...]


def budgets(ledger: Ledger, limit: float, sharing: Callable[[str], Sequence[str]]) -> list[Budget]:
    """Return the budget of every split that was ever spent on; `sharing` names a collection's relatives by patient.

    The delta of each is the smallest that a run there was accounted at: of several, the one with the largest epsilon.
    """
    rows = ledger.rows()
    keys = dict.fromkeys((row.entry.collection, row.entry.split) for row in rows)
    return [_budget(rows, collection, split, limit, tuple(sharing(collection))) for collection, split in keys]


def largest_further_run(spent: Sequence[Spending], limit: float, delta: float) -> float:
    """Return the largest epsilon of one more release such that all together stay within `limit`; 0 if there is none.

    The release is taken as one Gaussian mechanism: a run of many sampled steps differs a little in how it composes.
    """
    try:
        noise = noise_for(limit, delta, 1.0, 1, spent=spent)
    except RefusedError:
        return 0.0
    return epsilon_of([Spending(noise, 1.0, 1)], delta)


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` positions spread over `count` of them, the first and the last included."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, most))})


def check_run(account: Account, site: str, plan: Plan, number: int) -> None:
    """Check, before its first step, that the run as a whole fits both limits: of the run, and for life.

    `number` is the round that comes next, at `site`. Costs nothing, and tells of no patient: it follows from the job,
    the released count and the ledger.

    Raises
    ------
    RefusedError
        It does not fit: with the numbers, and the nearest job that does.
    """
    job, ledger, limit = account.job, account.ledger, account.policy.max_epsilon_for_life
    privacy, collection = job.privacy, job.data.collection
    steps = steps_from(job, site, max(1, number), plan.steps_per_round)
    noise = account.noise("train", "training", plan.sample_rate, steps)
    before = ledger.spent_for_life((collection, *account.sharing), "train")
    of_life = epsilon_of([*before, Spending(noise, plan.sample_rate, steps)], privacy.delta)
    if of_life <= limit:
        return
    raise RefusedError(
        f'the run would cost epsilon {privacy.epsilon:g}, and the collection "{collection}" would then have spent '
        f"{of_life:.2f} over all runs, over the policy's {limit:g} for life: {_nearest(account, plan, steps, before)}"
    )


def _nearest(account: Account, plan: Plan, steps: int, before: Sequence[Spending]) -> str:
    """The largest privacy.epsilon with which the run fits, or that there is none."""
    delta, limit = account.job.privacy.delta, account.policy.max_epsilon_for_life
    own = account.ledger.spent_by_run(account.job.data.collection, account.run)
    try:
        noise = noise_for(limit, delta, plan.sample_rate, steps, spent=before)
    except RefusedError:
        return f"{epsilon_of(before, delta):.2f} is spent already, and no job fits any more"
    largest = math.floor(100 * epsilon_of([*own, Spending(noise, plan.sample_rate, steps)], delta)) / 100
    if largest <= 0:
        return f"{epsilon_of(before, delta):.2f} is spent already, and no job fits any more"
    return f"the nearest job that fits has privacy.epsilon = {largest:g}"


def _budget(rows: Sequence[Row], collection: str, split: str, limit: float, sharing: tuple[str, ...]) -> Budget:
    mine = [row for row in rows if (row.entry.collection, row.entry.split) == (collection, split)]
    counted = [row for row in rows if counts_for_life(row.entry, collection, split, sharing)]
    delta = min(row.entry.delta for row in mine)
    spendings = [row.entry.spending for row in counted]
    points = evenly(len(counted), CURVE_POINTS)
    history = tuple((counted[at].at, epsilon_of(spendings[: at + 1], delta)) for at in points)
    return Budget(
        collection,
        split,
        delta,
        tuple(_run_cost(run, [row for row in mine if row.entry.run == run]) for run in _runs(mine)),
        epsilon_of(spendings, delta),
        limit,
        largest_further_run(spendings, limit, delta),
        sharing,
        history,
    )


def _runs(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.entry.run for row in rows))


def _run_cost(run: str, rows: Sequence[Row]) -> RunCost:
    first: Entry = rows[0].entry
    delta = min(row.entry.delta for row in rows)
    rounds = len({row.entry.round for row in rows if row.entry.purpose == "training"})
    epsilon = epsilon_of([row.entry.spending for row in rows], delta)
    return RunCost(run, first.job_digest, rows[0].at, first.unit, epsilon, delta, rounds)
