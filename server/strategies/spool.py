"""A round's updates on disk, for strategies that must see all of them at once: memory does not grow with the sites.

Updates are rows of one temporary file, parameters its columns, read a block of columns at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from common.errors import UpdateError
from common.update import Tensors, check_tensors
from server.strategies.strategy import Advance, Update

BLOCK_VALUES = 1 << 21
"""Most values of a block, over all sites: 8 MB as float32."""


class Spool:
    """The updates of a round, as float32 rows in a file that is gone when this is."""

    def __init__(self, model: Tensors, make: Callable[[Spool], Tensors]) -> None:
        """Start from nothing; `make` turns all updates into the next model's float tensors."""
        self.model, self._make = model, make
        self._floats = [name for name, tensor in model.items() if tensor.dtype.kind == "f"]
        self.columns = sum(model[name].size for name in self._floats)
        self._sites: list[str] = []
        # Without a buffer, so that a full disk is told of here and leaves nothing to be written later.
        self._file = tempfile.TemporaryFile(prefix="wardround-updates-", buffering=0)  # noqa: SIM115 - lives as long

    @property
    def updates(self) -> int:
        """How many there are."""
        return len(self._sites)

    def add(self, update: Update) -> None:
        """Write an update down. Raises UpdateError when it does not fit the model, or the disk is full."""
        check_tensors(update.tensors, self.model, update.site)
        self._write(update.site, [update.tensors[name] for name in self._floats])

    def merge(self, other: Spool) -> None:
        """Take another spool's rows."""
        for row, site in enumerate(other._sites):
            self._write(site, [other._row(row)])

    def finish(self) -> Advance:
        """Return the next model; integer tensors stay as they are. Raises UpdateError for too few updates."""
        if not self._sites:
            raise UpdateError("there is no update to aggregate")
        return Advance(self.model | self._make(self))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (updates, columns) float32 blocks from the first column to the last; rows by site name."""
        if self.columns == 0:
            return
        rows = np.memmap(self._file, dtype=np.float32, mode="r", shape=(self.updates, self.columns))
        order = np.argsort(self._sites, kind="stable")
        width = max(1, BLOCK_VALUES // self.updates)
        for start in range(0, self.columns, width):
            yield rows[order, start : start + width]

    def assembled(self, values: np.ndarray) -> Tensors:
        """Return values, (columns,), as the model's float tensors."""
        found: Tensors = {}
        start = 0
        for name in self._floats:
            like = self.model[name]
            found[name] = values[start : start + like.size].astype(like.dtype).reshape(like.shape)
            start += like.size
        return found

    def _write(self, site: str, parts: list[np.ndarray]) -> None:
        whole = self.updates * self.columns * 4
        try:
            self._file.seek(whole)
            for part in parts:
                left = memoryview(np.asarray(part, dtype=np.float32).tobytes())
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(whole)
            raise UpdateError(f"{site}: the update can't be kept for aggregation: {error.strerror}") from error
        self._sites.append(site)

    def _row(self, row: int) -> np.ndarray:
        self._file.seek(row * self.columns * 4)
        return np.frombuffer(self._file.read(self.columns * 4), dtype=np.float32)
