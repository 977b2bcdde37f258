"""What stays resident at a site for a job between rounds: the network on its device and the decoded cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from client.catalog import Catalog
from client.dataset import open_cases
from client.evaluation import Split
from client.scaling import scaled
from common.errors import RefusedError
from common.job import Job
from common.networks import build_network, local_names
from common.tasks.parameters import kind_of
from common.tasks.registry import build_task
from common.tasks.task import Task


@dataclass(frozen=True)
class Bench:
    """A job's network, task and decoded cases, for the data whose digest is `data_digest`.

    `splits` holds "train", and of "validation" and "test" those that have a case. `sharing` names the other collections
    that have patients of this one; `cache` is the folder of what may be kept between processes; `local` names the
    tensors that stay at the site.
    """

    job: Job
    data_digest: str
    network: torch.nn.Module
    task: Task
    splits: dict[str, Split] = field(repr=False)
    sharing: tuple[str, ...] = ()
    cache: Path | None = None
    local: frozenset[str] = frozenset()

    @cached_property
    def trained(self) -> frozenset[str]:
        """The names of the tensors that training moves."""
        return frozenset(name for name, weight in self.network.named_parameters() if weight.requires_grad)

    @property
    def training(self) -> Split:
        """The training split."""
        return self.splits["train"]


def set_up(catalog: Catalog, job: Job, cache: Path, device: torch.device) -> Bench:
    """Build the job's network and open its cases; what was decoded before is mapped from `cache`.

    Raises RefusedError (one class only), DataError (no such collection, unreadable) or JobError.
    """
    collection = job.data.collection
    digest, task = catalog.digest(collection), build_task(job)
    told_apart = kind_of(job.task.kind).truth == "label"
    names = ("train", *(name for name in ("validation", "test") if catalog.cases(collection, name)))
    opened = {name: open_cases(catalog, job.data, name, cache, task=job.task) for name in names}
    splits = {name: Split(cases, task.targets(cases)) for name, cases in scaled(opened, job.data).items()}
    # With privacy on, to refuse would tell of single patients; and DP-SGD does no harm with one class.
    if told_apart and not job.private and len(set(splits["train"].cases.labels)) < 2:
        raise RefusedError("the training split has one class only")
    network = build_network(job).to(device)
    return Bench(job, digest, network, task, splits, catalog.sharing(collection), cache, local_names(job))
