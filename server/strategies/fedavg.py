"""Federated averaging: the next model is the sites' mean, weighted by examples.

References: McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from common.errors import JobError
from common.job import AggregationSection
from common.update import Tensors


class FedAvg:
    """Federated averaging."""

    name: ClassVar[str] = "fedavg"

    def __init__(self, section: AggregationSection) -> None:
        if section.proximal_mu > 0:
            raise JobError(
                f'"aggregation.proximal_mu" is {section.proximal_mu:g}, but strategy "fedavg" has no proximal term: '
                'set strategy = "fedprox", or leave proximal_mu out'
            )

    def next_model(self, current: Tensors, mean: Tensors) -> Tensors:
        """Return the mean."""
        return mean
