"""The data steward decides: hours, approvals and budgets stand before the data, and say what would fit."""

import datetime
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client.account import Account
from client.approvals import asked_jobs, decide, find_asked, require_approval
from client.budget import budgets, check_run, largest_further_run
from client.cli import app
from client.policy import FILE_NAME, Policy, change_policy, check_hours, policy_text, read_policy
from client.privacy.ledger import Entry, Ledger
from client.training import Plan
from common.audit import AuditLog
from common.errors import RefusedError, UsageError, WaitingError
from common.job import parse_job
from common.privacy import Spending, epsilon_of

JOB = """
name = "chest"
sites = ["north"]
[task]
labels = ["well", "sick"]
[data]
collection = "chest"
[aggregation]
rounds = {rounds}
[privacy]
mechanism = "dp-sgd"
epsilon = {epsilon}
"""
ASK = Policy(collections=("*",), approval="each-job")
PLAN = Plan(steps_per_round=10, sample_rate=0.1, units=200)


def job(epsilon=4.0, rounds=5):
    return parse_job(JOB.format(epsilon=epsilon, rounds=rounds))


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl", tmp_path / "audit.key", "north")


@pytest.fixture
def kit(kit_folder, write_kit):
    """A site's kit with a policy, before anything was imported."""
    write_kit(kit_folder)
    (kit_folder / FILE_NAME).write_text(policy_text(Policy(collections=("chest",))))
    return kit_folder


def account(ledger, a_job, run="run", limit=10.0, sharing=()):
    return Account(ledger, a_job, run, Policy(collections=("*",), max_epsilon_for_life=limit), sharing)


def spend(ledger, a_job, run, rounds, noise=1.0):
    for number in range(1, rounds + 1):
        entry = Entry("chest", run, a_job.digest, number, "patient", 1e-5, Spending(noise, 0.1, 10))
        ledger.spend(entry, run_limit=1e3, life_limit=1e3)


@given(start=st.times(), end=st.times(), now=st.times())
def test_hours_are_kept_also_over_midnight(start, end, now):
    start, end, now = (time.replace(second=0, microsecond=0) for time in (start, end, now))
    policy = Policy(collections=(), hours=f"{start:%H:%M}-{end:%H:%M}")
    minutes = [time.hour * 60 + time.minute for time in (start, end, now)]
    allowed = (minutes[2] - minutes[0]) % 1440 < ((minutes[1] - minutes[0]) % 1440 or 1440)
    if allowed:
        check_hours(policy, now)
    else:
        with pytest.raises(WaitingError, match="local time"):
            check_hours(policy, now)


def test_no_hours_mean_always():
    check_hours(Policy(collections=()), datetime.time(3, 0))


def test_a_job_waits_for_a_person_and_is_asked_for_once(log):
    for _ in range(3):
        with pytest.raises(WaitingError, match="a person"):
            require_approval(log, ASK, job())
    (asked,) = asked_jobs(log)
    assert (asked.job, asked.state) == (job(), "waiting")


def test_an_approval_is_for_one_job_and_can_be_taken_back(log):
    with pytest.raises(WaitingError):
        require_approval(log, ASK, job())
    decide(log, job(), "approved", by="ada")
    require_approval(log, ASK, job())
    with pytest.raises(WaitingError):
        require_approval(log, ASK, job(epsilon=4.5))
    decide(log, job(), "denied", by="ada", note="the vote is missing")
    with pytest.raises(RefusedError, match="the vote is missing"):
        require_approval(log, ASK, job())
    with pytest.raises(RefusedError, match="denied"):
        require_approval(log, Policy(collections=("*",)), job())


def test_without_a_wish_for_approval_jobs_run(log):
    require_approval(log, Policy(collections=("*",)), job())
    assert asked_jobs(log) == []


@pytest.mark.parametrize(("prefix", "words"), [("abc", "too short"), ("zzzz", "no job here"), ("chest", "may be any")])
def test_a_job_that_is_not_named_clearly_is_not_decided_on(log, prefix, words):
    for epsilon in (1.0, 2.0):
        with pytest.raises(WaitingError):
            require_approval(log, ASK, job(epsilon))
    with pytest.raises(UsageError, match=words):
        find_asked(log, prefix)


def test_a_run_that_cant_fit_is_refused_before_its_first_round_with_the_nearest_that_does(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    check_run(account(ledger, job(8.0)), "northfield", PLAN, 1)
    spend(ledger, job(), "before", 5)
    with pytest.raises(RefusedError, match="for life") as refusal:
        check_run(account(ledger, job(8.0), limit=8.0), "northfield", PLAN, 1)
    nearest = float(str(refusal.value).rsplit("= ", 1)[1])
    assert 0 < nearest < 8
    check_run(account(ledger, job(nearest), limit=8.0), "northfield", PLAN, 1)
    with pytest.raises(RefusedError):
        check_run(account(ledger, job(nearest + 0.1), limit=8.0), "northfield", PLAN, 1)


def test_when_nothing_is_left_that_is_said(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    spend(ledger, job(), "before", 9, noise=0.8)
    with pytest.raises(RefusedError, match="no job fits any more"):
        check_run(account(ledger, job(8.0), limit=3.0), "northfield", PLAN, 1)


def test_what_was_spent_on_a_collection_with_the_same_patients_counts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    entry = Entry("other", "before", "d", 1, "patient", 1e-5, Spending(0.9, 0.3, 60), split="test", purpose="metrics")
    ledger.spend(entry, run_limit=1e3, life_limit=1e3)
    check_run(account(ledger, job(4.0), limit=5.0), "northfield", PLAN, 1)
    with pytest.raises(RefusedError, match="for life"):
        check_run(account(ledger, job(4.0), limit=5.0, sharing=("other",)), "northfield", PLAN, 1)


@settings(max_examples=6, deadline=None)
@given(
    spent=st.lists(st.builds(Spending, st.floats(0.8, 6), st.floats(0.01, 0.5), st.integers(1, 60)), max_size=3),
    limit=st.floats(0.5, 20),
)
def test_the_budget_never_says_that_more_fits_than_the_accountant_allows(spent, limit):
    fits = largest_further_run(spent, limit, 1e-5)
    assert fits <= limit
    if fits == 0:
        assert epsilon_of(spent, 1e-5) >= limit * 0.99
    else:
        # Whatever is spent, one further release of that size ends within the limit, and uses it.
        assert fits >= limit - epsilon_of(spent, 1e-5) - 0.01 * limit


def test_the_budget_tells_of_every_run_and_the_whole(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    spend(ledger, job(), "first", 3)
    spend(ledger, job(), "second", 2)
    (found,) = budgets(ledger, 10.0, lambda collection: ())
    assert [(run.run, run.rounds) for run in found.runs] == [("first", 3), ("second", 2)]
    assert max(run.epsilon for run in found.runs) < found.spent < sum(run.epsilon for run in found.runs)
    assert found.history[-1][1] == found.spent
    assert 0 < found.fits < 10


def test_a_steward_sees_the_policy_changes_it_and_finds_the_change_in_the_log(kit):
    run = CliRunner().invoke
    found = run(app, ["policy", "--kit", str(kit), "--set", "min_patients=50", "--set", "approval=each-job", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["min_patients"] == 50
    assert (read_policy(kit).min_patients, read_policy(kit).approval) == (50, "each-job")
    assert "# smallest number of patients" in (kit / FILE_NAME).read_text()
    assert [line.count('"kind":"policy"') for line in (kit / "audit.jsonl").read_text().splitlines()].count(1) == 2


@pytest.mark.parametrize(("change", "words"), [
    ({"min_patient": "5"}, "min_patients"),
    ({"min_patients": "0"}, "min_patients"),
    ({"hours": '"25:00-07:00"'}, "hours"),
    ({"metrics": "loud"}, "metrics"),
])  # fmt: skip
def test_a_change_that_would_make_the_policy_wrong_is_refused_in_one_line(change, words):
    text = policy_text(Policy(collections=("chest",)))
    with pytest.raises(UsageError, match=words) as refusal:
        change_policy(text, change, "policy.toml")
    assert "\n" not in str(refusal.value)


def test_the_commands_say_what_waits_and_take_the_decision(kit):
    run = CliRunner().invoke
    from client.record import site_log

    with pytest.raises(WaitingError):
        require_approval(site_log(kit), ASK, job())
    listed = run(app, ["jobs", "--kit", str(kit)])
    assert "waiting" in listed.stdout
    assert "at most epsilon 4" in listed.stdout
    assert run(app, ["approve", job().digest[:12], "--by", "ada", "--kit", str(kit)]).exit_code == 0
    require_approval(site_log(kit), ASK, job())
    assert "approved by ada" in run(app, ["jobs", "--kit", str(kit)]).stdout


def test_the_budget_command_prints_and_draws(kit, tmp_path):
    from client.record import site_log

    spend(Ledger(kit / "ledger.sqlite", site_log(kit)), job(), "first", 3)
    found = CliRunner().invoke(app, ["budget", "--kit", str(kit), "--plot", str(tmp_path / "budget.svg")])
    assert found.exit_code == 0, found.output
    assert "first" in found.stdout
    assert "for life" in found.stdout
    assert "<svg" in (tmp_path / "budget.svg").read_text()
