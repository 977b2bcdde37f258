"""Phantom chest radiographs: a random thorax, with or without opacities of pneumonia, drawn as an attenuation map.

Not a physical simulation and no substitute for patients: enough anatomy (lungs, heart, mediastinum, spine, ribs,
diaphragm, vessels), variation between people and between exposures that a network has to learn what an opacity
looks like, and that a hospital with few patients learns it less well than several together.

Coordinates: x to the right and y down, both -1..1 over the image. Attenuation is in arbitrary units, about 0..3,
larger where less radiation passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

Image = np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """One person's chest. Lengths are in units of half the image's width."""

    thorax_width: float
    thorax_height: float
    lung_width: float
    lung_height: float
    lung_gap: float
    heart_width: float
    heart_shift: float
    diaphragm: float
    liver_rise: float
    rib_spacing: float
    rib_slope: float
    rib_strength: float
    spine_width: float
    tissue: float
    vessels: float
    vessel_seed: int


@dataclass(frozen=True)
class Opacity:
    """One shadow: an ellipse with a soft, irregular edge, at (x, y), of half-axes `width` and `height`."""

    x: float
    y: float
    width: float
    height: float
    strength: float
    texture_seed: int


@dataclass(frozen=True)
class Pose:
    """How the person stood for one exposure."""

    shift_x: float
    shift_y: float
    tilt: float  # radians
    scale: float
    breath: float  # how far the diaphragm moved, in the units of `Anatomy`


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    """Draw a person."""
    between = generator.uniform
    return Anatomy(
        thorax_width=between(0.80, 0.95), thorax_height=between(1.00, 1.15),
        lung_width=between(0.30, 0.37), lung_height=between(0.60, 0.74), lung_gap=between(0.38, 0.44),
        heart_width=between(0.22, 0.34), heart_shift=between(0.06, 0.16),
        diaphragm=between(0.42, 0.62), liver_rise=between(0.02, 0.10),
        rib_spacing=between(0.17, 0.23), rib_slope=between(0.25, 0.55), rib_strength=between(0.08, 0.20),
        spine_width=between(0.07, 0.10), tissue=between(0.85, 1.25),
        vessels=between(0.05, 0.13), vessel_seed=int(generator.integers(2**31)),
    )  # fmt: skip


def draw_pose(generator: np.random.Generator) -> Pose:
    """Draw an exposure's pose."""
    return Pose(
        shift_x=generator.normal(0, 0.03), shift_y=generator.normal(0, 0.03), tilt=generator.normal(0, 0.04),
        scale=generator.uniform(0.94, 1.06), breath=generator.normal(0, 0.03),
    )  # fmt: skip


def draw_opacities(generator: np.random.Generator, anatomy: Anatomy, *, pneumonia: bool) -> tuple[Opacity, ...]:
    """Draw the shadows in a person's lungs.

    Pneumonia: one to three consolidations, from faint to dense. Without it, two people in five still have a smaller
    shadow of another kind (a nodule, a scar), so that "any shadow" is not the answer.
    """
    if pneumonia:
        count, size, strength = int(generator.integers(1, 4)), (0.20, 0.45), (0.08, 0.75)
    else:
        count, size, strength = int(generator.random() < 0.4), (0.05, 0.16), (0.10, 0.40)
    return tuple(_draw_opacity(generator, anatomy, size, strength) for _ in range(count))


def _draw_opacity(
    generator: np.random.Generator, anatomy: Anatomy, size: tuple[float, float], strength: tuple[float, float]
) -> Opacity:
    side = generator.choice((-1.0, 1.0))
    angle, distance = generator.uniform(0, 2 * np.pi), 0.75 * np.sqrt(generator.random())
    width = generator.uniform(*size)
    return Opacity(
        x=float(side * anatomy.lung_gap + anatomy.lung_width * distance * np.cos(angle)),
        y=float(-0.12 + 0.75 * anatomy.lung_height * distance * np.sin(angle)),
        width=float(width), height=float(width * generator.uniform(0.7, 1.4)),
        strength=float(generator.uniform(*strength)), texture_seed=int(generator.integers(2**31)),
    )  # fmt: skip


def draw_radiograph(anatomy: Anatomy, opacities: tuple[Opacity, ...], pose: Pose, size: int) -> Image:
    """Return the attenuation map, (size, size) float32, of one exposure."""
    x, y = _coordinates(size, pose)
    thorax = _ellipse(x, y, 0, 0.15, anatomy.thorax_width, anatomy.thorax_height, 0.05)
    heart = _ellipse(x, y, anatomy.heart_shift, 0.22, anatomy.heart_width, 0.30, 0.10)
    lungs = _lungs(anatomy, pose, x, y) * thorax
    picture = anatomy.tissue * (0.15 + 0.85 * thorax) * (1.1 - 0.25 * x * x)
    picture -= 0.75 * anatomy.tissue * lungs
    picture += 0.45 * heart
    picture += 0.30 * _ellipse(x, y, 0, -0.30, 0.14, 0.55, 0.15)  # mediastinum
    picture += 0.30 * np.exp(-((x / anatomy.spine_width) ** 2)) * (1 + 0.2 * np.cos(y * 40))
    picture += _ribs(anatomy, x, y) * thorax
    picture += _vessels(anatomy, x, y, size) * lungs * (1 - heart)
    for opacity in opacities:
        picture += _shadow(opacity, x, y, size) * lungs
    return np.asarray(picture, dtype=np.float32)


def _coordinates(size: int, pose: Pose) -> tuple[Image, Image]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    across, down = np.meshgrid(axis, axis)
    cosine, sine = np.cos(pose.tilt) * pose.scale, np.sin(pose.tilt) * pose.scale
    return cosine * across + sine * down + pose.shift_x, -sine * across + cosine * down + pose.shift_y


def _ellipse(x: Image, y: Image, at_x: float, at_y: float, width: float, height: float, softness: float) -> Image:
    """1 inside, 0 outside, with an edge about `softness` wide (as a share of the half-axes)."""
    radius = np.sqrt(((x - at_x) / width) ** 2 + ((y - at_y) / height) ** 2)
    return np.asarray(1 / (1 + np.exp(np.clip((radius - 1) / (softness / 2), -40, 40))))


def _lungs(anatomy: Anatomy, pose: Pose, x: Image, y: Image) -> Image:
    left = _ellipse(x, y, -anatomy.lung_gap, -0.12, anatomy.lung_width, anatomy.lung_height, 0.08)
    right = _ellipse(x, y, anatomy.lung_gap, -0.12, anatomy.lung_width, anatomy.lung_height, 0.08)
    # The domes of the diaphragm: the liver lifts the one on the image's left (the patient's right).
    dome = anatomy.diaphragm + pose.breath + 0.6 * (np.abs(x) - anatomy.lung_gap) ** 2 - anatomy.liver_rise * (x < 0)
    air = 1 / (1 + np.exp(np.clip((y - dome) / 0.02, -40, 40)))
    return np.asarray(np.maximum(left, right) * air)


def _ribs(anatomy: Anatomy, x: Image, y: Image) -> Image:
    """Posterior ribs fall towards the side, anterior ones towards the middle and are fainter."""
    out = np.abs(x)
    posterior = np.cos(2 * np.pi * (y - anatomy.rib_slope * out**1.5) / anatomy.rib_spacing)
    anterior = np.cos(2 * np.pi * (y + 1.3 * anatomy.rib_slope * out) / (1.2 * anatomy.rib_spacing))
    return np.asarray(anatomy.rib_strength * (np.maximum(posterior, 0) ** 3 + 0.5 * np.maximum(anterior, 0) ** 4))


def _vessels(anatomy: Anatomy, x: Image, y: Image, size: int) -> Image:
    """Branching markings, densest at the hilum: the same in every exposure of one person."""
    noise = np.random.default_rng(anatomy.vessel_seed).standard_normal((size, size), dtype=np.float32)
    bands = gaussian_filter(noise, size / 90) - gaussian_filter(noise, size / 30)
    hilum = np.exp(-(((np.abs(x) - 0.18) / 0.30) ** 2) - ((y + 0.02) / 0.40) ** 2)
    return np.asarray(anatomy.vessels * (bands / bands.std()) * (0.3 + hilum))


def _shadow(opacity: Opacity, x: Image, y: Image, size: int) -> Image:
    """A consolidation: patchy inside, its edge ragged, brightest at its centre."""
    noise = np.random.default_rng(opacity.texture_seed).standard_normal((size, size), dtype=np.float32)
    noise = gaussian_filter(noise, size / 24)
    patchy = noise / noise.std()
    radius = np.sqrt(((x - opacity.x) / opacity.width) ** 2 + ((y - opacity.y) / opacity.height) ** 2)
    core = np.exp(-(np.maximum(radius + 0.20 * patchy, 0) ** 2))
    return np.asarray(opacity.strength * core * (1 + 0.25 * patchy))
