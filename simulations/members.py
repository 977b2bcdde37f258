"""A simulated hospital: the visit of a deployed site, without kit, files and link.

What differs from `client.site.Site`: cases come as arrays, the account and what a strategy keeps are in memory, and the
policy allows everything, because nobody's images are behind it. Network and task are one for all hospitals, which run
one after another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from client.bench import Bench
from client.counts import Count
from client.dataset import CaseSet
from client.evaluation import Split
from client.memory import Memory
from client.policy import Policy
from client.privacy.ledger import Purpose, calibrate
from client.scaling import scaled
from client.training import Plan
from client.visit import Visit
from common.errors import RefusedError, UpdateError, WardroundError
from common.job import Job
from common.networks import build_network, local_names
from common.privacy import Spending, epsilon_of
from common.tasks.registry import build_task
from common.tasks.task import Task
from common.update import Answer, Request

log = logging.getLogger("wardround.simulation")


@dataclass(frozen=True)
class Hospital:
    """A hospital's cases, by split: "train", and "validation" and "test" where it has any."""

    name: str
    splits: Mapping[str, CaseSet]


Population = Mapping[str, Hospital]
"""Hospitals by name. Looking one up may be what makes it: ten thousand need not be in memory at once."""


@dataclass(frozen=True)
class Workshop:
    """What all hospitals of a job share in one process: the network on its device, the task, what stays local."""

    job: Job
    network: torch.nn.Module
    task: Task
    local: frozenset[str]
    device: torch.device
    policy: Policy

    @classmethod
    def of(cls, job: Job, device: torch.device) -> Workshop:
        """Build it. Raises JobError as the parts do."""
        task = build_task(job)
        policy = Policy(
            collections=(job.data.collection,), require_privacy=False, metrics="exact", counts="public",
            max_epsilon_per_run=1e6, max_epsilon_for_life=1e6, min_patients=1, min_evaluation_patients=1,
        )  # fmt: skip
        return cls(job, build_network(job).to(device), task, local_names(job), device, policy)


@dataclass
class OpenAccount:
    """An account in memory: of one hospital in one run, with no limit but the job's own epsilon."""

    job: Job
    spendings: dict[str, list[tuple[Purpose, Spending]]] = field(default_factory=dict)

    def noise(self, split: str, purpose: Purpose, sample_rate: float, steps: int) -> float:
        """Return the noise multiplier with which `steps` more keep the run within the job's epsilon."""
        entries = self.spendings.get(split, [])
        before = [spending for kind, spending in entries if kind == purpose]
        privacy, spent = self.job.privacy, tuple(spending for _, spending in entries)
        current = before[-1].noise_multiplier if before else None
        return _calibrated(spent, sample_rate, steps, privacy.epsilon, privacy.delta, current)

    def spend(self, number: int, split: str, purpose: Purpose, spending: Spending) -> float:
        """Write `spending` down; return the run's epsilon on the split, this included."""
        self.spendings.setdefault(split, []).append((purpose, spending))
        return epsilon_of([one for _, one in self.spendings[split]], self.job.privacy.delta)


@lru_cache(maxsize=4096)
def _calibrated(
    spent: tuple[Spending, ...], sample_rate: float, steps: int, epsilon: float, delta: float, current: float | None
) -> float:
    """Hospitals of one size have one plan: it is made once."""
    return calibrate(list(spent), sample_rate, steps, epsilon=epsilon, delta=delta, current=current)


@dataclass
class Member:
    """A simulated hospital at work on one job. `interfere` stands between requests and answers, for faults."""

    hospital: Hospital
    workshop: Workshop
    account: OpenAccount
    memory: Memory
    interfere: Callable[[Request, Callable[[], Answer]], Answer] | None = None
    _splits: dict[str, Split] | None = None

    def answer(self, request: Request) -> Answer:
        """Do what `request` asks, or say why not, as a site does."""
        if self.interfere is not None:
            return self.interfere(request, lambda: self._honest(request))
        return self._honest(request)

    def _honest(self, request: Request) -> Answer:
        try:
            visit = self._visit(request)
            match request.kind:
                case "consent":
                    return visit.consent()
                case "train":
                    return visit.train()
                case "evaluate":
                    return visit.evaluate()
                case "statistics":
                    raise UpdateError("simulated hospitals give no statistics")
        except RefusedError as error:
            return Answer(self.hospital.name, request.job.digest, request.number, "refused", str(error))
        except WardroundError as error:
            log.warning("%s failed: %s", self.hospital.name, error)
            return Answer(self.hospital.name, request.job.digest, request.number, "failed", str(error))

    def _visit(self, request: Request) -> Visit:
        shop = self.workshop
        return Visit(
            self.hospital.name,
            request,
            shop.policy,
            Bench(shop.job, "", shop.network, shop.task, self.splits, local=shop.local),
            self.account,
            shop.device,
            counts=_exact_count,
            memory=self.memory,
            check=_no_check,
        )

    @property
    def splits(self) -> dict[str, Split]:
        """The splits with their targets. Raises DataError for a label that the job does not name."""
        if self._splits is None:
            targets = self.workshop.task.targets
            known = {name: cases for name, cases in self.hospital.splits.items() if cases.labels}
            cases_of = scaled(known, self.workshop.job.data)
            self._splits = {name: Split(cases, targets(cases)) for name, cases in cases_of.items()}
        return self._splits


def _exact_count(key: str, units: int, pay: Callable[[], None]) -> Count:
    return Count(units, "declared")


def _no_check(plan: Plan, number: int) -> None:
    """A simulated hospital has no budget for life."""
