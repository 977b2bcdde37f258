"""A scenario's file: what is wrong in it is said in one line, before anything is trained."""

from __future__ import annotations

import pytest

from common.errors import UsageError
from simulations.arms import expand
from simulations.scenario import read_scenario
from simulations.simulate_cli import SHIPPED
from simulations.trial import Preparation

PLAIN = """\
name = "study"
seeds = [0, 1]
[source]
kind = "phantoms"
patients = 40
[partition]
sites = 2
[job.task]
labels = ["normal", "pneumonia"]
[job.data]
size = [16, 16]
[job.network]
parameters.width = 8
[job.training]
momentum = 0
[job.aggregation]
rounds = 2
[[arms]]
name = "FedAvg"
[[arms]]
name = "SCAFFOLD"
aggregation.strategy = "scaffold"
"""


@pytest.fixture
def read(tmp_path):
    def reads(text):
        path = tmp_path / "study.toml"
        path.write_text(text)
        return read_scenario(path)

    return reads


@pytest.fixture
def prepare(read, tmp_path):
    def prepares(text):
        file = read(text)
        preparation = Preparation(file, tmp_path / "out")
        return [preparation.ready(cell) for cell in expand(file)]

    return prepares


def test_every_arm_is_run_at_every_point_with_every_seed(read):
    file = read(PLAIN + '[grid]\n"training.learning_rate" = [0.1, 0.2]\n"partition.alpha" = [1.0]\n')
    cells = expand(file)
    assert len(cells) == 2 * 2 * 2
    assert {cell.arm for cell in expand(file, ["SCAFFOLD"])} == {"SCAFFOLD"}
    assert cells[1].job["training"] == {"momentum": 0, "learning_rate": 0.2}
    assert cells[0].title == "FedAvg, learning_rate = 0.1, partition/alpha = 1"


def test_an_arm_may_have_a_grid_of_its_own(read):
    text = PLAIN + 'grid."aggregation.parameters.eta" = [0.5, 1.0]\n'
    assert [dict(cell.varied) for cell in expand(read(text)) if cell.seed == 0] == [
        {}, {"aggregation.parameters.eta": 0.5}, {"aggregation.parameters.eta": 1.0},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seeds = [0, 1]", "sedes = [0]", r'study.toml:2: unknown key "sedes"; did you mean "seeds"'),
        ("patients = 40", 'patients = "many"', r'study.toml:5: "source.patients"'),
        ("sites = 2", 'kind = "column"', r"study.toml:6: .*column"),
        ("sites = 2", "sites = 2\nsizes = [1, 2, 3]", r"sites is 2, but sizes has 3"),
        ('name = "SCAFFOLD"', 'name = "FedAvg"', r"two arms have the same name"),
        ('name = "SCAFFOLD"', 'name = "x"\npooled = true\nlocal = true', r"pooled or local, not both"),
        ("[[arms]]", "[faults.lightning]\nshare = 0.5\n[[arms]]", r"study.toml:\d+: .*lightning"),
        ("[[arms]]", "[faults.poison]\nstrength = 2\n[[arms]]", r"share, or sites"),
        ("[job.task]", "[job.sites]\n[job.task]", r'unknown key "job.sites"'),
        ("name = ", "name = [", r"not valid TOML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line(read, before, after, said):
    with pytest.raises(UsageError, match=said):
        read(PLAIN.replace(before, after, 1))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            '[grid]\n"training.learning_rat" = [1]',
            r'study.toml:24: .*"training.learning_rat".*"training.learning_rate"',
        ),
        ('[grid]\n"alpha" = [1]', r'"partition.alpha"'),
        ('[grid]\n"training.learning_rate" = []', r"study.toml:24: the grid has no value"),
        ('[grid]\n"partition.alpha" = [-1]', r'arm "FedAvg": \[partition\].*alpha'),
    ],
)
def test_a_grid_key_that_nothing_has_is_named(read, more, said):
    with pytest.raises(UsageError, match=said):
        expand(read(PLAIN + more))


def test_an_arm_that_there_is_not_is_named(read):
    with pytest.raises(UsageError, match='no arm "FedAvgg": did you mean "FedAvg"'):
        expand(read(PLAIN), ["FedAvgg"])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("momentum = 0", "momentun = 0", r'study.toml:15: arm "FedAvg": unknown key "training.momentun"'),
        ("momentum = 0", "momentum = 0.9", r'study.toml:20: arm "SCAFFOLD": .*plain SGD'),
        ('strategy = "scaffold"', 'strategy = "scafold"', r'arm "SCAFFOLD": .*scafold'),
        ('strategy = "scaffold"', "parameters.eta = 1", r'study.toml:22: .*strategy "fedavg" has no such parameter'),
        ("sites = 2", "sites = 41", r'arm "FedAvg": partition asks for 41 hospitals .* has 40'),
        ("sites = 2", 'kind = "column"\ncolumn = "ward"', r'has no column "ward": there are none'),
        ('"pneumonia"]', '"cough"]', r"job.task.labels must be"),
        ('kind = "phantoms"', 'kind = "npz"\npath = "x.npz"', r'there is no "x.npz"'),
        ("[[arms]]", '[faults.poison]\nsites = ["nowhere"]\n[[arms]]', r'faults.poison.sites: .*no hospital "nowhere"'),
        ("[[arms]]", '[judge]\nmodel = "best"\n[[arms]]', r"set source.validation"),
        ("width = 8", "widht = 8", r'no parameter "widht": did you mean "width"'),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_trained(prepare, before, after, said):
    with pytest.raises(UsageError, match=said) as told:
        prepare(PLAIN.replace(before, after, 1))
    assert "\n" not in str(told.value)


def test_a_run_is_known_by_all_that_decides_it_and_by_nothing_else(prepare):
    usual = [ready.digest for ready in prepare(PLAIN)]
    assert len(set(usual)) == 4
    assert [ready.digest for ready in prepare(PLAIN.replace('"FedAvg"', '"another name"'))] == usual
    spelt_out = PLAIN.replace("rounds = 2", 'rounds = 2\nstrategy = "fedavg"', 1)
    assert [ready.digest for ready in prepare(spelt_out)] == usual
    for before, after in (
        ("patients = 40", "patients = 41"),
        ("sites = 2", "sites = 3"),
        ("rounds = 2", "rounds = 3"),
        ("[[arms]]", "[faults.poison]\nshare = 0.5\n[[arms]]"),
        ("[[arms]]", "[late]\nround = 2\nshare = 0.5\n[[arms]]"),
        ("[[arms]]", "[scanners]\ngain = 0.5\n[[arms]]"),
    ):
        assert not set(usual) & {ready.digest for ready in prepare(PLAIN.replace(before, after, 1))}


def test_privacy_that_is_off_makes_no_other_run(prepare):
    ready = prepare(PLAIN + '[grid]\n"privacy.epsilon" = [1.0, 2.0]\n')
    assert ready[0].digest == ready[1].digest


def test_shares_of_faults_and_of_latecomers_are_drawn_from_the_seed(prepare):
    text = PLAIN.replace("sites = 2", "sites = 10").replace(
        "[[arms]]", "[faults.poison]\nshare = 0.3\nstrength = 4\n[late]\nshare = 0.2\nround = 2\n[[arms]]", 1
    )
    first, again = prepare(text), prepare(text)
    assert [len(ready.faults[0].sites) for ready in first] == [3] * 4
    assert [len(ready.joins) for ready in first] == [2] * 4
    assert [ready.faults for ready in first] == [ready.faults for ready in again]
    assert first[0].faults[0].sites == first[1].faults[0].sites  # the same hospitals for both strategies


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_scenario_is_whole(path):
    file = read_scenario(path)
    assert file.scenario.name == path.stem
    assert file.scenario.description
    assert file.scenario.expected
    assert expand(file)
