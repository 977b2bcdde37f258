"""The table of strategies. To add one: one file, one line here; a third party's comes by entry point."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import metadata
from typing import cast

from common.errors import JobError
from common.job import AggregationSection
from server.strategies.fedavg import FedAvg
from server.strategies.fedprox import FedProx
from server.strategies.strategy import Strategy

ENTRY_POINTS = "wardround.strategies"

STRATEGIES: dict[str, Callable[[AggregationSection], Strategy]] = {
    FedAvg.name: FedAvg,
    FedProx.name: FedProx,
}


def build_strategy(section: AggregationSection) -> Strategy:
    """Return the strategy that the job names.

    Raises
    ------
    JobError
        There is none of that name (the message has the nearest right one), or a parameter does not belong to it.
    """
    if section.strategy in STRATEGIES:
        return STRATEGIES[section.strategy](section)
    outside = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if section.strategy in outside:
        build = cast(Callable[[AggregationSection], Strategy], outside[section.strategy].load())
        return build(section)
    known = [*STRATEGIES, *outside]
    near = difflib.get_close_matches(section.strategy, known, n=1, cutoff=0.4)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(sorted(known))}"
    raise JobError(f'"aggregation.strategy": unknown strategy "{section.strategy}": {hint}')
