"""Brings the features of tables to a common scale, by public constants or by the site's own training split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from client.dataset import CaseSet
from common.errors import DataError
from common.job import DataSection


def scaled(splits: Mapping[str, CaseSet], data: DataSection) -> dict[str, CaseSet]:
    """Return the splits of a table as the job wants them scaled; images are as they are.

    "standard": (x - mean) / deviation by the job's constants. "site": by mean and standard deviation (N - 1) of the
    training split, the same for all splits; a feature that is the same for all becomes 0. Raises DataError when there
    is no training split to scale by.
    """
    if not data.table or data.scale == "unit":
        return dict(splits)
    if data.scale == "standard":
        mean, deviation = np.array(data.means), np.array(data.deviations)
    else:
        if "train" not in splits or not len(splits["train"].labels):
            raise DataError('data.scale = "site" needs a training split, and there is none here')
        training = splits["train"].images.astype(np.float64)
        mean = training.mean(axis=0)
        constant = training.max(axis=0) == training.min(axis=0)  # its deviation may come out as a rounding error
        deviation = np.where(constant, np.inf, training.std(axis=0, ddof=min(1, len(training) - 1)))
    return {
        name: replace(cases, images=((cases.images - mean) / deviation).astype(np.float32))
        for name, cases in splits.items()
    }
