"""What pages and the API read: truthful, the same as the registry, and no more work than what has changed."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playground import PlaygroundGrid, exact, job_of, model_of

from common.errors import NotFoundError, RunError
from common.job import parse_job
from common.kit import Kit
from server.execution import execute
from server.readmodel import ReadModel, site_state
from server.records import RoundRecord, SiteRound, SiteSeen
from server.runlog import logged
from server.views import round_line


@pytest.fixture
def read(registry, tmp_path):
    folder = tmp_path / "kit"
    (folder / "roster").mkdir(parents=True)
    return ReadModel(registry, Kit(folder, "coordinator", "coordinator", "chest-study", "0" * 64, "localhost:9092"))


@pytest.fixture
def ended(registry, federation):
    return run(registry, job_of(), federation)


def run(registry, job, sites):
    name = registry.submit(job, model_of())
    registry.claim()
    grid = PlaygroundGrid(sites)
    with logged(registry, name):
        execute(registry, name, grid, lambda: grid.node_ids)
    return name


def test_a_run_is_shown_with_its_rounds_sites_models_and_job(read, ended):
    view = read.run(ended)
    assert (view.line.status, view.line.done, view.line.sites, view.line.strategy) == ("completed", 3, 3, "fedavg")
    assert [one.kind for one in view.rounds] == ["consent", "train", "train", "train", "validation", "test"]
    assert [turn.site for turn in view.rounds[1].turns] == ["north", "south", "west"]
    assert all(turn.norm > 0 for turn in view.rounds[1].turns)
    assert view.rounds[1].phases.aggregate > 0
    assert {model.kind for model in view.models} == {"best", "last"}
    assert parse_job(view.toml) == view.job


def test_nothing_is_read_again_while_nothing_changes_and_all_is_new_when_something_did(read, registry, federation):
    name = run(registry, job_of(), federation)
    before = read.run(name)
    version = read.version()
    assert read.run(name) is before
    assert read.version() == version
    other = run(registry, job_of(), federation)
    assert read.version() > version
    assert [line.name for line in read.runs().items] == [other, name]
    assert read.run(name).rounds == before.rounds


def test_a_round_that_is_committed_while_a_page_is_open_is_added_and_a_replaced_one_is_replaced(read, registry):
    name = registry.submit(job_of(), model_of())
    recorder = registry.recorder(name)
    rows = (SiteRound("north", "evaluated"),)
    record = RoundRecord("validation", 3, 1, "evaluated", rows, started=1.0)
    recorder.commit(replace(record, kind="consent", number=0, status="asked"), None, None)
    assert len(read.run(name).rounds) == 1
    recorder.commit(record, None, None)
    assert [one.score for one in read.run(name).rounds] == [None, None]
    recorder.commit(replace(record, score=0.75), None, None)  # made again by a run that was cut off there
    assert [one.score for one in read.run(name).rounds] == [None, 0.75]


def test_runs_are_found_by_name_strategy_and_status_and_are_paged(read, registry, federation):
    names = [run(registry, job_of(), federation) for _ in range(3)]
    assert read.runs(limit=2).total == 3
    assert [line.name for line in read.runs(offset=2, limit=2).items] == [names[0]]
    assert read.runs(text=names[1][-6:]).items[0].name == names[1]
    assert read.runs(text="fedav").total == 3
    assert read.runs(text="%").total == read.runs(text="fed_vg").total == read.runs(status="failed").total == 0


def test_models_have_stages_with_who_and_when_once_their_run_has_ended(read, registry, ended):
    best = read.models().items[0]
    assert best.stage == "candidate"
    registry.set_stage(best.id, "approved", by="ada", note="reviewed on 3 May")
    changed = read.model(best.id)
    assert changed.line.stage == "approved"
    assert changed.line.changes[0].by == "ada"
    assert time.time() - changed.line.changes[0].at < 60
    assert read.models(stage="approved").total >= 1
    with pytest.raises(NotFoundError):
        registry.set_stage(10**6, "approved", by="ada")
    queued = registry.submit(job_of(), model_of())
    assert read.run(queued).models == ()  # a model that a run may still replace is not listed


def test_a_model_of_a_run_under_way_takes_no_stage(registry, read, ended):
    best = read.models().items[0]
    with registry.database.write() as connection:
        connection.exec_driver_sql("UPDATE runs SET status = 'running'")
    with pytest.raises(RunError, match="once it has ended"):
        registry.set_stage(best.id, "approved", by="ada")


def test_the_card_tells_results_by_site_privacy_and_limits(read, ended):
    best = next(model for model in read.models().items if model.kind == "best")
    card = read.card(best.id)
    for text in ("| north | 2,400 |", "| all sites |", "No differential privacy", best.sha256, "no\nmedical device"):
        assert text in card


def test_results_by_group_are_of_each_site_and_of_all_weighted_by_the_groups_patients(read, registry, federation):
    def telling(site, patients, auc):
        def answer(request):
            told = site(request)
            if request.kind != "evaluate" or request.split != "test":
                return told
            groups = {"eval.sex.0.patients": patients, "eval.sex.0.auc": auc, "eval.sex.0.auc_low": auc - 0.1,
                      "eval.sex.0.auc_high": auc + 0.1}  # fmt: skip
            return replace(told, numbers=exact(told.metrics | groups))

        return answer

    asked = job_of()
    asked = asked.model_copy(update={"task": asked.task.model_copy(update={"subgroups": ("sex",)})})
    sites = federation | {
        "north": telling(federation["north"], 30, 0.9),
        "south": telling(federation["south"], 10, 0.7),
    }
    name = run(registry, asked, sites)
    best = next(model for model in read.models(text=name).items if model.kind == "best")
    groups = read.model(best.id).groups
    assert set(groups) == {("sex", 0)}
    assert set(groups["sex", 0]) == {"", "north", "south"}
    assert groups["sex", 0][""]["auc"].value == pytest.approx(0.85)
    assert groups["sex", 0][""]["patients"].value == 40
    assert 0.75 < groups["sex", 0][""]["auc"].low < 0.85  # surer than either site alone
    assert all("." not in metric for metric in read.model(best.id).metrics["north"])
    card = read.card(best.id)
    assert "| sex: F | 40 | 0.850 (" in card
    assert "| sex: F | 0.900 (0.800 to 1.000) | 0.700 (0.600 to 0.800) | - |" in card


def test_a_card_without_groups_says_whether_they_were_asked_for(read, registry, federation, ended):
    best = next(model for model in read.models().items if model.kind == "best")
    assert "the job did not ask for them" in read.card(best.id)
    asked = job_of()
    asked = asked.model_copy(update={"task": asked.task.model_copy(update={"subgroups": ("age",)})})
    name = run(registry, asked, federation)
    told = read.card(read.models(text=name).items[0].id)
    assert "Results by age were asked for, but no site could tell any" in told


def test_the_log_of_a_run_is_its_own_and_is_followed_line_by_line(read, registry, federation, caplog):
    caplog.set_level(logging.INFO, "wardround")
    ended = run(registry, job_of(), federation)
    lines = read.log(ended)
    assert any("round 1: 3 sites aggregated" in line.text for line in lines)
    assert read.log() == ()
    with logged(registry, ended):
        logging.getLogger("wardround.rounds").warning("one more")
    assert [line.text for line in read.log(ended, after=lines[-1].id)] == ["one more"]


def test_two_jobs_differ_in_the_keys_that_differ(read, registry, federation):
    one = registry.submit(job_of(), model_of())
    other = registry.submit(job_of(aggregation="rounds = 7"), model_of())
    assert read.diff(one, other) == (("aggregation.rounds", "3", "7"),)


SEEN = SiteSeen("north", None, True, 1.0)


@pytest.mark.parametrize(
    ("seen", "alive", "progress", "status", "state"),
    [
        (replace(SEEN, last_seen=None), True, None, None, "never seen"),
        (replace(SEEN, online=False), True, None, None, "away"),
        (SEEN, False, None, None, "away"),
        (SEEN, True, {"kind": "train", "number": 2, "waiting": ["north"]}, None, "training"),
        (SEEN, True, {"kind": "consent", "waiting": [], "done": {"north": "waiting"}}, None, "waiting"),
        (SEEN, True, None, "refused", "refused"),
        (SEEN, True, None, "late", "late"),
        (SEEN, True, None, "aggregated", "online"),
        (SEEN, True, None, None, "online"),
    ],
)
def test_a_site_is_in_the_state_that_people_would_call_it(seen, alive, progress, status, state):
    record = RoundRecord("train", 1, 1, "aggregated", (SiteRound("north", status or "late"),))
    latest = ("chest-1", record, 0) if status else None
    assert site_state(seen, alive, progress, latest)[0] == state


def test_an_update_far_from_the_others_is_flagged():
    rows = tuple(SiteRound(f"s{number}", "aggregated", norm=norm) for number, norm in enumerate((1.0, 1.1, 0.9, 8.0)))
    line = round_line("run", RoundRecord("train", 1, 1, "aggregated", rows))
    assert [bool(turn.flagged) for turn in line.turns] == [False, False, False, True]


numbers = st.floats(0, 1)


@given(st.lists(st.tuples(numbers, numbers, st.integers(1, 1000)), min_size=1, max_size=5))
def test_all_sites_together_are_within_the_sites_and_surer_than_the_least_sure(parts):
    rows = tuple(
        SiteRound(
            f"s{number}",
            "evaluated",
            metrics={
                "eval.auc": value,
                "eval.auc_low": value - reach / 9,
                "eval.auc_high": value + reach / 9,
                "eval.patients": n,
            },
        )
        for number, (value, reach, n) in enumerate(parts)
    )
    found = round_line("run", RoundRecord("test", 1, 1, "evaluated", rows)).metrics["auc"]
    assert min(value for value, _, _ in parts) - 1e-9 <= found.value <= max(value for value, _, _ in parts) + 1e-9
    assert found.high - found.low <= 2 * max(reach for _, reach, _ in parts) / 9 + 1e-9
