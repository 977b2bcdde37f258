"""The attacks by name, on whatever data, at whatever size: what the command `wardround audit privacy` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from client.dataset import CaseSet
from common.job import Job
from simulations.attacks.faults import FAULTS, Fault
from simulations.attacks.inversion import Inversion, invert_updates
from simulations.attacks.membership import Membership, attack_membership
from simulations.attacks.one_run import Audit, AuditSize, audit_in_one_run
from simulations.attacks.subjects import folder_cases, phantom_cases, site_cases

Attack = Literal["one-run", "membership", "inversion"]
ATTACKS: tuple[Attack, ...] = ("one-run", "membership", "inversion")
PATIENTS, IMAGES_A_PATIENT = 128, 2
"""How many phantoms are attacked, and images of each, where there are no others."""
IMAGES_A_CANARY = 4
IMAGE_CANARIES = 5
"""There is one image canary for so many gradient canaries."""


@dataclass(frozen=True)
class Options:
    """How to attack: the canaries, the shadow models, the rounds of the job to train (None: all), the confidence."""

    canaries: int = 500
    models: int = 8
    rounds: int | None = None
    confidence: float = 0.95
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int | None = None


@dataclass(frozen=True)
class Planted:
    """What an audit made of a fault; of honest training, where `fault` is None."""

    fault: Fault | None
    audit: Audit


def on_subjects(job: Job, kit: Path | None, folder: Path | None, use: Callable[[CaseSet], None]) -> None:
    """Call `use` with the cases of a site, of a folder or, without both, of phantoms. Raises KitError or DataError."""
    if kit is not None:
        use(site_cases(job, kit))
    elif folder is not None:
        with folder_cases(job, folder) as cases:
            use(cases)
    else:
        use(phantom_cases(job, PATIENTS, images_each=IMAGES_A_PATIENT))


def size_of(job: Job, options: Options) -> AuditSize:
    """Return the audit's size for a job: a canary has several images only where the patient is protected."""
    several = min(IMAGES_A_CANARY, job.privacy.max_images_per_patient) if job.privacy.unit == "patient" else 1
    rounds = min(options.rounds or job.aggregation.rounds, job.aggregation.rounds)
    return AuditSize(options.canaries, options.canaries // IMAGE_CANARIES, several, rounds)


def one_run(
    cases: CaseSet, job: Job, options: Options, tell: Callable[[str], None], fault: Fault | None = None
) -> Audit:
    """Audit the job in one run, with a fault planted or none. Raises UsageError as `audit_in_one_run` does."""
    return audit_in_one_run(
        cases,
        job,
        size_of(job, options),
        confidence=options.confidence,
        device=options.device,
        change_parts=fault.plant if fault else None,
        seed=options.seed,
        tell=tell,
    )


def planted(cases: CaseSet, job: Job, options: Options, tell: Callable[[str], None]) -> list[Planted]:
    """Audit the job as it is, then with each fault planted."""
    found = []
    for fault in (None, *FAULTS):
        tell(f"training {'as it is' if fault is None else f'with {fault.name}'}")
        found.append(Planted(fault, one_run(cases, job, options, lambda line: None, fault)))
    return found


def membership(cases: CaseSet, job: Job, options: Options, tell: Callable[[str], None]) -> list[Membership]:
    """Attack membership as the job trains, and, where that is private, without privacy too: does the attack work?"""
    rounds = size_of(job, options).rounds
    found = []
    for job_ in [job, without_privacy(job)] if job.private else [job]:
        tell("shadow models " + ("with the job's privacy" if job_.private else "without privacy"))
        found.append(
            attack_membership(
                cases,
                job_,
                models=options.models,
                rounds=rounds,
                confidence=options.confidence,
                device=options.device,
                seed=options.seed,
                tell=tell,
            )
        )
    return found


def inversion(cases: CaseSet, job: Job) -> Inversion:
    """Invert the update of one step on the first image."""
    return invert_updates(cases, job)


def without_privacy(job: Job) -> Job:
    """Return the same job without privacy."""
    privacy = job.privacy.model_copy(update={"mechanism": "none"})
    return job.model_copy(update={"privacy": privacy})
