"""What a strategy adds to every gradient at a site: mu (w - anchor) + offset. It depends on no record of the round.

FedProx: mu, and the global model as anchor. SCAFFOLD: the offset c - c_i. FedDyn: alpha, and the offset -h_i. With DP
it is added after clipping and noise: all of it follows from what earlier rounds released, or is the job's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.job import Job
from common.update import Tensors


@dataclass(frozen=True)
class Pull:
    """mu (w - anchor) + offset, by tensor name; tensors that `anchor` or `offset` does not name get nothing of it."""

    mu: float = 0.0
    anchor: Tensors = field(default_factory=dict)
    offset: Tensors = field(default_factory=dict)

    def bind(self, network: nn.Module, device: torch.device) -> BoundPull:
        """Return what adds it to the gradients of `network`."""
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        anchors = _on(device, self.anchor if self.mu > 0 else {})
        offsets = _on(device, self.offset)
        return BoundPull(
            self.mu,
            [(trained[name], anchor) for name, anchor in anchors.items() if name in trained],
            [(trained[name], offset) for name, offset in offsets.items() if name in trained],
        )


def towards(job: Job, model: Tensors) -> Pull:
    """Return FedProx's pull to `model`, as strong as the job says."""
    return Pull(job.aggregation.proximal_mu, model)


@dataclass(frozen=True)
class BoundPull:
    """A pull at work on a network's parameters."""

    mu: float
    anchors: list[tuple[nn.Parameter, Tensor]]
    offsets: list[tuple[nn.Parameter, Tensor]]

    def add(self) -> None:
        """Add it to what is in `.grad`."""
        for parameter, anchor in self.anchors:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.mu)
        for parameter, offset in self.offsets:
            if parameter.grad is not None:
                parameter.grad.add_(offset)


def _on(device: torch.device, tensors: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(tensor).to(device) for name, tensor in tensors.items()}
