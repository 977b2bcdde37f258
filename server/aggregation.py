"""The weighted mean of the sites' models, summed as they arrive: exact, order-free, and flat in the number of sites.

A weight is rounded to 29 significant bits, so that its product with a float32 value is exact in float64 (24 + 29 = 53
bits). Each product is cut at fixed powers of two, 42 bits apart, into limbs; limbs are carried before they could lose a
bit. So no order of arrival, and no grouping into partial sums, can change a bit. Only the last steps round: the limbs,
in the one form that a sum has, are added up and divided by the total weight.

References: Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", ARITH 2013 (the idea of fixed bins);
McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017 (the mean).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from common.errors import UpdateError
from common.update import Tensors, check_tensors

MAX_WEIGHT = 2**29 - 1
LEAST_WEIGHT = 2.0**-30
SIGNIFICANT = 29
SCALE = 60
"""Weights are whole multiples of 2^-60: kept as integers, their sum is exact."""
BITS = 42
CARRY_AFTER = 2**10
# From 2^152 to 2^-226: products lie below 2^157 and are multiples of 2^-208, so that nothing is left over.
EXPONENTS = tuple(range(152, -227, -BITS))
CHUNK = 1 << 17


class RunningMean:
    """The mean of models of one architecture, by weight.

    Guarantees
    ----------
    The result depends, to the bit, only on which updates were added, not on their order or on which partial sums were
    merged. One update alone, or equal updates, are given back to the bit. Memory: 16 bytes a parameter for common
    values (more only for tensors with values below 1e-11 or above 1e7), however many updates.
    """

    def __init__(self, like: Tensors) -> None:
        """Start from nothing, for models like `like`: float16, float32, integer or bool tensors.

        Raises UpdateError for float64: its products with a weight are not exact.
        """
        for name, tensor in like.items():
            if tensor.dtype.kind == "f" and tensor.dtype.itemsize > 4:
                raise UpdateError(f'tensor "{name}" is {tensor.dtype}: only float32 and float16 can be averaged')
        self._like = {name: _described(tensor.dtype, tensor.shape) for name, tensor in like.items()}
        self._groups = [(names, _FloatSum(size)) for names, size in _groups(self._like)]
        self._integers = {
            name: _IntegerSum(tensor.size) for name, tensor in self._like.items() if tensor.dtype.kind != "f"
        }
        self._weight = 0
        self.updates = 0

    @property
    def weight(self) -> float:
        """The weights' sum."""
        return float(self._weight / 2**SCALE)

    def add(self, tensors: Tensors, weight: float, where: str) -> None:
        """Add one model. Either all of it is added, or nothing.

        Raises
        ------
        UpdateError
            The tensors do not fit the architecture, hold NaN or infinity, or the weight is out of range.
        """
        check_weight(weight, where)
        check_tensors(tensors, self._like, where)
        rounded = rounded_weight(weight)
        whole = int(rounded * 2.0**SCALE)
        for names, total in self._groups:
            values = tensors[names[0]].reshape(-1)
            if len(names) > 1:
                values = np.concatenate([tensors[name].reshape(-1) for name in names])
            total.add(values, rounded)
        for name, integers in self._integers.items():
            integers.add(tensors[name].reshape(-1), whole)
        self._weight += whole
        self.updates += 1
        if self.updates % CARRY_AFTER == 0:
            self._carry()

    def merge(self, other: RunningMean) -> None:
        """Add everything that was added to `other`, a mean of the same architecture."""
        self._carry()
        for (_, mine), (_, others) in zip(self._groups, other._groups, strict=True):
            mine.merge(others)
        for name, integers in self._integers.items():
            integers.merge(other._integers[name])
        self._weight += other._weight
        self.updates += other.updates
        self._carry()

    def mean(self) -> Tensors:
        """Return the mean, with the shapes and dtypes of the models. Raises UpdateError when nothing was added."""
        if self.updates == 0:
            raise UpdateError("there is no update to average")
        self._carry()
        found: Tensors = {}
        for names, total in self._groups:
            values, start = total.mean(self.weight), 0
            for name in names:
                like = self._like[name]
                found[name] = values[start : start + like.size].astype(like.dtype).reshape(like.shape)
                start += like.size
        for name, integers in self._integers.items():
            like = self._like[name]
            found[name] = integers.mean(self._weight, like.dtype).reshape(like.shape)
        return {name: found[name] for name in self._like}

    def _carry(self) -> None:
        for _, total in self._groups:
            total.carry()

    def __getstate__(self) -> dict[str, object]:
        """Of the architecture only shapes and dtypes travel: written out, its arrays would be one more model."""
        return {**self.__dict__, "_like": {name: (like.dtype, like.shape) for name, like in self._like.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._like = {name: _described(dtype, shape) for name, (dtype, shape) in state["_like"].items()}


def check_weight(weight: float, where: str) -> None:
    """Raise UpdateError when an update can't count by this."""
    if not LEAST_WEIGHT <= weight <= MAX_WEIGHT:
        raise UpdateError(f"{where}: a weight of {weight:g} is not between {LEAST_WEIGHT:g} and {MAX_WEIGHT}")


def rounded_weight(weight: float) -> float:
    """Return the weight as it counts: to 29 significant bits. Whole numbers up to `MAX_WEIGHT` stay as they are."""
    mantissa, exponent = math.frexp(weight)
    return math.ldexp(round(math.ldexp(mantissa, SIGNIFICANT)), exponent - SIGNIFICANT)


class _FloatSum:
    """An exact sum of products, one array of float64 for each limb that was ever needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limbs: dict[int, np.ndarray] = {}
        self._minus: np.ndarray | None = None
        self._empty = True

    def add(self, values: np.ndarray, weight: float) -> None:
        for part in _chunks(self._size):
            rest = values[part].astype(np.float64)
            rest *= weight
            largest = _largest(rest)
            for exponent in EXPONENTS:
                if largest < 2.0 ** (exponent - 1):
                    continue  # all of it would round to nothing at this limb
                limb = rest * 2.0**-exponent
                np.rint(limb, out=limb)
                limb *= 2.0**exponent
                self._limb(exponent)[part] += limb
                rest -= limb
                largest = _largest(rest)
        self._keep_minus_zeros((values == 0) & np.signbit(values))

    def merge(self, other: _FloatSum) -> None:
        for exponent, limb in other._limbs.items():
            self._limb(exponent)[:] += limb
        if not other._empty:
            none = np.zeros(self._size, dtype=bool)
            self._keep_minus_zeros(none if other._minus is None else other._minus)

    def carry(self) -> None:
        """Bring every limb into half a limb's range around 0 and hand the rest up: the one form that the sum has."""
        for exponent in reversed(EXPONENTS[1:]):
            if exponent not in self._limbs:
                continue
            limb, unit = self._limbs[exponent], 2.0 ** (exponent + BITS)
            over = np.floor(limb / unit + 0.5)
            if over.any():
                over *= unit
                limb -= over
                self._limb(exponent + BITS)[:] += over

    def _keep_minus_zeros(self, minus: np.ndarray) -> None:
        """Remember where every update so far is -0.0: adding to 0.0 would lose the sign."""
        if self._empty or self._minus is not None:
            self._minus = minus if self._minus is None else self._minus & minus
            if not self._minus.any():
                self._minus = None
        self._empty = False

    def _limb(self, exponent: int) -> np.ndarray:
        if exponent not in self._limbs:
            self._limbs[exponent] = np.zeros(self._size, dtype=np.float64)
        return self._limbs[exponent]

    def mean(self, weight: float) -> np.ndarray:
        total = np.zeros(self._size, dtype=np.float64)
        for exponent in sorted(self._limbs, reverse=True):
            total += self._limbs[exponent]
        total /= weight
        if self._minus is not None:
            total[self._minus] = -0.0
        return total


class _IntegerSum:
    """An exact sum of integers of any size, for a network's few integer buffers. Weights are whole numbers."""

    def __init__(self, size: int) -> None:
        self._total = np.zeros(size, dtype=object)

    def add(self, values: np.ndarray, weight: int) -> None:
        self._total += values.astype(object) * weight

    def merge(self, other: _IntegerSum) -> None:
        self._total += other._total

    def mean(self, weight: int, dtype: np.dtype[np.generic]) -> np.ndarray:
        return np.array([(2 * int(total) + weight) // (2 * weight) for total in self._total], dtype=dtype)


def _groups(like: Tensors) -> Iterator[tuple[list[str], int]]:
    """Float tensors in turn, small ones together up to a chunk: many small tensors would be slow one by one."""
    names: list[str] = []
    size = 0
    for name, tensor in like.items():
        if tensor.dtype.kind != "f":
            continue
        if names and size + tensor.size > CHUNK:
            yield names, size
            names, size = [], 0
        names.append(name)
        size += tensor.size
    if names:
        yield names, size


def _described(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array of this dtype and shape that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype=dtype), shape)


def _largest(values: np.ndarray) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _chunks(size: int) -> Iterator[slice]:
    """Pieces small enough for the cache, so that temporaries stay small beside the model."""
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))
