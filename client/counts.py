"""How many units a site says it has: the one number about its patients on which everything else may depend.

The sampling rate, the steps of a round and an update's weight all follow from the number of training units, so with
privacy on they follow from the *released* count: exact where the hospital declares it public, else with noise that the
ledger was charged for. A count is noised once for the data as it is: asked again, the same number is given again, and
nothing is spent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from client.privacy.noise import SecureNoise
from common.errors import DataError
from common.files import write_atomically
from common.release import Basis

FILE_NAME = "counts.json"
NOISE = 5.0
"""Standard deviation of the noise, in units: one unit more or less moves the count by 1."""


@dataclass(frozen=True)
class Count:
    """A number of units that may leave, at least 1, and on what basis."""

    units: int
    basis: Basis


def noised_count(kit_folder: Path, key: str, units: int, pay: Callable[[], None]) -> Count:
    """Return the noised count for the data and unit that `key` names; `pay` is called before a number is drawn.

    Raises
    ------
    DataError
        The file of released counts can't be read or written. What `pay` raises goes through; then nothing is drawn.
    """
    path = kit_folder / FILE_NAME
    released = _released(path)
    if key not in released:
        pay()
        noise = float(SecureNoise().like(torch.zeros(1, dtype=torch.float64), NOISE))
        released[key] = max(1, round(units + noise))
        try:
            write_atomically(path, json.dumps(released, indent=1).encode(), mode=0o600)
        except OSError as error:
            raise DataError(f"{path}: the released counts can't be kept: {error.strerror}") from error
    return Count(released[key], "noised")


def _released(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path}: the released counts can't be read: {error.strerror}") from error
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(count, int) and count > 0 for count in found.values()):
        raise DataError(f"{path}: damaged: move it away, and the counts are noised (and paid for) once more")
    return found
