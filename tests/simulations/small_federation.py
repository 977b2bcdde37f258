"""Seven small hospitals and a job for them."""

from __future__ import annotations

import numpy as np

from client.dataset import CaseSet
from common.job import parse_job
from simulations.members import Hospital

SITES = ("alder", "birch", "cedar", "damson", "elm", "fir", "gorse")


def cases(seed, count):
    """Small images whose brightness says the class."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, count)
    truth[:2] = 0, 1
    images = random.random((count, 1, 8, 8)) * 0.5 + 0.4 * truth[:, None, None, None]
    return CaseSet(images.astype(np.float32), tuple(["no", "yes"][label] for label in truth), np.arange(count))


def population(sites=SITES, count=20, splits=("train", "validation", "test")):
    return {
        name: Hospital(name, {split: cases(100 * place + at, count + 3 * place) for at, split in enumerate(splits)})
        for place, name in enumerate(sites)
    }


def job(strategy="fedavg", *, sites=SITES, rounds=3, aggregation="", training="", privacy="", network="width = 8"):
    names = ", ".join(f'"{site}"' for site in sites)
    return parse_job(
        f'name = "s"\nsites = [{names}]\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\nsize = [8, 8]\n'
        f'[network]\nname = "small-cnn"\nparameters.{network}\n'
        f"[training]\nbatch_size = 8\nmomentum = 0\nlearning_rate = 0.1\n{training}\n"
        f'[aggregation]\nstrategy = "{strategy}"\nrounds = {rounds}\n{aggregation}\n{privacy}'
    )


def same(one, other):
    return list(one) == list(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)
