"""What a strategy does at a site: which steps a round has, what is added to their gradients, what stays here.

Most strategies ask nothing of a site: it trains the model and sends it. For the others a round is one or two phases.

    fedprox    one, with a pull to the global model (Li et al., MLSys 2020)
    scaffold   one, with the offset c - c_i; then c_i <- c_i - c + (x - y) / (K eta)
               (Karimireddy et al., "SCAFFOLD", ICML 2020, algorithm 1, option II)
    feddyn     one, with alpha (w - x) - h_i; then h_i <- h_i - alpha (y - x)
               (Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, algorithm 1)
    fedrep     the head alone, then the rest alone
               (Collins et al., "Exploiting Shared Representations", ICML 2021, algorithm 1)
    ditto      the common model; then a model of the site's own, pulled to the global one
               (Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, algorithm 1)

Here x is the model received, y the one sent back, K the steps between them and eta the learning rate. Layers that the
job keeps local (FedBN: Li et al., ICLR 2021) are put in place of the received ones and are left out of what is sent.

Privacy. With DP every phase is DP-SGD and is paid for, also those whose outcome stays: its metrics would tell of it.
c_i and h_i follow from models that were noised before (post-processing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.pull import Pull, towards
from common.job import Job
from common.strategies import Ditto, FedDyn, FedRep, Scaffold
from common.update import Request, Tensors

CONTROL, GRADIENT, LAYER, PERSONAL = "control/", "gradient/", "layer/", "personal/"
"""What a site keeps, by the first part of its name."""


@dataclass(frozen=True)
class Phase:
    """Some steps of a round.

    `start`: the weights to start from; None: where the phase before ended. `only`: the tensors that are trained; None:
    all. `sent`: whether the outcome is what the site sends; else it stays here.
    """

    steps: int
    pull: Pull
    start: Tensors | None = None
    only: frozenset[str] | None = None
    sent: bool = True


def received(model: Tensors, kept: Mapping[str, np.ndarray], local: frozenset[str]) -> Tensors:
    """Return the model as this site starts from it: with its own layers, where it has any yet."""
    own = _named(kept, LAYER)
    return {name: own.get(name, tensor) if name in local else tensor for name, tensor in model.items()}


def judged(model: Tensors, kept: Mapping[str, np.ndarray], local: frozenset[str]) -> Tensors:
    """Return the model by which this site predicts: Ditto's own where there is one, else as it is received."""
    return own_model(kept) or received(model, kept, local)


def own_model(kept: Mapping[str, np.ndarray]) -> Tensors:
    """Return the model of the site's own that Ditto trains beside the common one; nothing while there is none."""
    return _named(kept, PERSONAL)


def phases(
    request: Request, kept: Mapping[str, np.ndarray], local: frozenset[str], steps: int, trained: frozenset[str]
) -> tuple[Phase, ...]:
    """Return the phases of a round of `steps`, of which `trained` names all tensors that training moves."""
    job, model = request.job, request.model
    parameters, pull = job.aggregation.known_parameters, _pull(request, kept, trained - local)
    if isinstance(parameters, FedRep):
        head = Phase(parameters.head_steps or steps, Pull(), only=trained & local)
        return head, Phase(steps, pull, only=trained - local)
    if isinstance(parameters, Ditto):
        own = Pull(parameters.lambda_, {name: model[name] for name in trained})
        return Phase(steps, pull), Phase(steps, own, start=judged(model, kept, local), sent=False)
    return (Phase(steps, pull),)


def kept_after(
    request: Request,
    kept: Mapping[str, np.ndarray],
    local: frozenset[str],
    trained: frozenset[str],
    outcome: Tensors,
    own: Tensors | None,
    steps: int,
) -> Tensors:
    """Return what stays at the site after a round that ended with `outcome`, and `own` where a second model is kept."""
    job, model = request.job, request.model
    parameters, shared = job.aggregation.known_parameters, sorted(trained - local)
    stays = {f"{LAYER}{name}": outcome[name] for name in sorted(local)}
    stays |= {f"{PERSONAL}{name}": tensor for name, tensor in (own or {}).items()}
    if isinstance(parameters, Scaffold):
        before, scale = _named(kept, CONTROL), np.float32(1.0 / (steps * job.training.learning_rate))
        for name in shared:
            moved = (model[name] - outcome[name]) * scale
            stays[CONTROL + name] = before.get(name, np.float32(0)) - request.control.get(name, np.float32(0)) + moved
    if isinstance(parameters, FedDyn):
        before = _named(kept, GRADIENT)
        for name in shared:
            moved = np.float32(parameters.alpha) * (outcome[name] - model[name])
            stays[GRADIENT + name] = before.get(name, np.float32(0)) - moved
    return stays


def _pull(request: Request, kept: Mapping[str, np.ndarray], shared: frozenset[str]) -> Pull:
    job, model = request.job, request.model
    parameters = job.aggregation.known_parameters
    if isinstance(parameters, Scaffold):
        own = _named(kept, CONTROL)
        zero = np.float32(0)
        return Pull(offset={
            name: np.asarray(request.control.get(name, zero) - own.get(name, zero))
            for name in sorted(shared)
            if name in own or name in request.control
        })  # fmt: skip
    anchor = {name: model[name] for name in sorted(shared)}
    if isinstance(parameters, FedDyn):
        return Pull(parameters.alpha, anchor, {name: -tensor for name, tensor in _named(kept, GRADIENT).items()})
    return towards(job, anchor)


def keeps_something(job: Job, local: frozenset[str]) -> bool:
    """Return whether a site keeps anything of its own between the rounds of this job."""
    return bool(local) or isinstance(job.aggregation.known_parameters, Scaffold | FedDyn | Ditto)


def _named(kept: Mapping[str, np.ndarray], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}
