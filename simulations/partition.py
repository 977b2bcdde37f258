"""Splits one collection into hospitals: given sizes, and label skew as a Dirichlet distribution makes it.

Reference: Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
classification", 2019 (arXiv:1909.06335).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import UsageError


def partition(labels: Sequence[str], sizes: Sequence[int], *, alpha: float, seed: int) -> tuple[np.ndarray, ...]:
    """Return for each hospital the indices of its cases: `sizes[k]` of them, none twice, in ascending order.

    Each hospital's mix of labels is drawn from Dir(alpha p), p the labels' mix over all cases: the smaller `alpha`,
    the more hospitals differ; infinity gives every hospital the same mix. The mixes drawn rarely add up to the cases
    there are; they are fitted to sizes and labels by iterative proportional fitting, which keeps their odds ratios.
    Cases over all sizes go to none, each label in proportion. Same labels, sizes, alpha and seed: same result.

    Raises
    ------
    UsageError
        A size is under 1, `alpha` is not positive, or there are fewer cases than the sizes ask for.
    """
    if alpha <= 0 or not sizes or min(sizes) < 1 or sum(sizes) > len(labels):
        raise UsageError(
            f"can't split {len(labels)} cases into hospitals of {', '.join(map(str, sizes)) or 'no size'} "
            f"with alpha {alpha:g}: sizes must be at least 1 and fit, alpha over 0"
        )
    generator = np.random.default_rng(seed)
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    pools = [generator.permutation(np.flatnonzero(codes == code)).tolist() for code in range(len(names))]
    share = np.bincount(codes) / len(codes)
    mixes = np.array([share if np.isinf(alpha) else generator.dirichlet(alpha * share) for _ in sizes])
    wanted = _fit(mixes, np.asarray(sizes), share * sum(sizes))
    return tuple(
        _take(pools, _counts(row, size, [len(pool) for pool in pools])) for row, size in zip(wanted, sizes, strict=True)
    )


def even_sizes(total: int, parts: int) -> tuple[int, ...]:
    """Return `parts` sizes of sum `total`, no two further apart than one, larger ones first."""
    return tuple(total // parts + (index < total % parts) for index in range(parts))


def _fit(mixes: np.ndarray, sizes: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Scale rows and columns of `mixes`, (hospitals, labels), until they add up to `sizes` and `totals`."""
    table = np.maximum(mixes, 1e-6) * sizes[:, None]
    for _ in range(200):
        table *= totals / table.sum(axis=0)
        table *= (sizes / table.sum(axis=1))[:, None]
    return np.asarray(table)


def _counts(exact: np.ndarray, size: int, left: Sequence[int]) -> np.ndarray:
    """Whole numbers of sum `size` nearest to `exact`, none over `left` (a label that has run out)."""
    counts = np.minimum(np.floor(exact).astype(int), left)
    while int(counts.sum()) < size:
        lacking = np.where(counts < left, exact - counts, -np.inf)
        counts[int(np.argmax(lacking))] += 1
    return np.asarray(counts)


def _take(pools: Sequence[list[int]], counts: np.ndarray) -> np.ndarray:
    taken: list[int] = []
    for pool, count in zip(pools, counts, strict=True):
        taken.extend(pool[:count])
        del pool[:count]
    return np.sort(np.asarray(taken, dtype=np.int64))
