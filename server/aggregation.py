"""The weighted mean of the sites' models, summed as they arrive: exact, order-free, and flat in the number of sites.

Every product of a float32 value and a count below 2^29 is exact in float64 (24 + 29 = 53 bits). Each product is cut
at fixed powers of two, 42 bits apart, into limbs; a sum of up to 2^12 such limbs is again exact, so no order of arrival
can change a bit of it. Only the last step, one division by the total count, rounds.

References: Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", ARITH 2013 (the idea of fixed bins);
McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017 (the mean).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.errors import UpdateError
from common.update import Tensors, check_tensors

MAX_WEIGHT = 2**29 - 1
MAX_UPDATES = 2**12
BITS = 42
# From 2^152 to 2^-184: products lie below 2^157 and are multiples of 2^-149, so that nothing is left over.
EXPONENTS = tuple(range(152, -185, -BITS))
CHUNK = 1 << 17


class RunningMean:
    """The mean of models of one architecture, weighted by examples.

    Guarantees
    ----------
    The result depends, to the bit, only on which updates were added, not on their order. One update alone, or equal
    updates, are given back to the bit. Memory: 16 bytes a parameter for common values (more only for tensors with
    values below 1e-11 or above 1e7), however many updates.
    """

    def __init__(self, like: Tensors) -> None:
        """Start from nothing, for models like `like`: float16, float32, integer or bool tensors.

        Raises UpdateError for float64: its products with a count are not exact.
        """
        for name, tensor in like.items():
            if tensor.dtype.kind == "f" and tensor.dtype.itemsize > 4:
                raise UpdateError(f'tensor "{name}" is {tensor.dtype}: only float32 and float16 can be averaged')
        self._like = like
        self._sums = {
            name: _FloatSum(tensor.size) if tensor.dtype.kind == "f" else _IntegerSum(tensor.size)
            for name, tensor in like.items()
        }
        self.examples = 0
        self.updates = 0

    def add(self, tensors: Tensors, examples: int, where: str) -> None:
        """Add one model with the weight `examples`. Either all of it is added, or nothing.

        Raises
        ------
        UpdateError
            The tensors do not fit the architecture, hold NaN or infinity, or the count is out of range.
        """
        if not 1 <= examples <= MAX_WEIGHT:
            raise UpdateError(f"{where}: a count of {examples} examples is not between 1 and {MAX_WEIGHT}")
        if self.updates >= MAX_UPDATES:
            raise UpdateError(f"{where}: more than {MAX_UPDATES} updates in a round")
        check_tensors(tensors, self._like, where)
        for name, total in self._sums.items():
            total.add(tensors[name].reshape(-1), examples)
        self.examples += examples
        self.updates += 1

    def mean(self) -> Tensors:
        """Return the mean, with the shapes and dtypes of the models. Raises UpdateError when nothing was added."""
        if self.updates == 0:
            raise UpdateError("there is no update to average")
        return {
            name: total.mean(self.examples, self._like[name].dtype).reshape(self._like[name].shape)
            for name, total in self._sums.items()
        }


class _FloatSum:
    """An exact sum of products, one array of float64 for each limb that was ever needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limbs: dict[int, np.ndarray] = {}
        self._minus: np.ndarray | None = None
        self._empty = True

    def add(self, values: np.ndarray, weight: int) -> None:
        for part in _chunks(self._size):
            rest = values[part].astype(np.float64) * weight
            largest = _largest(rest)
            for exponent in EXPONENTS:
                if largest < 2.0 ** (exponent - 1):
                    continue  # all of it would round to nothing at this limb
                limb = np.rint(rest * 2.0**-exponent) * 2.0**exponent
                self._limb(exponent)[part] += limb
                rest -= limb
                largest = _largest(rest)
        self._keep_minus_zeros(values)

    def _keep_minus_zeros(self, values: np.ndarray) -> None:
        """Remember where every update so far is -0.0: adding to 0.0 would lose the sign."""
        if self._empty or self._minus is not None:
            minus = (values == 0) & np.signbit(values)
            self._minus = minus if self._minus is None else self._minus & minus
            if not self._minus.any():
                self._minus = None
        self._empty = False

    def _limb(self, exponent: int) -> np.ndarray:
        if exponent not in self._limbs:
            self._limbs[exponent] = np.zeros(self._size, dtype=np.float64)
        return self._limbs[exponent]

    def mean(self, weight: int, dtype: np.dtype[np.generic]) -> np.ndarray:
        result = np.zeros(self._size, dtype=dtype)
        for part in _chunks(self._size):
            total = np.zeros(part.stop - part.start, dtype=np.float64)
            for exponent in sorted(self._limbs, reverse=True):
                total += self._limbs[exponent][part]
            result[part] = (total / weight).astype(dtype)
        if self._minus is not None:
            result[self._minus] = -0.0
        return result


class _IntegerSum:
    """An exact sum of integers of any size, for a network's few integer buffers."""

    def __init__(self, size: int) -> None:
        self._total = np.zeros(size, dtype=object)

    def add(self, values: np.ndarray, weight: int) -> None:
        self._total += values.astype(object) * weight

    def mean(self, weight: int, dtype: np.dtype[np.generic]) -> np.ndarray:
        return np.array([(2 * int(total) + weight) // (2 * weight) for total in self._total], dtype=dtype)


def _largest(values: np.ndarray) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _chunks(size: int) -> Iterator[slice]:
    """Pieces small enough for the cache, so that temporaries stay small beside the model."""
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))
