"""One request at a site, once policy, person and cohort have said yes: what is spent, done and said.

Every number of the answer is given its basis here, and what depends on patients is paid for before it is computed: the
count of units (`client.counts`), the training (DP-SGD), the metrics of each split (`client.evaluation`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from client.account import Account
from client.bench import Bench
from client.budget import check_run
from client.counts import NOISE, Count, noised_count
from client.evaluation import exact_metrics, noised_metrics, predict
from client.policy import Policy, count_basis, metrics_basis
from client.privacy.sampling import units_of
from client.training import Mechanism, Plan, plan_steps, train_round
from common.errors import RefusedError
from common.networks import load_tensors, tensors_of
from common.privacy import Spending
from common.release import Accounting, Evaluation, Numbers, Operation, Training
from common.update import Answer, Request, Tensors

log = logging.getLogger("wardround.site")


@dataclass(frozen=True)
class Visit:
    """A request that is allowed here, with the bench that its job is worked on and the account that pays for it."""

    site: str
    kit_folder: Path
    request: Request
    policy: Policy
    bench: Bench
    account: Account
    device: torch.device

    def consent(self) -> Answer:
        """Say whether the whole run fits here, before a model is sent; the count of units leaves with it."""
        count = self._count()
        if self.request.job.private:
            check_run(self.account, self._plan(count), self.request.number)
        return self._answer(count, Numbers(training=self._training(count)))

    def train(self) -> Answer:
        """Evaluate the model on the validation split, then train one round from it."""
        request, bench, count = self.request, self.bench, self._count()
        plan = self._plan(count)
        load_tensors(bench.network, request.model)
        evaluation = self._evaluation("validation")
        mechanism, accounting = self._pay_for_training(plan) if request.job.private else (None, None)
        result = train_round(
            bench.network,
            bench.training.cases,
            bench.training.targets,
            bench.task,
            request.job,
            request.number,
            mechanism=mechanism,
            anchor=request.model,
            device=self.device,
            plan=plan,
            cache=bench.cache,
        )
        log.info("run %s round %d trained: %d steps", request.run, request.number, result.steps)
        training = self._training(count, result.loss)
        numbers = Numbers(Operation(result.seconds, result.steps), accounting, training, evaluation)
        return self._answer(count, numbers, tensors_of(bench.network))

    def evaluate(self) -> Answer:
        """Evaluate the model on the split that is asked for, and send numbers only."""
        load_tensors(self.bench.network, self.request.model)
        return self._answer(self._count(), Numbers(evaluation=self._evaluation(self.request.split)))

    def _answer(self, count: Count, numbers: Numbers, tensors: Tensors | None = None) -> Answer:
        job, images = self.request.job, len(self.bench.training.cases.labels)
        return Answer(
            self.site,
            job.digest,
            self.request.number,
            "ok",
            examples=count.units if job.private else images,
            numbers=numbers,
            tensors=tensors,
        )

    def _count(self) -> Count:
        """The number of training units that may leave, and on which the plan and the update's weight rest."""
        job, cases = self.request.job, self.bench.training.cases
        units, basis = len(units_of(cases.patients, job.privacy.unit)), count_basis(self.policy, job)
        if basis != "noised":
            return Count(units, basis)
        key = f"{job.data.collection} train {job.privacy.unit} {self.bench.data_digest}"
        return noised_count(self.kit_folder, key, units, self._pay_for_count)

    def _pay_for_count(self) -> None:
        self.account.spend(self.request.number, "train", "count", Spending(NOISE, 1.0, 1))

    def _plan(self, count: Count) -> Plan:
        return plan_steps(self.request.job, self.bench.training.cases, count.units)

    def _training(self, count: Count, loss: float = math.nan) -> Training:
        """What may be said of the training split: with privacy on, only the count."""
        job, cases = self.request.job, self.bench.training.cases
        if not job.private:
            return Training("exact", len(cases.labels), cases.patient_count, loss if math.isfinite(loss) else None)
        if job.privacy.unit == "image":
            return Training(count.basis, images=count.units)
        return Training(count.basis, patients=count.units)

    def _rounds_left(self) -> int:
        return max(1, self.request.job.aggregation.rounds - self.request.number + 1)

    def _pay_for_training(self, plan: Plan) -> tuple[Mechanism, Accounting]:
        """Write the round in the ledger, then return the mechanism that this pays for, and its numbers."""
        steps = plan.steps_per_round
        noise = self.account.noise("train", "training", plan.sample_rate, steps * self._rounds_left())
        spending = Spending(noise, plan.sample_rate, steps)
        epsilon = self.account.spend(self.request.number, "train", "training", spending)
        mechanism = Mechanism(noise_multiplier=noise, sample_rate=plan.sample_rate)
        return mechanism, Accounting(epsilon, self.request.job.privacy.delta, noise, plan.sample_rate)

    def _evaluation(self, name: str) -> Evaluation | None:
        """The model's metrics on a split, in the form in which the policy lets them leave; None where it does not."""
        split = self.bench.splits.get(name)
        if split is None:
            return None
        basis = metrics_basis(self.policy, self.request.job, name, split.cases.patient_count)
        if basis is None:
            return None
        noise = self._pay_for_metrics(name) if basis == "noised" else None
        if basis == "noised" and noise is None:
            return None
        predictions = predict(self.bench.network, split, self.bench.task, self.device)
        if noise is None:
            return exact_metrics(predictions, split, self.bench.task, basis)
        return noised_metrics(predictions, split, self.bench.task, noise)

    def _pay_for_metrics(self, split: str) -> float | None:
        """Write one evaluation in the ledger; return its noise multiplier, or None where the budget has no room."""
        more = self._rounds_left() + 1 if split == "validation" and self.request.kind == "train" else 1
        try:
            noise = self.account.noise(split, "metrics", 1.0, more)
            self.account.spend(self.request.number, split, "metrics", Spending(noise, 1.0, 1))
        except RefusedError as error:
            log.warning("run %s: no metrics on the %s split: %s", self.request.run, split, error)
            return None
        return noise
