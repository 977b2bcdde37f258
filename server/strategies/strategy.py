"""What a strategy is: how the sites' mean becomes the next global model."""

from __future__ import annotations

from typing import ClassVar, Protocol

from common.job import AggregationSection
from common.update import Tensors


class Strategy(Protocol):
    """Makes the next global model of a round. Built once a run from the job's aggregation table.

    Guarantees that every strategy gives (a contract test runs over all of them): the result depends only on the
    arguments and not on the order of sites; names, shapes and dtypes are those of the current model.
    """

    name: ClassVar[str]

    def __init__(self, section: AggregationSection) -> None:
        """Take the parameters from the job. Raises JobError for one that does not belong to this strategy."""

    def next_model(self, current: Tensors, mean: Tensors) -> Tensors:
        """Return the next global model, from the current one and the mean of the sites' models by examples."""
