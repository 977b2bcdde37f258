"""Feature shift: each hospital sees through a scanner of its own. Images stay float32 in [0, 1]."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from client.dataset import CaseSet
from simulations.scenario import ScannersSection


@dataclass(frozen=True)
class Look:
    """How one scanner shows an image x: ((x ** gamma - 1/2) gain + 1/2 + offset), blurred, noised, maybe inverted."""

    gain: float = 1.0
    offset: float = 0.0
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    inverted: bool = False


def looks(section: ScannersSection, sites: tuple[str, ...], seed: int) -> dict[str, Look]:
    """Draw each hospital's scanner. The same section, hospitals and seed: the same scanners."""
    chosen = section.seed if section.seed is not None else seed
    order = np.random.default_rng([chosen, 11]).permutation(len(sites))
    turned = {sites[place] for place in order[: round(section.inverted * len(sites))]}
    return {site: _look(section, site, chosen, site in turned) for site in sites}


def _look(section: ScannersSection, site: str, seed: int, inverted: bool) -> Look:
    random = np.random.default_rng([seed, 13, zlib.crc32(site.encode())])
    return Look(
        gain=1 + section.gain * random.uniform(-1, 1),
        offset=section.offset * random.uniform(-1, 1),
        gamma=float(np.exp(section.gamma * random.uniform(-1, 1))),
        blur=section.blur * random.uniform(),
        noise=section.noise * random.uniform(),
        inverted=inverted,
    )


def seen_through(look: Look, cases: CaseSet, seed: tuple[int, ...]) -> CaseSet:
    """Return the cases as that scanner shows them. `seed` is that of the noise."""
    images = np.asarray(cases.images, np.float32)
    if look.gamma != 1:
        images = images ** np.float32(look.gamma)
    if (look.gain, look.offset) != (1, 0):
        images = (images - 0.5) * np.float32(look.gain) + np.float32(0.5 + look.offset)
    if look.blur:
        images = gaussian_filter(images, (0, 0, *[look.blur] * (images.ndim - 2)))
    if look.noise:
        random = np.random.default_rng([17, *seed])
        images = images + np.float32(look.noise) * random.standard_normal(images.shape, dtype=np.float32)
    images = np.clip(images, 0, 1)
    shown = 1 - images if look.inverted else images
    return replace(cases, images=shown.astype(np.float32))
