"""FedBuff: asynchronous. Whenever K updates are in, there is a new model; nobody waits for the slowest.

    x <- x + eta / K sum_k (1 + s_k)^-a (y_k - x_{t - s_k})

s_k is how many models there have been since the one that the site started from. Sites that are still at work
when a model is made go on; the coordinator remembers the model that each of them has.

References: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, "Federated Learning with Buffered Asynchronous
Aggregation", AISTATS 2022, algorithm 1 and section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import numpy as np

from common import strategies
from common.update import Tensors, check_tensors
from server.aggregation import LEAST_WEIGHT
from server.strategies.mean import MeanStrategy, Note, moved, rounded
from server.strategies.strategy import Advance, Update


class FedBuff(MeanStrategy):
    """The mean of a buffer of updates, older ones counting less. Every site counts the same."""

    name: ClassVar[str] = "fedbuff"
    central: ClassVar[bool] = False

    def weigh(self, update: Update) -> float:
        """(1 + staleness)^-a; what would be less than the least weight is the least weight."""
        return max(LEAST_WEIGHT, float((1 + update.staleness) ** -cast(strategies.FedBuff, self.parameters).a))

    def view(self, update: Update, model: Tensors) -> Tensors:
        """Return the current model, changed as the site changed the one that it had."""
        if update.base is None:
            return update.tensors
        check_tensors(update.tensors, model, update.site)
        base = update.base
        return {
            name: rounded(tensor + (update.tensors[name].astype(np.float64) - base[name]), tensor)
            if tensor.dtype.kind == "f"
            else update.tensors[name]
            for name, tensor in model.items()
        }

    def finish(self, mean: Tensors, notes: Sequence[Note], model: Tensors, state: Tensors) -> Advance:
        """Move by the mean change; K is how many there are."""
        share = math.fsum(note.weight for note in notes) / len(notes)
        return Advance(moved(model, mean, cast(strategies.FedBuff, self.parameters).eta * share))
