"""Random numbers that nobody can predict, repeat or recompute: AES-256 in counter mode, keyed by the operating system.

The job's public seed has no part in sampling or noise: who could recompute either could take the privacy off again.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


class SecureStream:
    """A stream of random numbers from a key of its own, which exists only in this object."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """Return `count` numbers in (0, 1), float64: odd multiples of 2^-53, so never 0 and never 1."""
        bits = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64) >> np.uint64(12)
        return (bits.astype(np.float64) + 0.5) * 2.0**-52
