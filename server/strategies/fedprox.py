"""FedProx: at the coordinator as federated averaging; each site adds the pull (mu / 2) ||w - w_global||^2 to its loss.

References: Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, algorithm 2. With mu = 0 it is FedAvg.
"""

from __future__ import annotations

from typing import ClassVar

from server.strategies.mean import MeanStrategy


class FedProx(MeanStrategy):
    """Federated averaging of models that the sites trained with a proximal term, `aggregation.proximal_mu`."""

    name: ClassVar[str] = "fedprox"
