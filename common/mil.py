"""Attention over a bag of images: which of a slide's tiles, or of a study's views, speak for the answer.

    h_t = encoder(image t)     a_t = softmax over t of w^T (tanh(V h_t) * sigmoid(U h_t))     z = sum over t a_t h_t

An image whose values are all the same (a bag is filled up with zeros) has nothing to be seen on it: its attention is 0.

Reference: Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, equations 7 and 9.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

UNSEEN = -1e4
"""The logit of an empty image: its weight is exactly 0 beside any other, and a bag of nothing but such has no NaN."""


class AttentionMIL(nn.Module):
    """A network of bags (N, C, images, rows, columns) with K outputs.

    `encoder` makes features (M, F) of images (M, C, rows, columns).
    Each layer sees a bag's images as rows of its own, so no image changes what is seen of another.
    """

    def __init__(self, encoder: nn.Module, features: int, outputs: int, *, hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.content, self.gate = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.attention = nn.Linear(hidden, 1)
        self.head = nn.Linear(features, outputs)

    def forward(self, bags: Tensor) -> Tensor:
        """Return the outputs (N, K) of bags (N, C, images, rows, columns)."""
        images = bags.transpose(1, 2)
        features = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        logits = self.logits(features).masked_fill(empty(images), UNSEEN)
        weights = torch.softmax(logits, dim=1)
        return cast(Tensor, self.head((weights.unsqueeze(1) @ features).squeeze(1)))

    def logits(self, features: Tensor) -> Tensor:
        """Return the attention before the softmax, of features (..., F): (...)."""
        gated = torch.tanh(self.content(features)) * torch.sigmoid(self.gate(features))
        return cast(Tensor, self.attention(gated).squeeze(-1))


def empty(images: Tensor) -> Tensor:
    """Return which images (N, images, C, rows, columns) have one value only: (N, images) bool."""
    values = images.flatten(2)
    return values.amax(dim=2) == values.amin(dim=2)
