"""SGD with momentum on a CPU: what torch.optim.SGD does, to the bit, without its hooks and checks around each step.

For small networks these took longer than the step itself; in a simulation there are millions of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SGD:
    """v <- momentum v + g, w <- w - rate v; v starts as the first gradient."""

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, momentum: float) -> None:
        """Take the parameters that it is to move."""
        self._parameters, self._rate, self._momentum = list(parameters), rate, momentum
        self._velocity: dict[int, Tensor] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for place, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            if self._momentum > 0:
                velocity = self._velocity.get(place)
                if velocity is None:
                    velocity = self._velocity[place] = gradient.clone()
                else:
                    velocity.mul_(self._momentum).add_(gradient)
                gradient = velocity
            parameter.add_(gradient, alpha=-self._rate)
