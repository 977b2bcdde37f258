"""FedBN: federated averaging of all but the normalisation layers, which stay at each site.

Our networks have GroupNorm where the paper's have BatchNorm (see `common/networks.py`); what stays is its scale and
shift. A model for a hospital that was never there has the first model's.

References: Li, Jiang, Zhang, Kamp and Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", ICLR 2021, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from server.strategies.mean import MeanStrategy


class FedBN(MeanStrategy):
    """Federated averaging of what the sites send: they keep the rest."""

    name: ClassVar[str] = "fedbn"
