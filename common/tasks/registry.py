"""The table of tasks. To add one: one file, one line here; a third party's comes by entry point."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import metadata

from common.errors import JobError
from common.job import TaskSection
from common.tasks.classification import Classification
from common.tasks.task import Task

ENTRY_POINTS = "wardround.tasks"

TASKS: dict[str, Callable[[TaskSection], Task]] = {
    "classification": Classification,
}


def build_task(section: TaskSection) -> Task:
    """Return the task that the job names. Raises JobError, with the nearest right name, when there is none."""
    if section.kind in TASKS:
        return TASKS[section.kind](section)
    outside = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if section.kind in outside:
        task: Task = outside[section.kind].load()(section)
        return task
    known = sorted({*TASKS, *outside})
    near = difflib.get_close_matches(section.kind, known, n=1, cutoff=0.4)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
    raise JobError(f'"task.kind": unknown task "{section.kind}": {hint}')
