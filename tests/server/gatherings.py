"""Jobs, updates and rounds in the short form in which tests of strategies need them."""

from __future__ import annotations

import numpy as np

from common.job import parse_job
from server.strategies.registry import build_strategy
from server.strategies.strategy import Update

ENOUGH_FOR = {"krum": 5, "multi-krum": 5, "bulyan": 7}
"""How many updates a strategy needs at f = 1; the others need no more than one."""


def named_sites(count):
    return [f"site-{number:02d}" for number in range(count)]


def job_with(strategy, sites=8, aggregation="", parameters="", training="", momentum=0, rate=0.1):
    """A job; the texts are lines of TOML for its sections."""
    names = ", ".join(f'"{name}"' for name in named_sites(sites))
    return parse_job(
        f'name = "j"\nsites = [{names}]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"\n'
        f"[training]\nlearning_rate = {rate}\nmomentum = {momentum}\n{training}\n"
        f'[aggregation]\nstrategy = "{strategy}"\n{aggregation}\n[aggregation.parameters]\n{parameters}\n'
    )


def update_of(place, tensors, examples=10, steps=5, loss=0.7, staleness=0, base=None):
    return Update(
        f"site-{place:02d}",
        tensors,
        examples,
        steps,
        {"train.loss_before": loss, "train.steps": steps},
        staleness,
        base,
    )


def advance(job, model, updates, state=None):
    """One round: what the strategy makes of the updates."""
    gathering = build_strategy(job).begin(model, state or {})
    for update in updates:
        gathering.add(update)
    return gathering.finish()


def bits(tensors):
    return {name: (tensor.dtype.str, tensor.shape, tensor.tobytes()) for name, tensor in tensors.items()}


def random_models(count, seed=0, spread=1.0):
    """Models with a matrix, a vector, a scalar, half precision and two kinds of integer buffers."""
    random = np.random.default_rng(seed)
    return [
        {
            "w": random.normal(size=(3, 4), scale=spread).astype(np.float32),
            "b": random.normal(size=5, scale=spread).astype(np.float32),
            "scale": np.array(random.normal(), np.float32),
            "half": random.normal(size=3).astype(np.float16),
            "steps": np.array(number + 3, np.int64),
            "mask": np.array([1, 0, 1], np.uint8),
        }
        for number in range(count)
    ]
