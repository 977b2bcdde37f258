"""Federated averaging: the next model is the sites' mean, weighted by examples.

References: McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from server.strategies.mean import MeanStrategy


class FedAvg(MeanStrategy):
    """Federated averaging."""

    name: ClassVar[str] = "fedavg"
