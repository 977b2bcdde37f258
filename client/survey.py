"""Statistics at a site: patients counted over public bins, from what the catalog knows. No image is read.

As for a training stand before it the policy, a person where the policy wants one, the cohort and the ledger. With
differential privacy all histograms together are one Gaussian mechanism; it counts the patients of every split, which
have none in common, so each split pays the same (parallel composition; McSherry, SIGMOD 2009, theorem 4).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.account import Account
from client.budget import largest_further_run
from client.catalog import CATALOG_FILE, SPLITS, Catalog, FileRecord
from client.intake.sight import BINS
from client.outbox import recall, remember, request_key
from client.policy import Cohort, Policy, check_cohort, statistics_basis
from client.privacy.ledger import Ledger
from client.privacy.noise import SecureNoise
from client.subgroups import index, traits_of
from common import bins
from common.errors import DataError, RefusedError, UpdateError
from common.privacy import Spending, epsilon_of
from common.release import Accounting, Numbers, Statistics
from common.statistics import counts_only
from common.update import Answer, Request

log = logging.getLogger("wardround.site")
Weights = dict[str, np.ndarray]
"""The weight in each bin of each histogram, (bins,) float64."""


@dataclass(frozen=True)
class Survey:
    """A request for statistics, or whether they may be asked for, at `site`; the policy's rules on jobs are met."""

    site: str
    request: Request
    policy: Policy
    kit_folder: Path
    ledger: Ledger

    def answer(self) -> Answer:
        """Return the answer: yes to "consent", the counts to "statistics".

        Raises RefusedError (too few patients, no budget, exact counts that may not leave), UpdateError (the request
        does not fit its job) or DataError: then nothing was spent, or what was spent was not used.
        """
        request, job = self.request, self.request.job
        if not counts_only(job) or request.kind not in ("consent", "statistics"):
            raise UpdateError(f'the job\'s task is "{job.task.kind}", which does not go with "{request.kind}"')
        if job.data.table or job.privacy.unit != "patient" or len(job.task.labels) > bins.MOST_LABELS:
            raise UpdateError(f"statistics are of images, protect patients, and have at most {bins.MOST_LABELS} labels")
        basis = statistics_basis(self.policy, job)
        catalog = Catalog(self.kit_folder / CATALOG_FILE)
        splits = catalog.splits(job.data.collection)
        records = [record for record in catalog.records(job.data.collection) if not record.reason]
        if any(len(record.seen.histogram) != BINS for record in records):
            raise DataError(
                f'"{job.data.collection}" holds tables, or was imported by an earlier version: import again'
            )
        patients = {record.patient for record in records}
        check_cohort(self.policy, Cohort(len(patients), 0))
        account = Account(self.ledger, job, request.run, self.policy, catalog.sharing(job.data.collection))
        there = [split for split in SPLITS if any(splits[patient] == split for patient in patients)]
        if request.kind == "consent":
            if basis == "noised":
                self._check_budget(account, there)
            return self._said(Numbers())
        key = request_key(request)
        if (kept := recall(self.kit_folder, key, request)) is not None:
            log.info("run %s: asked again, the same statistics go out again", request.run)
            return kept
        numbers = self._noised(account, there, records) if basis == "noised" else self._exact(records)
        answer = self._said(numbers)
        remember(self.kit_folder, key, request, answer)
        return answer

    def _noised(self, account: Account, there: Sequence[str], records: Sequence[FileRecord]) -> Numbers:
        """Pay on every split, then count and add noise."""
        noise = max(account.noise(split, "statistics", 1.0, 1) for split in there)
        spending = Spending(noise, 1.0, 1)
        epsilon = max(account.spend(self.request.number, split, "statistics", spending) for split in there)
        deviation = noise * bins.SENSITIVITY
        found = {
            name: weights + SecureNoise().like(torch.from_numpy(weights), deviation).numpy()
            for name, weights in count(records, self.request.job.task.labels).items()
        }
        log.info("run %s: statistics for epsilon %.3f", self.request.run, epsilon)
        return Numbers(
            accounting=Accounting(epsilon, self.request.job.privacy.delta, noise, 1.0),
            statistics=Statistics("noised", deviation, **_plain(found)),
        )

    def _exact(self, records: Sequence[FileRecord]) -> Numbers:
        """Count exactly; a bin of fewer patients than the policy's smallest count is given as empty."""
        found, labels = count(records, self.request.job.task.labels), self.request.job.task.labels
        patients = in_bins(records, labels)
        least = self.policy.min_evaluation_patients
        shown = {name: np.where(patients[name] >= least, weights, 0.0) for name, weights in found.items()}
        return Numbers(statistics=Statistics("declared", 0.0, **_plain(shown)))

    def _check_budget(self, account: Account, there: Iterable[str]) -> None:
        """Check that the statistics fit what is left for life. Raises RefusedError with what fits. Costs nothing."""
        delta, collection = self.request.job.privacy.delta, self.request.job.data.collection
        limit = self.policy.max_epsilon_for_life
        for split in there:
            noise = account.noise(split, "statistics", 1.0, 1)
            spent = self.ledger.spent_for_life((collection, *account.sharing), split)
            if epsilon_of([*spent, Spending(noise, 1.0, 1)], delta) > limit:
                fits = largest_further_run(spent, limit, delta)
                raise RefusedError(
                    f'the statistics do not fit the budget of the collection "{collection}", {limit:g} for life: '
                    + (f"the largest epsilon that does is {fits:.2f}" if fits >= 0.01 else "nothing fits any more")
                )

    def _said(self, numbers: Numbers) -> Answer:
        return Answer(self.site, self.request.job.digest, self.request.number, "ok", numbers=numbers)


def count(records: Sequence[FileRecord], labels: Sequence[str]) -> Weights:
    """Return the weight in each bin: each patient has 1 in each histogram, shared equally by its files."""
    found = {name: np.zeros(len(bins.histogram(name, labels).bins)) for name in (bins.LABEL, *bins.HISTOGRAMS)}
    for files in _by_patient(records).values():
        for name, spread in _spreads(files, labels):
            found[name] += spread / spread.sum()
    return found


def in_bins(records: Sequence[FileRecord], labels: Sequence[str]) -> Weights:
    """Return how many patients have any weight in each bin."""
    found = {name: np.zeros(len(bins.histogram(name, labels).bins)) for name in (bins.LABEL, *bins.HISTOGRAMS)}
    for files in _by_patient(records).values():
        for name, spread in _spreads(files, labels):
            found[name] += spread > 0
    return found


def _by_patient(records: Iterable[FileRecord]) -> dict[str, list[FileRecord]]:
    groups: dict[str, list[FileRecord]] = defaultdict(list)
    for record in records:
        groups[record.patient].append(record)
    return groups


def _spreads(files: Sequence[FileRecord], labels: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a patient's weights, not yet of sum 1, in the bins of each histogram."""
    places = [_places(record, labels) for record in files]
    images = bins.place(sum(record.frames for record in files), bins.IMAGES)
    for name in (bins.LABEL, *bins.HISTOGRAMS):
        spread = np.zeros(len(bins.histogram(name, labels).bins))
        if name == "images":
            spread[images] = 1
        elif name == "intensity":
            for record in files:
                spread += record.seen.histogram
        else:
            np.add.at(spread, [found[name] for found in places], 1.0)
        yield name, spread


def _places(record: FileRecord, labels: Sequence[str]) -> dict[str, int]:
    """The bin of a file in each histogram where it has one."""
    how = record.acquired
    apart = how.between if how.between else how.thickness
    return traits_of(record) | {
        bins.LABEL: _label(record.label, labels),
        "modality": index(bins.MODALITIES, record.modality, len(bins.MODALITIES)),
        "field": bins.place(how.field, bins.FIELDS),
        "size": bins.place(max(record.rows, record.columns), bins.SIZES),
        "spacing": bins.place(how.spacing[0] if how.spacing else None, bins.SPACINGS),
        "distance": bins.place(None if apart is None else abs(apart), bins.DISTANCES),
    }


def _label(label: str | None, labels: Sequence[str]) -> int:
    return len(labels) + 1 if label is None else index(labels, label, len(labels))


def _plain(weights: Weights) -> dict[str, tuple[float, ...]]:
    return {name: tuple(float(weight) for weight in found) for name, found in weights.items()}
