"""What a writer of results is: it takes what a network says of a source and leaves files and rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from client.results.about import About
from client.results.prediction import Answer
from client.results.source import Source
from common.tasks.task import Task


@dataclass(frozen=True)
class Written:
    """Files, and rows for the table of all results."""

    files: tuple[Path, ...]
    rows: tuple[dict[str, str], ...] = ()


Writer = Callable[[Source, Iterable[Answer], Task, About, Path], Written]
"""Writes the answers about one source; the path is the result's, still without an ending.

Raises FileRefusedError when nothing can be written about the source.
"""
