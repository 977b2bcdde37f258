"""Gaussian noise from a generator that nobody can predict.

Two generators: torch's, seeded by the operating system (fast; not cryptographic), and a cryptographic one, AES-256 in
counter mode. The job's public seed has no part in either: noise that can be recomputed protects nobody.

Floating-point numbers let an attacker tell some noisy values apart (Mironov, CCS 2012). Against that the cryptographic
noise is the sum of four independent Gaussians over two, as Holohan and Braghin, "Secure Random Sampling in
Differential Privacy", ESORICS 2021, propose: no single float's rounding can be inverted from it any more.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


class FastNoise:
    """Gaussian noise from torch's generator on the tensor's own device, seeded by the operating system."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device)
        self._generator.manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return noise of the tensor's shape, dtype and device with standard deviation `deviation`."""
        noise = torch.randn(tensor.shape, generator=self._generator, device=tensor.device, dtype=torch.float32)
        return (noise * deviation).to(tensor.dtype)


class SecureNoise:
    """Gaussian noise from AES-256 in counter mode, keyed by the operating system, by Box and Muller's method."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16)))
        self._stream = cipher.encryptor()

    def like(self, tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return noise of the tensor's shape, dtype and device with standard deviation `deviation`."""
        total = sum((self._normal(tensor.numel()) for _ in range(4)), np.zeros(tensor.numel()))
        noise = torch.from_numpy(total / 2 * deviation).reshape(tensor.shape)
        return noise.to(device=tensor.device, dtype=tensor.dtype)

    def _normal(self, count: int) -> np.ndarray:
        pairs = (count + 1) // 2
        first, second = self._uniform(pairs), self._uniform(pairs)
        radius, angle = np.sqrt(-2 * np.log(first)), 2 * math.pi * second
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def _uniform(self, count: int) -> np.ndarray:
        """Uniform numbers in (0, 1), odd multiples of 2^-54: never 0, whose logarithm is infinite."""
        bits = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64) >> np.uint64(11)
        return (bits.astype(np.float64) + 0.5) * 2.0**-53
