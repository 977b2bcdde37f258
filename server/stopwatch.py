"""How long something took that is done in pieces."""

from __future__ import annotations

import time
from types import TracebackType


class Stopwatch:
    """Adds up the `seconds` of all its `with` blocks, those included that end with an error."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> Stopwatch:
        self._since = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.seconds += time.monotonic() - self._since
