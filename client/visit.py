"""One request at a site, once policy, person and cohort have said yes: what is spent, done and said.

Every number of the answer is given its basis here, and what depends on patients is paid for before it is computed: the
count of units (`client.counts`), the training (DP-SGD), the metrics of each split (`client.evaluation`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from client.account import Pays
from client.bench import Bench
from client.counts import NOISE, Count
from client.evaluation import exact_metrics, mechanisms, noised_metrics, predict
from client.memory import AFTER_ALL, Memory
from client.methods import judged, keeps_something, kept_after, own_model, phases, received
from client.policy import Policy, count_basis, metrics_basis
from client.privacy.sampling import units_of
from client.training import LocalResult, Mechanism, Plan, only_trained, plan_steps, train_round
from common.errors import JobError, RefusedError
from common.networks import load_tensors, tensors_of
from common.privacy import Spending
from common.release import Accounting, Evaluation, Numbers, Operation, Training
from common.selection import chosen, evaluates, evaluations_from, steps_from, steps_of_round
from common.update import Answer, Request, Tensors, round_before

log = logging.getLogger("wardround.site")


Counts = Callable[[str, int, Callable[[], None]], Count]
"""Returns the count that may leave of so many units, for a key of data and unit; the third pays before the noise."""


@dataclass(frozen=True)
class Visit:
    """A request that is allowed at `site`, with all that it needs.

    `bench` is where its job is worked on, `account` pays for it, `memory` has what the strategy keeps here, `counts`
    the counts of units that have left. `check` refuses a run that does not fit the budget, before its first round.
    """

    site: str
    request: Request
    policy: Policy
    bench: Bench
    account: Pays
    device: torch.device
    counts: Counts
    memory: Memory
    check: Callable[[Plan, int], None]

    def consent(self) -> Answer:
        """Say whether the whole run fits here, before a model is sent; the count of units leaves with it."""
        count = self._count()
        if self.request.job.private:
            self.check(self._plan(count), self.request.number)
        return self._answer(count, Numbers(training=self._training(count)))

    def train(self) -> Answer:
        """Evaluate the model on the validation split, then train one round from it."""
        request, bench, count = self.request, self.bench, self._count()
        if self.site not in chosen(request.job, request.number):
            raise RefusedError(f"round {request.number} is not this site's turn: its noise would not be enough")
        before = round_before(request, self.site)
        plan, kept = self._plan(count), self.memory.read(before)
        start, own, evaluation = received(request.model, kept, bench.local), own_model(kept), None
        evaluated = evaluates(request.job, request.number)
        if evaluated:
            load_tensors(bench.network, own or start)
            evaluation = self._evaluation("validation")
        if own or not evaluated:  # else it is there already
            load_tensors(bench.network, start)
        loss_before = self._loss_before()
        mechanism, accounting = self._pay_for_training(plan) if request.job.private else (None, None)
        result, update, personal = self._train(plan, kept, mechanism)
        log.info("run %s round %d trained: %d steps", request.run, request.number, result.steps)
        if keeps_something(request.job, bench.local):
            stays = kept_after(request, kept, bench.local, bench.trained, update, personal, result.steps)
            self.memory.write(request.number, stays, before)
        training = self._training(count, result.loss, loss_before)
        numbers = Numbers(Operation(result.seconds, result.steps), accounting, training, evaluation)
        sent = {name: tensor for name, tensor in update.items() if name not in bench.local}
        return self._answer(count, numbers, sent)

    def _train(
        self, plan: Plan, kept: Tensors, mechanism: Mechanism | None
    ) -> tuple[LocalResult, Tensors, Tensors | None]:
        """Go through the round's phases; return the result and the model that is sent, and one that stays, if any."""
        bench, request = self.bench, self.request
        sent: tuple[LocalResult, Tensors] | None = None
        own: Tensors | None = None
        for place, phase in enumerate(phases(request, kept, bench.local, plan.steps_per_round, bench.trained)):
            if phase.start is not None:
                load_tensors(bench.network, phase.start)
            with only_trained(bench.network, phase.only):
                result = train_round(
                    bench.network,
                    bench.training.cases,
                    bench.training.targets,
                    bench.task,
                    request.job,
                    request.number,
                    mechanism=mechanism,
                    device=self.device,
                    pull=phase.pull,
                    plan=replace(plan, steps_per_round=phase.steps),
                    cache=bench.cache,
                    phase=place,
                )
            if phase.sent:
                sent = result, tensors_of(bench.network)
            else:
                own = tensors_of(bench.network)
        if sent is None:
            raise JobError(f'strategy "{request.job.aggregation.strategy}" has no phase whose outcome is sent')
        return *sent, own

    def evaluate(self) -> Answer:
        """Evaluate the model on the split that is asked for, and send numbers only."""
        kept = self.memory.read(AFTER_ALL)
        load_tensors(self.bench.network, judged(self.request.model, kept, self.bench.local))
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
        return self.counts(key, units, self._pay_for_count)

    def _pay_for_count(self) -> None:
        self.account.spend(self.request.number, "train", "count", Spending(NOISE, 1.0, 1))

    def _plan(self, count: Count) -> Plan:
        return plan_steps(self.request.job, self.bench.training.cases, count.units)

    def _loss_before(self) -> float:
        """The loaded model's loss on the training split, for q-FedAvg; with privacy on, nothing asks for it."""
        if self.request.job.private or self.request.job.aggregation.strategy != "qfedavg":
            return math.nan
        return float(predict(self.bench.network, self.bench.training, self.bench.task, self.device).losses.mean())

    def _training(self, count: Count, loss: float = math.nan, loss_before: float = math.nan) -> Training:
        """What may be said of the training split: with privacy on, only the count."""
        job, cases = self.request.job, self.bench.training.cases
        if not job.private:
            losses = (value if math.isfinite(value) else None for value in (loss, loss_before))
            return Training("exact", len(cases.labels), cases.patient_count, *losses)
        if job.privacy.unit == "image":
            return Training(count.basis, images=count.units)
        return Training(count.basis, patients=count.units)

    def _pay_for_training(self, plan: Plan) -> tuple[Mechanism, Accounting]:
        """Write the round in the ledger, then return the mechanism that this pays for, and its numbers."""
        job, number = self.request.job, self.request.number
        steps = steps_of_round(job, plan.steps_per_round)
        left = steps_from(job, self.site, number, plan.steps_per_round)
        noise = self.account.noise("train", "training", plan.sample_rate, left)
        spending = Spending(noise, plan.sample_rate, steps)
        epsilon = self.account.spend(number, "train", "training", spending)
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
        noise = self._pay_for_metrics(name, mechanisms(split)) if basis == "noised" else None
        if basis == "noised" and noise is None:
            return None
        predictions = predict(self.bench.network, split, self.bench.task, self.device)
        if noise is None:
            least = max(1, self.policy.min_evaluation_patients)
            return exact_metrics(predictions, split, self.bench.task, basis, groups_from=least)
        return noised_metrics(predictions, split, self.bench.task, noise)

    def _pay_for_metrics(self, split: str, steps: int) -> float | None:
        """Write one evaluation of so many mechanisms in the ledger.

        Returns their noise multiplier, or None where the budget has no room.
        """
        training = split == "validation" and self.request.kind == "train"
        more = evaluations_from(self.request.job, self.site, self.request.number) if training else 1
        try:
            noise = self.account.noise(split, "metrics", 1.0, more * steps)
            self.account.spend(self.request.number, split, "metrics", Spending(noise, 1.0, steps))
        except RefusedError as error:
            log.warning("run %s: no metrics on the %s split: %s", self.request.run, split, error)
            return None
        return noise
