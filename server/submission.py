"""Asking for a run: everything that can be wrong with a job is said before anything is written or sent."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from certs.roster import AdmittedSite
from common.errors import JobError
from common.job import Job
from common.statistics import counts_only
from server.criterion import build_criterion
from server.modelfiles import read_checkpoint
from server.registry import Registry
from server.strategies.registry import build_strategy


def submit_job(
    registry: Registry, job: Job, *, from_model: Path | None = None, admitted: Mapping[str, AdmittedSite] | None = None
) -> str:
    """Check `job`, make its first model (from its seed, or the checkpoint `from_model`), queue it; return its name.

    Raises
    ------
    JobError
        An unknown strategy, criterion, network or task; or a site that is not on the roster `admitted`.
    UpdateError
        The checkpoint is of another architecture, or no safetensors file.
    """
    build_strategy(job)
    build_criterion(job.aggregation.criterion)
    if admitted is not None:
        check_sites(job, admitted)
    if counts_only(job):
        if from_model is not None:
            raise JobError(f"{from_model}: a job for statistics has no model")
        return registry.submit(job, {})
    from common.networks import initial_model  # torch: only whoever submits needs it, not who runs the rounds

    model = initial_model(job)
    if from_model is not None:
        model = read_checkpoint(from_model, model)
    return registry.submit(job, model)


def check_sites(job: Job, admitted: Mapping[str, AdmittedSite]) -> None:
    """Check that every site of the job may connect. Raises JobError with the nearest right name, or the remedy."""
    for site in job.sites:
        if site in admitted and admitted[site].expired:
            raise JobError(f'"sites": the certificate of "{site}" has ended: `wardround kits renew {site}`')
        if site not in admitted:
            near = difflib.get_close_matches(site, admitted, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else "see `wardround kits list`"
            raise JobError(f'"sites": no site "{site}" is admitted to this federation: {hint}')
