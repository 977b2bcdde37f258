"""The table of tasks. To add one: one file, one line here, and its parameters; a third party's comes by entry point."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from common.errors import JobError
from common.extensions import brought, load
from common.job import Job
from common.tasks.classification import Classification
from common.tasks.detection import Detection
from common.tasks.reconstruction import Reconstruction
from common.tasks.segmentation import Segmentation
from common.tasks.task import Task

ENTRY_POINTS = "wardround.tasks"

TASKS: dict[str, Callable[[Job], Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "reconstruction": Reconstruction,
}


def build_task(job: Job) -> Task:
    """Return the task that the job names. Raises JobError, with the nearest right name, when there is none."""
    kind = job.task.kind
    if kind in TASKS:
        return TASKS[kind](job)
    outside = brought(ENTRY_POINTS)
    if kind in outside:
        task: Task = load(outside[kind])(job)
        return task
    known = sorted({*TASKS, *outside})
    near = difflib.get_close_matches(kind, known, n=1, cutoff=0.4)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
    raise JobError(f'"task.kind": unknown task "{kind}": {hint}')
