"""Settings of Flower that both ends of the link share."""

from __future__ import annotations

from flwr.app.message import array

CHUNK_BYTES = 1 << 20
"""Tensors travel in pieces of this size: Flower's own 5 MiB, two at once a site, fill the coordinator's memory."""

vars(array)["FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"] = CHUNK_BYTES
