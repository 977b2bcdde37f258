"""Which update of each site was the last that counted: for strategies whose sites keep a part of the sum themselves.

A site that trained, but whose answer was lost, late or refused, has moved what it keeps, and the coordinator has not.
Were both to go on from there, they would disagree for good, and the optimum would be missed by as much. So each request
says which round of each site counted last, and the site goes on from what it kept after that one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.job import Job
from common.update import COUNTED, Tensors
from server.strategies.mean import Note

ROUNDS, LAST = "rounds", "counted"
"""In the memory: how many rounds there were, and which of them counted last for each of the job's sites (0: none)."""


def attendance(job: Job, state: Tensors) -> Tensors:
    """Return what the sites are told."""
    return {COUNTED: state.get(LAST, np.zeros(len(job.sites))).astype(np.int64)}


def attended(job: Job, state: Tensors, notes: Sequence[Note]) -> Tensors:
    """Return the part of the memory after a round in which the updates of `notes` counted."""
    there, number = {note.site for note in notes}, float(state.get(ROUNDS, np.zeros(()))) + 1
    before = state.get(LAST, np.zeros(len(job.sites)))
    last = np.where([site in there for site in job.sites], number, before)
    return {ROUNDS: np.array(number), LAST: last}
