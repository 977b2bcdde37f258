"""What other packages bring: a network, a task or a strategy, by an entry point of their own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from common.errors import JobError


def brought(group: str) -> Mapping[str, metadata.EntryPoint]:
    """Return the entry points of a group that packages installed here have, by name."""
    return {point.name: point for point in metadata.entry_points(group=group)}


def load(point: metadata.EntryPoint) -> Any:
    """Return what an entry point names. Raises JobError, naming whose it is, when it can't be had."""
    try:
        return point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        owner = point.dist.name if point.dist else "a package installed here"
        raise JobError(f'"{point.name}" ({point.group}) of {owner} can\'t be loaded: {error}') from error
