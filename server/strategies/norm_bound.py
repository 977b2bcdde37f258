"""Norm bounding: an update longer than a bound is scaled down to it, so that no site moves the model far by itself.

    x <- x + mean of (y_i - x) min(1, bound / ||y_i - x||)

References: Sun, Kairouz, Suresh and McMahan, "Can You Really Backdoor Federated Learning?", 2019 (arXiv:1911.07963).
"""

from __future__ import annotations

from typing import ClassVar, cast

from common import strategies
from common.update import Tensors, check_tensors
from server.strategies.mean import MeanStrategy, distance, moved
from server.strategies.strategy import Update


class NormBound(MeanStrategy):
    """Federated averaging of bounded updates."""

    name: ClassVar[str] = "norm-bound"
    central: ClassVar[bool] = False  # central privacy bounds the norm itself

    def view(self, update: Update, model: Tensors) -> Tensors:
        """Return the site's model, brought within the bound."""
        check_tensors(update.tensors, model, update.site)
        bound, length = cast(strategies.NormBound, self.parameters).bound, distance(update.tensors, model)
        return update.tensors if length <= bound else moved(model, update.tensors, bound / length)
