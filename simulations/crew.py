"""The hospitals of a population at work on one job: made when they are first asked, with what they remember."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from client.memory import AFTER_ALL, OpenMemory
from common.job import Job
from common.privacy import Spending
from common.update import Tensors
from simulations.faults import Fault, interference, strength_of, with_wrong_labels
from simulations.members import Member, OpenAccount, Population, Workshop

RESIDENT = 512
"""Most hospitals whose cases are held between rounds."""


@dataclass
class Members:
    """The hospitals of a population at work on one job, made when they are first asked."""

    job: Job
    population: Population
    device: torch.device
    faults: Sequence[Fault] = ()
    joins: Mapping[str, int] = field(default_factory=dict)
    accounts: dict[str, OpenAccount] = field(default_factory=dict)
    memories: dict[str, OpenMemory] = field(default_factory=dict)
    _workshop: Workshop | None = None
    _resident: OrderedDict[str, Member] = field(default_factory=OrderedDict)

    @property
    def node_ids(self) -> dict[str, int]:
        """Each hospital's node id: from 1, in the job's order."""
        return {name: number for number, name in enumerate(self.job.sites, start=1)}

    @property
    def pace(self) -> dict[int, float]:
        """How long a round takes at each node, in virtual time."""
        return {number: strength_of(self.faults, "straggler", name) or 1.0 for name, number in self.node_ids.items()}

    def member(self, name: str) -> Member:
        """Return a hospital, with its account and its memory as they stand."""
        if name in self._resident:
            self._resident.move_to_end(name)
            return self._resident[name]
        if self._workshop is None:
            self._workshop = Workshop.of(self.job, self.device)
        hospital = self.population[name]
        if wrong := strength_of(self.faults, "label-flip", name):
            hospital = with_wrong_labels(hospital, wrong, self.job.task.labels, self.job.seed)
        member = Member(
            hospital,
            self._workshop,
            self.accounts.setdefault(name, OpenAccount(self.job)),
            self.memories.setdefault(name, OpenMemory()),
            interference(self.job, name, self.faults, self.joins.get(name, 1)),
        )
        self._resident[name] = member
        if len(self._resident) > RESIDENT:
            self._resident.popitem(last=False)
        return member

    def memory(self, name: str) -> Tensors:
        """Return what a strategy left at a hospital."""
        found = self.memories.get(name)
        return found.read(AFTER_ALL) if found is not None else {}

    def remembered(self) -> tuple[Tensors, Any]:
        """Return what the hospitals remember, for a checkpoint: tensors, and what is written as JSON."""
        tensors = {
            f"{name}/{number}/{key}": tensor
            for name, memory in self.memories.items()
            for number, kept in memory.kept.items()
            for key, tensor in kept.items()
        }
        spent = {
            name: {
                split: [[purpose, one.noise_multiplier, one.sample_rate, one.steps] for purpose, one in entries]
                for split, entries in account.spendings.items()
            }
            for name, account in self.accounts.items()
            if account.spendings
        }
        return tensors, spent

    def remember(self, tensors: Tensors, spent: Any) -> None:
        """Take back what `remembered` gave."""
        for key, tensor in tensors.items():
            name, number, rest = key.split("/", 2)
            memory = self.memories.setdefault(name, OpenMemory())
            memory.kept.setdefault(int(number), {})[rest] = tensor
        for name, splits in spent.items():
            entries = {
                split: [(purpose, Spending(noise, rate, steps)) for purpose, noise, rate, steps in rows]
                for split, rows in splits.items()
            }
            self.accounts[name] = OpenAccount(self.job, entries)
