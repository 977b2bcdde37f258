"""A site: ties catalog, policy, ledger and trainer together. The only door to the data.

A request goes in, an answer comes out; between them stand, in this order, the policy, the cohort, the ledger and the
trainer. Nothing here knows of messages or networks of computers.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from dataclasses import replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path

import torch

from client.account import Account
from client.approvals import require_approval
from client.bench import Bench, set_up
from client.budget import check_run
from client.catalog import CATALOG_FILE, Catalog
from client.counts import noised_count
from client.memory import KitMemory
from client.outbox import recall, remember, request_key
from client.policy import Cohort, check_cohort, check_hours, check_job, read_policy
from client.privacy.ledger import LEDGER_FILE, Ledger
from client.record import site_log
from client.survey import Survey
from client.training import pick_device
from client.visit import Visit
from common.errors import RefusedError, UpdateError, WaitingError, WardroundError
from common.job import Job
from common.kit import Kit, read_kit
from common.privacy import epsilon_of
from common.statistics import counts_only
from common.update import Answer, Request, Status

CACHE_FOLDER = "cache"
log = logging.getLogger("wardround.site")


class Site:
    """One hospital's node, opened from its kit. Thread-safe: one request at a time touches the data."""

    def __init__(self, kit: Kit, device: torch.device) -> None:
        self.kit_folder = kit.folder
        self.name = kit.name
        self.coordinator = kit.address
        self.device = device
        self.log = site_log(kit.folder)
        self.ledger = Ledger(kit.folder / LEDGER_FILE, self.log)
        self._lock = threading.Lock()
        self._bench: Bench | None = None

    @classmethod
    def open(cls, kit_folder: Path, device: str = "auto") -> Site:
        """Open the site whose kit is in `kit_folder`; `device` is "auto", "cpu" or "cuda".

        Raises
        ------
        KitError
            There is no site's kit there.
        DataError
            The ledger or the audit log can't be used, or they do not fit each other.
        """
        return cls(read_kit(kit_folder, "site"), pick_device(device))

    def answer(self, request: Request) -> Answer:
        """Do what `request` asks, or say why not.

        Guarantees: never raises for what a request, the policy or the data may hold. A reason that leaves the site
        names no file, patient or count; the details are in the site's own log.
        """
        with self._lock:
            return self._decided(request, time.monotonic())

    def _decided(self, request: Request, started: float) -> Answer:
        try:
            return self._with_machine(self._answer(request), started)
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
        """Return the job's network and cases, built on the first call and kept while job and data are the same.

        Raises RefusedError (one class only), DataError (no such collection, unreadable) or JobError.
        """
        catalog = Catalog(self.kit_folder / CATALOG_FILE)
        digest = catalog.digest(job.data.collection)
        if self._bench is None or (self._bench.job, self._bench.data_digest) != (job, digest):
            self._bench = None  # let go of the last job's memory before taking more
            self._bench = set_up(catalog, job, self.kit_folder / CACHE_FOLDER, self.device)
        return self._bench

    def cost(self, request: Request) -> float | None:
        """Return the epsilon that a request's run has cost so far any patient here; None if it has spent nothing.

        The splits have no patient in common, so it is what was spent on the split where that is most.
        """
        entries, privacy = self.ledger.entries(), request.job.privacy
        mine = [one for one in entries if (one.collection, one.run) == (request.job.data.collection, request.run)]
        by_split = [[one.spending for one in mine if one.split == split] for split in {one.split for one in mine}]
        return max((epsilon_of(spent, privacy.delta) for spent in by_split), default=None)

    def _answer(self, request: Request) -> Answer:
        job, policy = request.job, read_policy(self.kit_folder)
        if self.name not in job.sites:
            raise RefusedError("the job does not name this site")
        check_job(policy, job)
        require_approval(self.log, policy, job)
        if request.kind != "consent":
            check_hours(policy, datetime.datetime.now().astimezone().time())
        if counts_only(job) or request.kind == "statistics":
            return Survey(self.name, request, policy, self.kit_folder, self.ledger).answer()
        bench = self.bench(job)
        check_cohort(policy, Cohort(bench.training.cases.patient_count, 0))
        account = Account(self.ledger, job, request.run, policy, bench.sharing)
        visit = Visit(
            self.name,
            request,
            policy,
            bench,
            account,
            self.device,
            counts=partial(noised_count, self.kit_folder),
            memory=KitMemory(self.kit_folder, request.run),
            check=partial(check_run, account, self.name),
        )
        if request.kind == "consent":
            return visit.consent()
        key = request_key(request)
        if (kept := recall(self.kit_folder, key, request)) is not None:
            log.info("run %s round %d: asked again, the same answer goes out again", request.run, request.number)
            return kept
        answer = visit.train() if request.kind == "train" else visit.evaluate()
        remember(self.kit_folder, key, request, answer)
        return answer

    def _with_machine(self, answer: Answer, started: float) -> Answer:
        """Tell of the machine what the policy lets be told."""
        operation = answer.numbers.operation
        if not read_policy(self.kit_folder).machine:
            return replace(answer, numbers=replace(answer.numbers, operation=replace(operation, seconds=None)))
        numbers = replace(answer.numbers, operation=replace(operation, held=time.monotonic() - started))
        return replace(answer, numbers=numbers, version=metadata.version("wardround"), device=self._device_name)

    @cached_property
    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()

    def _no(self, request: Request, status: Status, reason: str) -> Answer:
        return Answer(self.name, request.job.digest, request.number, status, reason)
