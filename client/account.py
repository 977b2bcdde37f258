"""A run's account at a site: what it may spend on a collection, and the ledger entries that it writes.

Each split has the whole of the run's epsilon: splits are disjoint by patient, so what one patient loses is what was
spent on the split that the patient is in (parallel composition; McSherry, SIGMOD 2009, theorem 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from client.policy import Policy
from client.privacy.ledger import Entry, Ledger, Purpose, calibrate
from common.job import Job
from common.privacy import Spending


class Pays(Protocol):
    """What a visit needs of an account. Both raise RefusedError when a limit would be passed."""

    def noise(self, split: str, purpose: Purpose, sample_rate: float, steps: int) -> float:
        """Return the noise multiplier with which `steps` more of this purpose keep the run within the job's epsilon."""

    def spend(self, number: int, split: str, purpose: Purpose, spending: Spending) -> float:
        """Write `spending` of round `number` down; return the run's epsilon on the split, this included."""


@dataclass(frozen=True)
class Account:
    """A run's account on the job's collection. `sharing` names the other collections that have patients of it."""

    ledger: Ledger
    job: Job
    run: str
    policy: Policy
    sharing: tuple[str, ...] = ()

    def noise(self, split: str, purpose: Purpose, sample_rate: float, steps: int) -> float:
        """Return the noise multiplier with which `steps` more of this purpose keep the run within the job's epsilon.

        The noise that the run had before is kept while it is enough. Raises RefusedError when no noise is.
        """
        privacy, collection = self.job.privacy, self.job.data.collection
        entries = self.ledger.entries_by_run(collection, self.run, split)
        before = [entry.spending for entry in entries if entry.purpose == purpose]
        return calibrate(
            [entry.spending for entry in entries],
            sample_rate,
            steps,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            current=before[-1].noise_multiplier if before else None,
        )

    def spend(self, number: int, split: str, purpose: Purpose, spending: Spending) -> float:
        """Write `spending` of round `number` in the ledger; return the run's epsilon on the split, this included.

        Raises RefusedError (a limit of the run, or for life, would be passed) or DataError: then nothing was written.
        """
        privacy = self.job.privacy
        entry = Entry(
            self.job.data.collection,
            self.run,
            self.job.digest,
            number,
            privacy.unit,
            privacy.delta,
            spending,
            split=split,
            purpose=purpose,
        )
        return self.ledger.spend(
            entry,
            run_limit=min(privacy.epsilon, self.policy.max_epsilon_per_run),
            life_limit=self.policy.max_epsilon_for_life,
            sharing=self.sharing,
        )
