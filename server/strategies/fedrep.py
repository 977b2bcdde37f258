"""FedRep: federated averaging of a common representation; each site has its own head (`client/methods.py`).

References: Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from server.strategies.mean import MeanStrategy


class FedRep(MeanStrategy):
    """Federated averaging of what the sites send: they keep their heads."""

    name: ClassVar[str] = "fedrep"
