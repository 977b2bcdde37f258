"""What a strategy keeps at a site from one round of a run to the next, and what never leaves: SCAFFOLD's control
variate, FedDyn's gradient, layers that are the site's own, Ditto's personal model.

What was kept after an earlier round is read, not what the round itself left behind: a round that is asked for again,
after a crash between keeping and answering, starts from where it started first. And a round whose answer did not count
is as if it had not been, where the strategy says so (`common.update.round_before`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import DataError
from common.files import write_atomically
from common.update import Tensors

FOLDER = "memory"
AFTER_ALL = 10**9
"""A round after all rounds: `read(AFTER_ALL)` is what the site keeps now."""


class Memory(Protocol):
    """A run's memory at one site."""

    def read(self, before: int) -> Tensors:
        """Return what was kept after the last round under `before`; nothing if there was none."""

    def write(self, number: int, tensors: Tensors, before: int | None = None) -> None:
        """Keep `tensors` as what stands after round `number`, and what `read(before)` gave, from which it came.

        `before`: by default `number` itself. All else is forgotten.
        """


class KitMemory:
    """Memory as files in the kit, readable by its owner only: they follow from patients and never leave."""

    def __init__(self, kit_folder: Path, run: str) -> None:
        # The run's name comes from outside: only its digest becomes part of a path.
        self._folder = kit_folder / FOLDER / hashlib.sha256(run.encode()).hexdigest()[:32]

    def read(self, before: int) -> Tensors:
        """Return what was kept after the last round under `before`.

        Raises
        ------
        DataError
            The file is damaged or can't be read.
        """
        numbers = [number for number in self._numbers() if number < before]
        if not numbers:
            return {}
        path = self._path(max(numbers))
        try:
            with safe_open(path, framework="numpy") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(
                f"{path}: what the run kept here can't be read ({error}): restore it, or remove it"
            ) from error

    def write(self, number: int, tensors: Tensors, before: int | None = None) -> None:
        """Keep `tensors`, and what `read(before)` gave. Raises DataError when the disk can't take them."""
        if not tensors:
            return
        path = self._path(number)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, save(tensors), mode=0o600)
            for old in self._numbers() - _needed(self._numbers(), number, before):
                self._path(old).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{path}: what the run keeps here can't be written ({error.strerror})") from error

    def _numbers(self) -> set[int]:
        return {int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.safetensors")}

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}.safetensors"


class OpenMemory:
    """Memory in this process, for simulated sites."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensors] = {}
        """What was kept, by the round after which it was."""

    def read(self, before: int) -> Tensors:
        """Return what was kept after the last round under `before`."""
        return self.kept.get(max((number for number in self.kept if number < before), default=0), {})

    def write(self, number: int, tensors: Tensors, before: int | None = None) -> None:
        """Keep `tensors`, and what `read(before)` gave."""
        if tensors:
            needed = _needed(self.kept, number, before)
            self.kept = {old: kept for old, kept in self.kept.items() if old in needed} | {number: tensors}


def _needed(numbers: Collection[int], number: int, before: int | None) -> set[int]:
    """The rounds whose memory is still needed once `number` is kept, which came from the last one under `before`."""
    return {number, max((old for old in numbers if old < (before or number)), default=number)}
