"""Asking the sites before a run begins: may this job run with you?

A site says yes (with its count of training cases), no, or "waiting": a person there must approve first. The run begins
when nobody waits any more. A site that does not answer, because it is away or busy reading its images, holds nobody up:
it is asked to train in each round all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from server.exchange import Stopped
from server.records import SiteRound

ANSWER_SECONDS = 30.0
"""How long an answer is awaited: one that comes from a person is "waiting" at once, and asked for again."""
SHORTEST_PAUSE, LONGEST_PAUSE, GROWTH, TICK = 2.0, 300.0, 1.25, 0.2
"""Seconds between two questions: each answer is a line in the site's log, and a person may take a week."""
Ask = Callable[[tuple[str, ...], Mapping[str, SiteRound]], Mapping[str, SiteRound]]
"""Asks these sites, knowing what the others said; returns what each of them says now."""


def gather(sites: tuple[str, ...], ask: Ask, patience: float, stopped: Callable[[], bool]) -> dict[str, SiteRound]:
    """Ask `sites`, and those that wait again and again, until nobody does or `patience` seconds have passed.

    Who still waits then counts as refused. Raises Stopped when the run was asked to stop meanwhile.
    """
    started, length = time.monotonic(), SHORTEST_PAUSE
    said = dict(ask(sites, {}))
    while waiting := tuple(site for site in sites if said[site].status == "waiting"):
        if time.monotonic() - started > patience:
            return said | {site: _given_up(said[site], patience) for site in waiting}
        pause(min(length, max(TICK, patience - (time.monotonic() - started))), stopped)
        length = min(LONGEST_PAUSE, GROWTH * length)
        said |= ask(waiting, said)
    return said


def pause(seconds: float, stopped: Callable[[], bool]) -> None:
    """Sleep, but not on when the run is asked to stop. Raises Stopped."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stopped():
            raise Stopped
        time.sleep(min(TICK, left))


def _given_up(site: SiteRound, patience: float) -> SiteRound:
    return replace(site, status="refused", reason=f"no decision within {patience:.0f} s: {site.reason}")
