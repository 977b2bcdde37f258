"""What is kept of a file's pixels when it is read: enough to compare it with others without decoding it again.

No picture can be made of it that shows more than 25 x 24 grey squares.
"""

from __future__ import annotations

import base64
import hashlib

import numpy as np
from PIL import Image

from client.intake.image import Pixels, Seen
from client.intake.intensity import with_channels
from common.bins import GREYS

COPY_ROWS, COPY_COLUMNS = 24, 25
"""Size of the small copy: a column more than rows, so that differences along a row are 24 x 24."""
BINS = GREYS
"""Bins of a file's histogram of intensities, of equal width over [0, 1]."""
_STEPS, _LEVELS = 65536, 4096
"""Intensities are compared in so many steps, and counted in so many levels."""
_VALUES = (np.arange(_LEVELS) + 0.5) / _LEVELS
PARTS = 10_000
"""A file's histogram is kept in this many parts: exact to 0.01 per cent."""


class Sight:
    """Looks at a file's images one by one, and says in the end what is kept of them."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._counts = np.zeros(_LEVELS, dtype=np.int64)
        self._copies: list[bytes] = []

    def add(self, image: Pixels) -> None:
        """Look at an image (rows, columns, channels) with values in [0, 1]."""
        levels = (image * np.float32(_STEPS - 1) + np.float32(0.5)).astype("<u2")
        self._digest.update(repr(image.shape).encode())
        self._digest.update(np.ascontiguousarray(levels).data)
        grey = with_channels(image, 1)[..., 0]
        if image.shape[-1] != 1:
            levels = (grey * np.float32(_STEPS - 1) + np.float32(0.5)).astype("<u2")
        self._counts += np.bincount(levels.ravel() // (_STEPS // _LEVELS), minlength=_LEVELS)
        self._copies.append(_copy(grey))

    def seen(self) -> Seen:
        """Return what is kept. The small copy is of the image in the middle."""
        weights = self._counts / self._counts.sum()
        mean = float(weights @ _VALUES)
        shares = np.rint(weights.reshape(BINS, -1).sum(axis=1) * PARTS).astype(int)
        return Seen(
            pixels=self._digest.hexdigest()[:32],
            mean=round(mean, 5),
            deviation=round(float(np.sqrt(weights @ (_VALUES - mean) ** 2)), 5),
            histogram=tuple(int(share) for share in shares),
            copy=base64.b64encode(self._copies[len(self._copies) // 2]).decode(),
        )


def small_copy(seen: Seen) -> Pixels:
    """Return the small copy, (24, 25) float32 in [0, 1]."""
    levels = np.frombuffer(base64.b64decode(seen.copy), dtype=np.uint8)
    return levels.reshape(COPY_ROWS, COPY_COLUMNS).astype(np.float32) / np.float32(255)


def _copy(grey: Pixels) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))  # mode "F"
    small = np.asarray(picture.resize((COPY_COLUMNS, COPY_ROWS), Image.Resampling.BOX))
    return bytes(np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8).data)
