"""The parameters of each strategy, by the symbols of the papers: the part of a strategy that both sides must agree on.

What a strategy does with them stands in `server/strategies` (and what a site does, in `client/methods.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationError

from common.faults import explain_parameter
from common.section import Section


class Parameters(Section):
    """No parameters; and what kind of strategy it is.

    `proximal`: whether sites may add FedProx's pull, `aggregation.proximal_mu`. `keeps`: which layers stay at each site
    unless the job names them itself.
    """

    proximal: ClassVar[bool] = True
    keeps: ClassVar[str] = ""
    plain_steps: ClassVar[bool] = False
    """Whether the formula holds for plain SGD only: no momentum, no AdamW, no mean of weights."""


class FedAvg(Parameters):
    """McMahan et al. 2017."""

    proximal: ClassVar[bool] = False


class FedProx(Parameters):
    """Li et al. 2020; its mu is `aggregation.proximal_mu`."""


class FedAvgM(Parameters):
    """Hsu, Qi and Brown 2019."""

    eta: float = Field(1.0, gt=0, le=100, description="server's step size")
    beta: float = Field(0.9, ge=0, lt=1, description="server's momentum")


class Adaptive(Parameters):
    """Reddi et al. 2021."""

    eta: float = Field(0.01, gt=0, le=100, description="server's step size")
    beta_1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta_2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    tau: float = Field(1e-3, gt=0, le=1, description="degree of adaptivity: added to the root of the second moment")


class FedAdagrad(Parameters):
    """Reddi et al. 2021."""

    eta: float = Field(0.01, gt=0, le=100, description="server's step size")
    beta_1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment")
    tau: float = Field(1e-3, gt=0, le=1, description="degree of adaptivity: added to the root of the second moment")


class Scaffold(Parameters):
    """Karimireddy et al. 2020."""

    proximal: ClassVar[bool] = False
    plain_steps: ClassVar[bool] = True
    eta: float = Field(1.0, gt=0, le=100, description="server's step size")


class FedNova(Parameters):
    """Wang et al. 2020."""


class FedDyn(Parameters):
    """Acar et al. 2021."""

    proximal: ClassVar[bool] = False
    alpha: float = Field(0.01, gt=0, le=1000, description="weight of the dynamic regulariser")


class FedBN(Parameters):
    """Li et al. 2021: normalisation layers stay at each site."""

    keeps: ClassVar[str] = "normalisation"


class Ditto(Parameters):
    """Li et al. 2021: each site also trains a model of its own, pulled to the global one."""

    lambda_: float = Field(0.1, ge=0, le=1e6, alias="lambda", description="weight of the pull to the global model")


class FedRep(Parameters):
    """Collins et al. 2021: a common representation, each site its own head."""

    keeps: ClassVar[str] = "head"
    head_steps: int | None = Field(None, ge=1, description="steps of the head before the body's (default: as many)")


class QFedAvg(Parameters):
    """Li et al. 2020, q-FFL."""

    q: float = Field(1.0, ge=0, le=10, description="fairness: 0 is FedAvg, the more the evener the losses")


class Median(Parameters):
    """Yin et al. 2018."""


class TrimmedMean(Parameters):
    """Yin et al. 2018."""

    beta: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="share of each coordinate's values cut off at each end, rounded up to whole updates",
    )


class Krum(Parameters):
    """Blanchard et al. 2017."""

    f: int = Field(1, ge=0, description="how many sites may lie")


class MultiKrum(Krum):
    """Blanchard et al. 2017: the mean of the best."""

    m: int | None = Field(None, ge=1, description="how many updates are averaged (default: all but f)")


class Bulyan(Krum):
    """El Mhamdi et al. 2018."""


class NormBound(Parameters):
    """Sun et al. 2019."""

    bound: float = Field(1.0, gt=0, description="largest L2 norm of an update; longer ones are scaled down to it")


class FedBuff(Parameters):
    """Nguyen et al. 2022: asynchronous."""

    K: int = Field(10, ge=1, description="updates that make a new model")
    eta: float = Field(1.0, gt=0, le=100, description="server's step size")
    a: float = Field(0.5, ge=0, le=10, description="an update that is s models old counts by (1 + s)^-a")


class Cyclic(Parameters):
    """Chang et al. 2018."""

    shuffle: bool = Field(False, description="whether each cycle has an order of its own, drawn from the seed")


PARAMETERS: dict[str, type[Parameters]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": Adaptive,
    "fedyogi": Adaptive,
    "fedadagrad": FedAdagrad,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "fedbn": FedBN,
    "ditto": Ditto,
    "fedrep": FedRep,
    "qfedavg": QFedAvg,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "bulyan": Bulyan,
    "norm-bound": NormBound,
    "fedbuff": FedBuff,
    "cyclic": Cyclic,
}
"""The strategies that come with Ward Round. One from elsewhere checks its parameters itself."""


def read_parameters(strategy: str, given: dict[str, Any], proximal_mu: float) -> Parameters:
    """Return a strategy's parameters, defaults filled in; of one that is not in the table, none.

    Raises
    ------
    ValueError
        An unknown parameter (the message has the nearest right one), a wrong value, or a pull that does not belong to
        the strategy.
    """
    kind = PARAMETERS.get(strategy)
    if kind is None:
        return Parameters()
    if proximal_mu > 0 and not kind.proximal:
        raise ValueError(
            f'"proximal_mu" is {proximal_mu:g}, but strategy "{strategy}" has no proximal term: '
            'set strategy = "fedprox", or leave proximal_mu out'
        )
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ValueError(explain_parameter(error, f'strategy "{strategy}"', kind)) from None


def parameters_of(kind: type[Section]) -> list[tuple[str, str, str]]:
    """Return a strategy's or a task's parameters: symbol, default as TOML has it ("" for none), meaning."""
    return [
        (field.alias or name, _toml(field.get_default()), field.description or "")
        for name, field in kind.model_fields.items()
    ]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
