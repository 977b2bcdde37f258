"""What goes wrong in a simulated federation: hospitals that drop out, lag, have wrong labels, or lie.

Chance comes from the job's seed, the hospital's name and the round: the same faults hit every strategy compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from client.dataset import CaseSet
from common.job import Job
from common.update import Answer, Request, Tensors
from simulations.members import Hospital

Kind = Literal["drop-out", "straggler", "label-flip", "poison"]


@dataclass(frozen=True)
class Fault:
    """A fault of some hospitals.

    `strength`: "drop-out": the chance to be away in a round; "straggler": how many times longer a round takes;
    "label-flip": the share of training cases whose label is another; "poison": the update is sent reversed, so many
    times as long.
    """

    kind: Kind
    sites: tuple[str, ...]
    strength: float = 1.0


def strength_of(faults: Sequence[Fault], kind: Kind, site: str) -> float:
    """Return how strongly `site` has a fault of this kind; 0 if it has not."""
    return max((fault.strength for fault in faults if fault.kind == kind and site in fault.sites), default=0.0)


def with_wrong_labels(hospital: Hospital, share: float, labels: Sequence[str], seed: int) -> Hospital:
    """Return the hospital with `share` of its training cases under the label that stands opposite in the job's list."""
    cases = hospital.splits["train"]
    count = round(share * len(cases.labels))
    wrong = set(_random(seed, hospital.name, 0).permutation(len(cases.labels))[:count].tolist())
    opposite = dict(zip(labels, reversed(labels), strict=True))
    flipped = tuple(opposite.get(label, label) if row in wrong else label for row, label in enumerate(cases.labels))
    return Hospital(hospital.name, {**hospital.splits, "train": CaseSet(cases.images, flipped, cases.patients)})


def interference(
    job: Job, site: str, faults: Sequence[Fault], joins_at: int
) -> Callable[[Request, Callable[[], Answer]], Answer] | None:
    """Return what stands between requests and this hospital's answers; None where nothing does.

    It is away before round `joins_at`, and by chance when it drops out; what it sends may be poisoned.
    """
    away, poison = strength_of(faults, "drop-out", site), strength_of(faults, "poison", site)
    if not away and not poison and joins_at <= 1:
        return None

    def answer(request: Request, honestly: Callable[[], Answer]) -> Answer:
        if request.kind != "train":
            return honestly()
        absence = ""
        if request.number < joins_at:
            absence = f"joins in round {joins_at}"
        elif _random(job.seed, site, request.number).random() < away:
            absence = "dropped out of the round"
        if absence:
            return Answer(site, request.job.digest, request.number, "failed", absence)
        given = honestly()
        if not poison or given.tensors is None:
            return given
        return replace(given, tensors=_reversed(given.tensors, request.model, poison))

    return answer


def _reversed(tensors: Tensors, model: Tensors, times: float) -> Tensors:
    return {
        name: (model[name] - times * (tensor - model[name])).astype(tensor.dtype)
        if tensor.dtype.kind == "f"
        else tensor
        for name, tensor in tensors.items()
    }


def _random(seed: int, site: str, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(site.encode()), number])
