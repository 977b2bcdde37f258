"""From stored values to intensities in [0, 1], the same way for every format.

1. A VOI window that the file brings is applied (PS3.3 C.11.2): what the radiologist sees is what the network sees.
2. Else unsigned data of at most 8 bits keeps its full range.
3. Else the 0.5 and 99.5 percentiles of that image (or of the whole volume) become 0 and 1. Scanner units mean nothing
   across scanners; the percentiles keep one hot pixel from darkening the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from client.intake.image import Pixels

PERCENTILES = (0.5, 99.5)
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class Window:
    """A VOI window: centre and width in modality units (HU for CT), and the function's name in PS3.3 C.11.2.1.2."""

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether the standard allows it: LINEAR needs a width of at least 1, the others more than 0."""
        smallest_ok = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        known = self.function in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
        return known and smallest_ok and bool(np.isfinite([self.center, self.width]).all())


def windowed(values: npt.NDArray[Any], window: Window) -> Pixels:
    """Apply a VOI window (PS3.3 C.11.2.1.2 and C.11.2.1.3). `values` are in modality units; the result in [0, 1]."""
    x = values.astype(np.float64)
    if window.function == "SIGMOID":
        exponent = np.clip(-4 * (x - window.center) / window.width, -500, 500)
        return (1 / (1 + np.exp(exponent))).astype(np.float32)
    center, width = window.center, window.width
    if window.function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # LINEAR with a width of 1 is a threshold
        return (x > center).astype(np.float32)
    return np.clip((x - center) / width + 0.5, 0, 1).astype(np.float32)


def stretched(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None) -> Pixels:
    """Map the 0.5 and 99.5 percentiles of the finite (and `valid`) values to 0 and 1. A constant image becomes 0."""
    x = values.astype(np.float32)
    kept = x[np.isfinite(x) if valid is None else np.isfinite(x) & valid]
    if kept.size == 0:
        return np.zeros_like(x)
    low, high = (float(bound) for bound in np.percentile(kept, PERCENTILES))
    if high <= low:  # nearly all values are one value: keep what little contrast there is
        low, high = float(kept.min()), float(kept.max())
    if high <= low:
        return np.zeros_like(x)
    finite = np.nan_to_num(x, nan=low, posinf=high, neginf=low)
    return np.clip((finite.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def full_range(values: npt.NDArray[Any], largest: int) -> Pixels:
    """Map 0 and `largest` to 0 and 1."""
    return np.clip(values.astype(np.float64) / largest, 0, 1).astype(np.float32)


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return (..., channels): colour becomes grey by BT.601 luma, a complex image by its magnitude.

    Grey becomes colour by repeating it, and complex with a phase of 0.
    """
    if pixels.shape[-1] == channels:
        return pixels
    if pixels.shape[-1] == 2:
        magnitude = np.minimum(np.hypot(pixels[..., :1], pixels[..., 1:]), np.float32(1))
        return np.repeat(magnitude, channels, axis=-1)
    if channels == 2:
        real = with_channels(pixels, 1)
        return np.concatenate([real, np.zeros_like(real)], axis=-1)
    if channels == 1:
        return (pixels @ np.asarray(LUMA, dtype=np.float32))[..., np.newaxis]
    return np.repeat(pixels, channels, axis=-1)
