"""`wardround simulate` as a researcher uses it: run, stop, go on, read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from common.cli import main
from simulations.results import Store

SMALL = """\
name = "small"
description = "A small study."
seeds = [0, 1]
[source]
kind = "phantoms"
patients = 60
[partition]
sites = 2
[judge]
every = 1
[job.task]
labels = ["normal", "pneumonia"]
[job.data]
size = [16, 16]
[job.network]
parameters.width = 8
[job.training]
momentum = 0
batch_size = 16
[job.aggregation]
rounds = 3
[[arms]]
name = "FedAvg"
[[arms]]
name = "Ditto"
aggregation.strategy = "ditto"
[[arms]]
name = "pooled"
pooled = true
[[arms]]
name = "alone"
local = true
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def wardround(capsys, *arguments):
    """Run the command; return its exit code, what it printed, and what it complained of."""
    try:
        main(["simulate", *arguments])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_study_ends_in_tables_figures_and_a_report_and_is_not_run_twice(place, capsys):
    code, out, _ = wardround(capsys, "small.toml", "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["runs"], told["done"], told["ran"], told["failed"]) == (8, 8, 8, 0)
    assert [line["arm"] for line in told["summary"]] == ["FedAvg", "Ditto", "pooled", "alone"]
    assert told["summary"][0]["megabytes"] > 0
    for name in (
        "report.html",
        "summary.md",
        "results.parquet",
        "results.csv",
        "runs.csv",
        "plots/learning-curves.png",
    ):
        assert (place / "results" / "small" / name).stat().st_size > 100
    before = {path: path.stat().st_mtime_ns for path in place.glob("results/runs/*/result.json")}
    code, out, _ = wardround(capsys, "small.toml", "--json")
    again = json.loads(out)
    assert again.pop("ran") == 0
    told.pop("ran")
    assert again == told
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_wider_study_runs_only_what_is_missing(place, capsys):
    wardround(capsys, "small.toml", "--only", "FedAvg")
    (place / "small.toml").write_text(SMALL.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    _, out, _ = wardround(capsys, "small.toml", "--only", "FedAvg", "--json")
    assert (json.loads(out)["ran"], json.loads(out)["done"], json.loads(out)["runs"]) == (1, 3, 12)


def test_two_folders_come_to_the_same_bits(place, capsys):
    for name in ("one", "two"):
        wardround(capsys, "small.toml", "--only", "FedAvg", "--out", name)
    for path in (place / "one").glob("runs/*/model.safetensors"):
        one, two = load_file(path), load_file(place / "two" / path.relative_to(place / "one"))
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert (place / "one/small/results.csv").read_bytes() == (place / "two/small/results.csv").read_bytes()


def test_learning_curves_of_personal_models_have_every_point(place, capsys):
    wardround(capsys, "small.toml", "--only", "Ditto", "--only", "alone")
    for result in map(json.loads, (path.read_text() for path in place.glob("results/runs/*/result.json"))):
        assert {row[0] for row in result["rows"]} == {1, 2, 3}


def test_faults_and_latecomers_go_through(place, capsys):
    text = SMALL.split("[[arms]]")[0].replace("sites = 2", "sites = 4").replace("seeds = [0, 1]", "seeds = [0]")
    text += (
        '[faults.poison]\nshare = 0.25\nstrength = 3\n[faults.label-flip]\nsites = ["site-2"]\nstrength = 0.5\n'
        '[faults.drop-out]\nsites = ["site-3"]\nstrength = 0.5\n[late]\nsites = ["site-4"]\nround = 3\n'
        '[scanners]\ngain = 0.3\nblur = 1.0\nnoise = 0.05\n[[arms]]\nname = "FedAvg"\n'
    )
    (place / "small.toml").write_text(text)
    code, _, _ = wardround(capsys, "small.toml")
    assert code == 0
    rounds = json.loads(next(place.glob("results/runs/*/result.json")).read_text())["rounds"]
    assert rounds[0][4] <= 3 <= rounds[2][4]


def test_a_run_that_fails_is_a_result_and_ends_with_its_exit_code(place, capsys):
    nobody = SMALL.replace("seeds = [0, 1]", "seeds = [0]") + "\n[faults.drop-out]\nshare = 1.0\nstrength = 1.0\n"
    (place / "small.toml").write_text(nobody)
    code, _, err = wardround(capsys, "small.toml", "--only", "FedAvg")
    assert code == 7
    assert "Runs that failed" in (place / "results" / "small" / "summary.md").read_text()
    assert err.strip().splitlines()[-1].startswith("wardround: 1 of 1 runs failed")


def test_stopping_keeps_what_is_done_and_the_same_command_goes_on(place, capsys):
    (place / "small.toml").write_text(SMALL.replace("rounds = 3", "rounds = 40").replace("[0, 1]", "[0, 1, 2, 3]"))
    command = [
        sys.executable,
        "-c",
        "from common.cli import main; main()",
        "simulate",
        "small.toml",
        "--only",
        "FedAvg",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as run:
        ends = time.monotonic() + 600
        while not list(place.glob("results/runs/*/result.json")) and time.monotonic() < ends:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        err = run.communicate(timeout=300)[1]
    assert run.returncode == 130
    assert "Traceback" not in err
    done = len(list(place.glob("results/runs/*/result.json")))
    assert f"Stopped: {done} of 16 runs are done and kept" in err
    assert 1 <= done < 4
    assert (place / "results" / "small" / "report.html").exists()
    _, out, _ = wardround(capsys, "small.toml", "--only", "FedAvg", "--json")
    assert json.loads(out)["ran"] == 4 - done


def test_two_at_once_in_the_same_folder_do_not_disturb_each_other(place, capsys):
    with Store(place / "results").alone():
        code, _, err = wardround(capsys, "small.toml")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "another `wardround simulate` is at work there" in err
    assert not (place / "results" / "runs").exists()


def test_shipped_scenarios_are_listed_each_with_what_comes_out(capsys):
    code, out, _ = wardround(capsys, "--list")
    assert code == 0
    assert out.count("Expected:") >= 8
    names = [scenario["name"] for scenario in json.loads(wardround(capsys, "--list", "--json")[1])]
    assert "first-steps" in names
    assert all(name in out for name in names)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "name a scenario"),
        (("first-step",), 2, 'did you mean "first-steps"?'),
        (("nothing.toml",), 2, "nothing.toml: the scenario can't be read"),
        (("small.toml", "--only", "FedAvgg"), 2, 'did you mean "FedAvg"'),
    ],
)
def test_bad_usage_gets_one_line(place, capsys, arguments, code, said):
    found, _, err = wardround(capsys, *arguments)
    assert found == code
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_data_that_is_not_there_is_named_with_where_it_was_looked_for(place, capsys, monkeypatch):
    monkeypatch.delenv("WARDROUND_DATA", raising=False)
    code, _, err = wardround(capsys, "heart-disease")
    assert code == 2
    assert 'there is no "heart_disease"' in err
    assert "set WARDROUND_DATA" in err


def test_runs_can_be_logged_to_mlflow_and_tensorboard(place, capsys):
    mlflow = pytest.importorskip("mlflow.tracking", reason="the extra tracking is not installed")
    pytest.importorskip("tensorboard", reason="the extra tracking is not installed")
    for _ in range(2):  # nothing is logged twice
        code, _, _ = wardround(capsys, "small.toml", "--only", "FedAvg", "--mlflow", "ml", "--tensorboard", "tb")
        assert code == 0
    client = mlflow.MlflowClient(tracking_uri=(place / "ml").as_uri())
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["seed"] for run in runs) == ["0", "1"]
    assert [point.step for point in client.get_metric_history(runs[0].info.run_id, "pooled/auc")] == [1, 2, 3]
    assert len(list((place / "tb").rglob("events.out.tfevents.*"))) == 2


@pytest.mark.parametrize(("option", "module"), [("--mlflow", "mlflow"), ("--tensorboard", "tensorboard")])
def test_a_tracker_that_is_not_installed_is_said_before_anything_runs(place, capsys, monkeypatch, option, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module or name == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = wardround(capsys, "small.toml", option, "folder")
    assert code == 2
    assert "pip install 'wardround[tracking]'" in err
    assert not (place / "results").exists()


def test_tables_and_arrays_of_ones_own_are_sources(place, capsys):
    rows = ["age,pulse,ward,outcome"]
    rows += [f"{40 + number % 40},{60 + 30 * (number % 2)},{'ab'[number % 3 == 0]},{'sick' if number % 2 else 'well'}"
             for number in range(120)]  # fmt: skip
    (place / "patients.csv").write_text("\n".join(rows) + "\n")
    (place / "t.toml").write_text(
        'name = "t"\n[source]\nkind = "table"\npath = "patients.csv"\nlabel = "outcome"\n[partition]\nkind = "column"\n'
        'column = "ward"\n[job.task]\nlabels = ["well", "sick"]\n[job.data]\nfeatures = ["age", "pulse"]\n'
        'scale = "site"\n[job.network]\nname = "linear"\n'
        "[job.training]\nlearning_rate = 0.5\nbatch_size = 8\n"
        '[job.aggregation]\nrounds = 8\n[[arms]]\nname = "FedAvg"\n'
    )
    code, out, _ = wardround(capsys, "t.toml", "--json")
    assert code == 0
    assert json.loads(out)["summary"][0]["mean"] > 0.95
