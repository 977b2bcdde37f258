"""Another package brings a network, a task and a strategy: a job names them like any other."""

import sys

import pytest
from small_federation import job, population, same

from common.errors import JobError
from common.networks import build_network
from server.strategies.registry import build_strategy
from simulations.engine import simulate

CODE = """
from common.architectures import NETWORKS
from common.tasks.classification import Classification
from server.strategies.fedavg import FedAvg

network = NETWORKS["small-cnn"]


class Grading(Classification):
    pass


class Theirs(FedAvg):
    name = "theirs"
"""
POINTS = """
[wardround.networks]
their-net = grading_by_them:network
broken-net = grading_by_them:nothing

[wardround.tasks]
grading = grading_by_them:Grading

[wardround.strategies]
theirs = grading_by_them:Theirs
gone = a_package_that_is_not_there:Strategy
"""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """A package as pip leaves it: its module, and the metadata beside it."""
    (tmp_path / "grading_by_them.py").write_text(CODE)
    described = tmp_path / "grading_by_them-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: grading-by-them\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("grading_by_them", None)


def named(network="small-cnn", task="classification", strategy="fedavg"):
    plain = job(strategy, sites=("alder", "birch"), rounds=1)
    parts = plain.model_dump(mode="json")
    parts["network"]["name"], parts["task"]["kind"] = network, task
    return type(plain).model_validate(parts)


def test_a_federation_trains_with_a_network_a_task_and_a_strategy_of_another_package():
    people = population(("alder", "birch"))
    theirs = simulate(named("their-net", "grading", "theirs"), people)
    assert same(theirs.model, simulate(named(), people).model)


@pytest.mark.parametrize(
    ("build", "wanted", "name"),
    [(build_network, {"network": "broken-net"}, "broken-net"), (build_strategy, {"strategy": "gone"}, "gone")],
)
def test_a_package_that_is_broken_is_named_in_one_line(build, wanted, name):
    with pytest.raises(JobError, match=rf'"{name}" .* of grading-by-them can.t be loaded') as told:
        build(named(**wanted))
    assert "\n" not in str(told.value)
