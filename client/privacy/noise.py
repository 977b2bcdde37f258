"""Gaussian noise from a generator that nobody can predict.

Two kinds, both seeded by the operating system. The fast one is not cryptographic: who knew much of its output could in
theory compute the rest. The secure one is AES-256 in counter mode. Neither knows the job's public seed.

On a CPU the fast one is NumPy's and not torch's: there, torch keeps 32 bits of any seed, so that an attacker could try
all the noise there can be.

Floating-point numbers let an attacker tell some noisy values apart, since not every value can come out of a sampler
(Mironov, CCS 2012). Against that the secure noise is the sum of four independent Gaussians over two, as Holohan and
Braghin, "Secure Random Sampling in Differential Privacy", ESORICS 2021, propose (and as Opacus' secure mode does): to
invert it is to solve for four numbers at once. It is made in float64, and rounded to the gradient's type at the end.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch

from client.privacy.randomness import SecureStream


class Noise(Protocol):
    """Where Gaussian noise comes from."""

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return noise of the tensor's shape, dtype and device with standard deviation `deviation`."""


def make_noise(device: torch.device, *, secure: bool) -> Noise:
    """Return the noise that a job asks for, for gradients on `device`."""
    if secure:
        return SecureNoise()
    return FastNoise() if device.type == "cpu" else DeviceNoise(device)


class FastNoise:
    """Gaussian noise from NumPy's PCG64 with a seed of 128 bits."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(int.from_bytes(os.urandom(16), "big"))

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return noise of the tensor's shape, dtype and device with standard deviation `deviation`."""
        return _shaped(self._generator.standard_normal(tensor.numel()) * deviation, tensor)


class DeviceNoise:
    """Gaussian noise made on the GPU, by torch's Philox with a seed of 64 bits."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device)
        self._generator.manual_seed(int.from_bytes(os.urandom(8), "big"))

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return noise of the tensor's shape, dtype and device with standard deviation `deviation`."""
        noise = torch.randn(tensor.shape, generator=self._generator, device=tensor.device, dtype=torch.float32)
        return (noise * deviation).to(tensor.dtype)


class SecureNoise:
    """Gaussian noise from a cryptographic stream, by Box and Muller's method."""

    def __init__(self) -> None:
        self._stream = SecureStream()

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return noise of the tensor's shape, dtype and device with standard deviation `deviation`."""
        total = sum((self._normal(tensor.numel()) for _ in range(4)), np.zeros(tensor.numel()))
        return _shaped(total / 2 * deviation, tensor)

    def _normal(self, count: int) -> np.ndarray:
        pairs = (count + 1) // 2
        first, second = self._stream.uniform(pairs), self._stream.uniform(pairs)
        radius, angle = np.sqrt(-2 * np.log(first)), 2 * math.pi * second
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _shaped(noise: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(noise).reshape(tensor.shape).to(device=tensor.device, dtype=tensor.dtype)
