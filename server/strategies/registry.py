"""The table of strategies. To add one: one file, one line here; a third party's comes by entry point."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import cast

from common.errors import JobError
from common.extensions import brought, load
from common.job import Job
from server.strategies.adaptive import FedAdagrad, FedAdam, FedYogi
from server.strategies.cyclic import Cyclic
from server.strategies.ditto import Ditto
from server.strategies.fedavg import FedAvg
from server.strategies.fedavgm import FedAvgM
from server.strategies.fedbn import FedBN
from server.strategies.fedbuff import FedBuff
from server.strategies.feddyn import FedDyn
from server.strategies.fednova import FedNova
from server.strategies.fedprox import FedProx
from server.strategies.fedrep import FedRep
from server.strategies.norm_bound import NormBound
from server.strategies.qfedavg import QFedAvg
from server.strategies.robust import Bulyan, Krum, Median, MultiKrum, TrimmedMean
from server.strategies.scaffold import Scaffold
from server.strategies.strategy import Strategy

ENTRY_POINTS = "wardround.strategies"

STRATEGIES: dict[str, Callable[[Job], Strategy]] = {
    FedAvg.name: FedAvg,
    FedProx.name: FedProx,
    FedAvgM.name: FedAvgM,
    FedAdam.name: FedAdam,
    FedYogi.name: FedYogi,
    FedAdagrad.name: FedAdagrad,
    Scaffold.name: Scaffold,
    FedNova.name: FedNova,
    FedDyn.name: FedDyn,
    FedBN.name: FedBN,
    Ditto.name: Ditto,
    FedRep.name: FedRep,
    QFedAvg.name: QFedAvg,
    Median.name: Median,
    TrimmedMean.name: TrimmedMean,
    Krum.name: Krum,
    MultiKrum.name: MultiKrum,
    Bulyan.name: Bulyan,
    NormBound.name: NormBound,
    FedBuff.name: FedBuff,
    Cyclic.name: Cyclic,
}


def build_strategy(job: Job) -> Strategy:
    """Return the strategy that the job names.

    Raises
    ------
    JobError
        There is none of that name (the message has the nearest right one), or something in the job does not go with it.
    """
    name = job.aggregation.strategy
    if name in STRATEGIES:
        return STRATEGIES[name](job)
    outside = brought(ENTRY_POINTS)
    if name in outside:
        build = cast(Callable[[Job], Strategy], load(outside[name]))
        return build(job)
    known = [*STRATEGIES, *outside]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(sorted(known))}"
    raise JobError(f'"aggregation.strategy": unknown strategy "{name}": {hint}')
