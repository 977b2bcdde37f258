"""What a study's results say: tables that a statistician can read, and tests that say when they mean nothing."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common.errors import DataError
from simulations.arms import expand
from simulations.comparison import caution, compare, holm
from simulations.judge import Row
from simulations.results import RESULT, Result, Store, run_table, write_tables
from simulations.scenario import read_scenario
from simulations.simulation_report import write_results
from simulations.trial import Outcome, Round

TEXT = """\
name = "study"
description = "Is <b>this</b> better?"
seeds = [0, 1, 2, 3, 4, 5, 6, 7]
[source]
kind = "phantoms"
[job.task]
labels = ["normal", "pneumonia"]
[job.data]
size = [16, 16]
[[arms]]
name = "plain"
[[arms]]
name = "better"
[[arms]]
name = "same"
[grid]
"privacy.epsilon" = [1.0, 8.0]
"""
GAIN = {"plain": 0.0, "better": 0.1, "same": 0.0}


def outcome(value, *, failed=False):
    if failed:
        return Outcome("failed", "the model ran away")
    rows = [Row(number, scope, site, "auc", value - 0.1 / number, False)
            for number in (1, 2) for scope, site in (("pooled", ""), ("site", "a"), ("site", "b"))]  # fmt: skip
    rows += [Row(3, scope, site, "auc", value, True) for scope, site in (("pooled", ""), ("site", "a"), ("site", "b"))]
    rounds = tuple(Round(number, 500_000, 500_000, 0.1, 2, 0.5) for number in (1, 2, 3))
    return Outcome("completed", "", tuple(rows), rounds, epsilon=value, clock=3.0, seconds=1.0, kept_round=3)


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(TEXT)
    file = read_scenario(path)
    random = np.random.default_rng(0)
    noise = {seed: random.normal(0, 0.02) for seed in file.scenario.seeds}
    results = []
    for number, cell in enumerate(expand(file)):
        value = 0.7 + GAIN[cell.arm] + noise[cell.seed] + (random.normal(0, 0.01) if cell.arm != "plain" else 0)
        results.append(Result(cell, f"{number:064x}", outcome(value)))
    return file, results


def test_the_better_arm_is_told_from_the_same_one(study):
    _, results = study
    lines = {(line.arm, line.varied["privacy.epsilon"]): line for line in compare(results, "pooled", "auc", "plain")}
    assert lines["plain", 1.0].t is None
    assert lines["better", 1.0].difference == pytest.approx(0.1, abs=0.02)
    assert lines["better", 8.0].t < 0.01
    assert lines["better", 8.0].wilcoxon <= 0.04
    assert lines["same", 8.0].t > 0.1
    assert lines["plain", 8.0].megabytes == 3.0


def test_tests_are_paired_by_seed_and_adjusted_by_holm(study):
    _, results = study
    lines = compare(results, "pooled", "auc", "plain")
    raw = []
    for line in lines[2:]:
        first = next(one for one in lines if one.arm == "plain" and one.varied == line.varied)
        raw.append(stats.ttest_rel(list(line.values.values()), list(first.values.values())).pvalue)
    expected = np.array(holm(raw))
    assert np.allclose([line.t for line in lines[2:]], expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(values):
    adjusted = holm(values)
    assert all(value <= after <= 1 for value, after in zip(values, adjusted, strict=True))
    order = np.argsort(values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


def test_few_seeds_are_said_to_be_too_few(study):
    _, results = study
    few = [result for result in results if result.cell.seed < 3]
    assert "can't fall below 0.25" in caution(compare(few, "pooled", "auc", "plain"))
    assert "no test can be made" in caution(compare([r for r in few if r.cell.seed == 0], "pooled", "auc", "plain"))
    assert caution(compare(results, "pooled", "auc", "plain")) == ""


def test_a_run_that_failed_is_counted_and_does_not_enter_the_mean(study):
    _, results = study
    results[0] = Result(results[0].cell, results[0].digest, outcome(0, failed=True))
    line = compare(results, "pooled", "auc", "plain")[0]
    assert line.failed == 1
    assert len(line.values) == 7


def test_tables_are_tidy_and_the_same_in_both_formats(study, tmp_path):
    _, results = study
    write_tables(tmp_path / "out", results)
    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(table) == len(results) * 9
    assert set(table[0]) == {
        "arm", "kind", "seed", "privacy.epsilon", "round", "scope", "site", "metric", "value", "final",
    }  # fmt: skip
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in table]
    assert pq.read_table(tmp_path / "out" / "runs.parquet").to_pylist()[5]["pooled.auc"] == results[5].final(
        "pooled", "auc"
    )


def test_a_key_that_only_some_arms_vary_is_empty_for_the_others(study):
    _, results = study
    object.__setattr__(results[0].cell, "varied", {})
    assert run_table(results)[0]["privacy.epsilon"] is None


def test_a_kept_result_is_found_again_and_a_failed_one_is_to_be_tried_again(study, tmp_path):
    _, results = study
    store = Store(tmp_path / "out")
    store.keep(results[0].cell, "a" * 64, outcome(0.8))
    assert store.find("a" * 64) == outcome(0.8)
    store.keep(results[0].cell, "b" * 64, outcome(0, failed=True))
    assert store.find("b" * 64) is None
    assert store.find("c" * 64) is None


def test_a_damaged_result_is_named(study, tmp_path):
    _, results = study
    store = Store(tmp_path / "out")
    store.keep(results[0].cell, "a" * 64, outcome(0.8))
    path = tmp_path / "out" / "runs" / ("a" * 64) / RESULT
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=r"result.json: the result can't be read .*: remove its folder"):
        store.find("a" * 64)


def test_the_report_is_one_file_that_fetches_nothing(study, tmp_path):
    file, results = study
    write_results(tmp_path / "out", file, results)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "&lt;b&gt;this&lt;/b&gt;" in page
    links = [part.split('"')[0] for name in ('href="', 'src="', "url(") for part in page.split(name)[1:]]
    assert all(link.startswith("#") for link in links)
    names = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert names == {
        f"{stem}.{ending}"
        for stem in ("learning-curves", "communication-utility", "hospitals", "privacy-utility")
        for ending in ("png", "svg")
    }
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| better, epsilon = 8 |" in summary


def test_figures_of_the_same_results_are_the_same_bytes(study, tmp_path):
    file, results = study
    for name in ("one", "two"):
        write_results(tmp_path / name, file, results)
    for path in (tmp_path / "one" / "plots").glob("*.svg"):
        assert path.read_bytes() == (tmp_path / "two" / "plots" / path.name).read_bytes()


def test_results_say_what_they_were_of(study, tmp_path):
    _, results = study
    Store(tmp_path).keep(results[3].cell, results[3].digest, results[3].outcome)
    told = json.loads((tmp_path / "runs" / results[3].digest / RESULT).read_text())
    assert (told["arm"], told["seed"]) == (results[3].cell.arm, results[3].cell.seed)
