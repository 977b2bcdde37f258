"""Asking for a run: what is wrong is said at once, and nothing of it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from playground import NamelessGrid, model_of
from safetensors.numpy import save_file
from typer.testing import CliRunner

from certs.admission import admit
from certs.enrol import enrol
from certs.kits import create_kits
from common.errors import JobError, UpdateError
from common.federation import read_federation
from common.job import parse_job
from common.kit import read_kit
from common.networks import initial_model
from server import app, cli
from server.modelfiles import read_checkpoint
from server.registry import Registry, open_registry
from server.submission import submit_job

FEDERATION = 'name = "study"\n[coordinator]\naddress = "127.0.0.1:9"\n' + "".join(
    f'[[sites]]\nname = "{name}"\n' for name in ("north", "south")
)
JOB = """name = "chest"
sites = ["north", "south"]
[task]
labels = ["normal", "pneumonia"]
[data]
collection = "chest"
size = [28, 28]
[aggregation]
rounds = 2
"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    kits = create_kits(read_federation(tmp_path / "federation.toml"), tmp_path / "kits")
    for name in ("north", "south"):
        admit(kits, enrol(read_kit(kits / "sites" / name, "site")))
    return kits / "coordinator"


def run(kit: Path, text: str, *options: str):
    (kit / "job.toml").write_text(text)
    result = CliRunner().invoke(cli.run, [str(kit / "job.toml"), "--kit", str(kit), *options])
    if result.exception is not None:
        raise result.exception
    return result


def registry_of(kit: Path) -> Registry:
    return open_registry(read_kit(kit, "coordinator"))


def test_a_run_that_is_asked_for_waits_in_the_registry_with_its_first_model(kit):
    result = run(kit, JOB, "--json")
    name = json.loads(result.stdout)["run"]
    assert "the coordinator is not running" in result.stderr
    detail = registry_of(kit).run_detail(name)
    assert (detail.summary.status, detail.summary.digest) == ("queued", parse_job(JOB).digest)
    first = read_checkpoint(Path(detail.models[0].path), initial_model(parse_job(JOB)))
    assert all(first[key].tobytes() == tensor.tobytes() for key, tensor in initial_model(parse_job(JOB)).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"south"', '"sout"'), 'no site "sout" is admitted to this federation: did you mean "south"'),
        (("rounds = 2", 'strategy = "fedpro"'), 'unknown strategy "fedpro": did you mean "fedprox"'),
        (("rounds = 2", "proximal_mu = 0.1"), 'strategy "fedavg" has no proximal term'),
        (("rounds = 2", 'criterion = "auk"'), 'unknown metric "auk": did you mean "auc"'),
        (("[aggregation]", '[network]\nname = "densenet12"\n[aggregation]'), "densenet121"),
    ],
)
def test_a_job_that_can_not_run_is_refused_before_anything_is_kept(kit, change, message):
    with pytest.raises(JobError) as caught:
        run(kit, JOB.replace(*change))
    assert message in str(caught.value)
    assert registry_of(kit).list_runs() == []
    assert not (kit / "models").exists()


def test_a_run_starts_from_a_model_that_fits(kit):
    model = {name: tensor + 1 for name, tensor in initial_model(parse_job(JOB)).items()}
    save_file(model, kit / "start.safetensors")
    name = run(kit, JOB, "--from-model", str(kit / "start.safetensors")).stdout.strip()
    kept = registry_of(kit).start_of(name)[1].model
    assert all(kept[key].tobytes() == model[key].tobytes() for key in model)


def test_a_checkpoint_of_another_architecture_starts_nothing(kit):
    save_file(model_of(), kit / "start.safetensors")
    with pytest.raises(UpdateError, match="another architecture"):
        run(kit, JOB, "--from-model", str(kit / "start.safetensors"))
    assert registry_of(kit).list_runs() == []


def test_two_runs_of_one_job_have_two_names_and_one_digest(registry):
    names = [submit_job(registry, parse_job(JOB)) for _ in range(2)]
    assert len(set(names)) == 2
    assert len({registry.summary(name).digest for name in names}) == 1


def test_the_server_app_runs_the_job_of_the_run_config_and_keeps_its_results(tmp_path, federation):
    grid = NamelessGrid(federation)
    grid.claims = {name: name for name in federation}
    config = {"job": JOB, "output": str(tmp_path / "results")}
    app.main(grid, Context(1, 1, {}, RecordDict(), config))
    kept = Registry(f"sqlite:///{tmp_path / 'results' / 'registry.sqlite'}", tmp_path / "results" / "models")
    assert [(run.status, run.done) for run in kept.list_runs()] == [("completed", 2)]
    assert {site for site, _ in grid.asked} == {"north", "south"}
