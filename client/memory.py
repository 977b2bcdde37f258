"""What a strategy keeps at a site from one round of a run to the next, and what never leaves: SCAFFOLD's control
variate, FedDyn's gradient, layers that are the site's own, Ditto's personal model.

What was kept after an earlier round is read, not what the round itself left behind: a round that is asked for again,
after a crash between keeping and answering, starts from where it started first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import DataError
from common.files import write_atomically
from common.update import Tensors

FOLDER = "memory"
KEPT = 2
"""How many rounds' memories stay: the last, and the one before it, for a round that comes again."""


class Memory(Protocol):
    """A run's memory at one site."""

    def read(self, before: int) -> Tensors:
        """Return what was kept after the last round under `before`; nothing if there was none."""

    def write(self, number: int, tensors: Tensors) -> None:
        """Keep `tensors` as what stands after round `number`."""


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

    def write(self, number: int, tensors: Tensors) -> None:
        """Keep `tensors`. Raises DataError when the disk can't take them."""
        if not tensors:
            return
        path = self._path(number)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, save(tensors), mode=0o600)
            for old in sorted(self._numbers())[:-KEPT]:
                self._path(old).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{path}: what the run keeps here can't be written ({error.strerror})") from error

    def _numbers(self) -> list[int]:
        return [int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.safetensors")]

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}.safetensors"


class OpenMemory:
    """Memory in this process, for simulated sites."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensors] = {}

    def read(self, before: int) -> Tensors:
        """Return what was kept after the last round under `before`."""
        return self._kept.get(max((number for number in self._kept if number < before), default=0), {})

    def write(self, number: int, tensors: Tensors) -> None:
        """Keep `tensors`."""
        if tensors:
            last = max((old for old in self._kept if old < number), default=None)
            self._kept = {old: self._kept[old] for old in (last,) if old is not None} | {number: tensors}
