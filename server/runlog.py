"""The coordinator's log in the registry, beside standard error: so that pages can show it, by run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import DataError
from server.records import LogLine
from server.registry import Registry

LOGGER = "wardround"


@contextmanager
def logged(registry: Registry, run: str = "") -> Iterator[None]:
    """Write what is logged while the block runs into the registry, as of `run` ("" of none)."""
    handler = _ToRegistry(registry, run)
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _ToRegistry(logging.Handler):
    def __init__(self, registry: Registry, run: str) -> None:
        super().__init__(logging.INFO)
        self._registry, self._run = registry, run

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line. A log that can't be kept must not stop the run: standard error has it all the same."""
        try:
            self._registry.add_log([LogLine(0, self._run, record.created, record.levelname, record.getMessage())])
        except DataError:
            self.handleError(record)
