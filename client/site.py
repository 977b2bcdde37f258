"""A site: ties catalog, policy, ledger and trainer together. The only door to the data.

A request goes in, an answer comes out; between them stand, in this order, the policy, the cohort, the ledger and the
trainer. Nothing here knows of messages or networks of computers.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from client.catalog import Catalog
from client.dataset import CaseSet, open_cases
from client.outbox import recall, remember, request_key
from client.policy import Cohort, Policy, check_cohort, check_job, metrics_may_leave, read_policy
from client.privacy.ledger import Entry, Ledger, calibrate
from client.training import Mechanism, Plan, evaluate, pick_device, plan_steps, train_round
from common.errors import RefusedError, UpdateError, WaitingError, WardroundError
from common.job import Job
from common.kit import read_kit
from common.networks import build_network, load_tensors, tensors_of
from common.privacy import Spending
from common.release import Accounting, Evaluation, Numbers, Operation, Training
from common.tasks.registry import build_task
from common.tasks.task import Task
from common.update import Answer, Request, Status

CATALOG_FILE, LEDGER_FILE, CACHE_FOLDER = "catalog.sqlite", "ledger.sqlite", "cache"
log = logging.getLogger("wardround.site")


@dataclass(frozen=True)
class Split:
    """One split of a collection, decoded, with its targets as the task wants them."""

    cases: CaseSet
    targets: torch.Tensor


@dataclass(frozen=True)
class Bench:
    """All that stays resident for a job between rounds: network on its device, decoded cases, plan of steps."""

    job: Job
    data_digest: str
    network: torch.nn.Module
    task: Task
    training: Split
    plan: Plan


class Site:
    """One hospital's node, opened from its kit. Thread-safe: one request at a time touches the data."""

    def __init__(self, kit_folder: Path, name: str, device: torch.device) -> None:
        self.kit_folder = kit_folder
        self.name = name
        self.device = device
        self.ledger = Ledger(kit_folder / LEDGER_FILE)
        self._lock = threading.Lock()
        self._bench: Bench | None = None
        self._splits: dict[tuple[str, str], Split] = {}
        self._noise: dict[str, float] = {}

    @classmethod
    def open(cls, kit_folder: Path, device: str = "auto") -> Site:
        """Open the site whose kit is in `kit_folder`; `device` is "auto", "cpu" or "cuda".

        Raises
        ------
        KitError
            There is no site's kit there.
        DataError
            The ledger can't be used.
        """
        kit = read_kit(kit_folder, "site")
        return cls(kit_folder, kit.name, pick_device(device))

    def answer(self, request: Request) -> Answer:
        """Do what `request` asks, or say why not.

        Guarantees: never raises for what a request, the policy or the data may hold. A reason that leaves the site
        names no file, patient or count; the details are in the site's own log.
        """
        with self._lock:
            try:
                policy = read_policy(self.kit_folder)
                self._check_request(request, policy)
                if request.kind == "consent":
                    return self._consent(request, policy)
                return self._train(request, policy) if request.kind == "train" else self._evaluate(request, policy)
            except WaitingError as error:
                log.info("job %.12s waits: %s", request.job.digest, error)
                return self._no(request, "waiting", str(error))
            except RefusedError as error:
                log.warning("job %.12s refused: %s", request.job.digest, error)
                return self._no(request, "refused", str(error))
            except UpdateError as error:
                log.error("job %.12s: %s", request.job.digest, error)
                return self._no(request, "failed", str(error))
            except WardroundError as error:
                log.error("job %.12s failed: %s", request.job.digest, error)
                return self._no(request, "failed", f"{type(error).__name__}: the site's log has the details")
            except Exception as error:
                log.exception("job %.12s failed", request.job.digest)
                return self._no(request, "failed", f"{type(error).__name__}: the site's log has the details")

    def bench(self, job: Job) -> Bench:
        """Return the job's network, cases and plan, built on the first call and kept while job and data are the same.

        Raises RefusedError (one class only), DataError (no such collection, unreadable) or JobError.
        """
        catalog = Catalog(self.kit_folder / CATALOG_FILE)
        digest = catalog.digest(job.data.collection)
        if self._bench is not None and (self._bench.job, self._bench.data_digest) == (job, digest):
            return self._bench
        self._bench, self._splits = None, {}  # let go of the last job's memory before taking more
        task = build_task(job.task)
        training = self._load(catalog, job, task, "train")
        if len(set(training.cases.labels)) < 2:
            raise RefusedError("the training split has one class only")
        network = build_network(job, task.outputs).to(self.device)
        self._bench = Bench(job, digest, network, task, training, plan_steps(job, training.cases))
        return self._bench

    def split(self, bench: Bench, name: str) -> Split | None:
        """Return the split `name` ("validation" or "test") for a bench's job, or None when it has no case."""
        catalog = Catalog(self.kit_folder / CATALOG_FILE)
        if not catalog.cases(bench.job.data.collection, name):
            return None
        return self._load(catalog, bench.job, bench.task, name)

    def _check_request(self, request: Request, policy: Policy) -> None:
        if self.name not in request.job.sites:
            raise RefusedError("the job does not name this site")
        check_job(policy, request.job)

    def _load(self, catalog: Catalog, job: Job, task: Task, split: str) -> Split:
        key = (job.digest, split)
        if key not in self._splits:
            cases = open_cases(catalog, job.data, split, self.kit_folder / CACHE_FOLDER)
            self._splits[key] = Split(cases, task.target(cases.labels))
        return self._splits[key]

    def _consent(self, request: Request, policy: Policy) -> Answer:
        """Say whether the job may run here, before a model is sent. Costs nothing but the release of a count."""
        bench = self.bench(request.job)
        cases = bench.training.cases
        check_cohort(policy, Cohort(cases.patient_count, 0))
        return Answer(
            site=self.name,
            job_digest=request.job.digest,
            number=request.number,
            status="ok",
            examples=len(cases.labels),
            numbers=Numbers(training=Training("exact", len(cases.labels), cases.patient_count)),
        )

    def _train(self, request: Request, policy: Policy) -> Answer:
        job = request.job
        bench = self.bench(job)
        check_cohort(policy, Cohort(bench.training.cases.patient_count, 0))
        key = request_key(request)
        if (kept := recall(self.kit_folder, key, request)) is not None:
            log.info("run %s round %d: asked again, the same answer goes out again", request.run, request.number)
            return kept
        load_tensors(bench.network, request.model)
        evaluation = self._evaluation(bench, policy, "validation")
        mechanism, accounting = self._spend(request, bench, policy) if job.private else (None, None)
        result = train_round(
            bench.network,
            bench.training.cases,
            bench.training.targets,
            bench.task,
            job,
            request.number,
            mechanism=mechanism,
            anchor=request.model,
            device=self.device,
        )
        cases, loss = bench.training.cases, math.nan if job.private else result.loss
        answer = Answer(
            site=self.name,
            job_digest=job.digest,
            number=request.number,
            status="ok",
            examples=len(cases.labels),
            numbers=Numbers(
                Operation(result.seconds, result.steps),
                accounting,
                Training("exact", len(cases.labels), cases.patient_count, loss if math.isfinite(loss) else None),
                evaluation,
            ),
            tensors=tensors_of(bench.network),
        )
        remember(self.kit_folder, key, request, answer)
        log.info("run %s job %.12s round %d trained: %d steps", request.run, job.digest, request.number, result.steps)
        return answer

    def _evaluate(self, request: Request, policy: Policy) -> Answer:
        bench = self.bench(request.job)
        check_cohort(policy, Cohort(bench.training.cases.patient_count, 0))
        load_tensors(bench.network, request.model)
        evaluation = self._evaluation(bench, policy, request.split)
        return Answer(
            site=self.name,
            job_digest=request.job.digest,
            number=request.number,
            status="ok",
            examples=len(bench.training.cases.labels),
            numbers=Numbers(evaluation=evaluation),
        )

    def _evaluation(self, bench: Bench, policy: Policy, split_name: str) -> Evaluation | None:
        """Metrics of the bench's network on a split, or None where the policy keeps them here."""
        split = self.split(bench, split_name)
        if split is None or not metrics_may_leave(policy, split.cases.patient_count):
            return None
        found = evaluate(bench.network, split.cases, split.targets, bench.task, self.device)
        return Evaluation("exact", **{name.removeprefix("eval."): value for name, value in found.items()})

    def _spend(self, request: Request, bench: Bench, policy: Policy) -> tuple[Mechanism, Accounting]:
        """Write this round's spending in the ledger, then return the mechanism that it pays for, and its numbers."""
        job, privacy, plan = request.job, request.job.privacy, bench.plan
        spent = self.ledger.spent_by_run(job.data.collection, request.run)
        rounds_left = max(1, job.aggregation.rounds - request.number + 1)
        noise = calibrate(
            spent,
            plan.sample_rate,
            plan.steps_per_round * rounds_left,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            current=self._noise.get(request.run) or (spent[-1].noise_multiplier if spent else None),
        )
        self._noise[request.run] = noise
        entry = Entry(
            job.data.collection,
            request.run,
            job.digest,
            request.number,
            privacy.unit,
            privacy.delta,
            Spending(noise, plan.sample_rate, plan.steps_per_round),
        )
        epsilon = self.ledger.spend(
            entry,
            run_limit=min(privacy.epsilon, policy.max_epsilon_per_run),
            life_limit=policy.max_epsilon_for_life,
        )
        accounting = Accounting(epsilon, privacy.delta, noise, plan.sample_rate)
        return Mechanism(noise_multiplier=noise, sample_rate=plan.sample_rate), accounting

    def _no(self, request: Request, status: Status, reason: str) -> Answer:
        return Answer(
            site=self.name,
            job_digest=request.job.digest,
            number=request.number,
            status=status,
            reason=reason,
        )
