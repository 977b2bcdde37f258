"""One run from the registry, executed on a grid to its end, whatever the end is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from flwr.serverapp import Grid

from common.errors import RunError, WardroundError
from server.exchange import Stopped
from server.records import RunStatus
from server.registry import Registry
from server.rounds import RoundLoop

LOOK_SECONDS = 1.0
log = logging.getLogger("wardround.coordinator")


def execute(
    registry: Registry,
    name: str,
    grid: Grid,
    node_ids: Callable[[], Mapping[str, int]],
    *,
    shutting_down: Callable[[], bool] = lambda: False,
) -> RunStatus:
    """Execute the claimed run `name`, from its last commit to its end; return how it ended.

    Guarantees: the run never stays "running". It is "completed" or "incomplete"; "failed" with the reason; "stopped"
    when someone asked for that; "interrupted", to be resumed, when `shutting_down()` became true.
    """
    wanted = _StopWatch(registry, name, shutting_down)
    try:
        job, start = registry.start_of(name)
        log.info("run %s: round %d of %d is next", name, start.number + 1, job.aggregation.rounds)
        RoundLoop(job, name, grid, node_ids, registry.recorder(name), start, stopped=wanted, witnesses=registry).run()
        status = registry.finish(name, "completed")
    except Stopped:
        ending: RunStatus = "interrupted" if shutting_down() else "stopped"
        status = registry.finish(name, ending, f"to go on: wardround run --resume {name}")
    except WardroundError as error:
        log.error("run %s failed: %s", name, error)
        status = registry.finish(name, "failed", str(error))
    except Exception as error:
        log.exception("run %s failed", name)
        status = registry.finish(name, "failed", f"{type(error).__name__}: {error}: see the coordinator's log")
    log.info("run %s: %s", name, status)
    return status


def raise_unless_completed(name: str, status: RunStatus, reason: str) -> None:
    """Raise RunError for every ending but "completed": a run that lost its largest site is no success."""
    if status != "completed":
        raise RunError(f"run {name} is {status}: {reason}")


class _StopWatch:
    """Whether to stop: at once when the coordinator shuts down; within a second when the registry says so."""

    def __init__(self, registry: Registry, name: str, shutting_down: Callable[[], bool]) -> None:
        self._registry, self._name, self._shutting_down = registry, name, shutting_down
        self._looked = 0.0

    def __call__(self) -> bool:
        if self._shutting_down():
            return True
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        return self._registry.stop_wanted(self._name)
