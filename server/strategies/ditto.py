"""Ditto: federated averaging for the common model; each site trains one of its own beside it (`client/methods.py`).

References: Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from server.strategies.mean import MeanStrategy


class Ditto(MeanStrategy):
    """Federated averaging."""

    name: ClassVar[str] = "ditto"
