"""The ledger: written before it is spent, never overspent, and honest after a crash."""

import multiprocessing
import os
import signal
import time

import pytest

from client.privacy.ledger import Entry, Ledger, calibrate
from common.errors import DataError, RefusedError
from common.privacy import Spending, epsilon_of, noise_for

ROUND = Spending(1.0, 0.2, 10)


def entry(run="r1", number=1, collection="chest", spending=ROUND):
    return Entry(collection, run, "d" * 64, number, "patient", 1e-5, spending)


def test_what_is_spent_is_reported_for_the_run_and_for_life(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first = ledger.spend(entry(), run_limit=99, life_limit=99)
    second = ledger.spend(entry(number=2), run_limit=99, life_limit=99)
    ledger.spend(entry(run="r2"), run_limit=99, life_limit=99)
    assert (first, second) == (epsilon_of([ROUND], 1e-5), epsilon_of([ROUND, ROUND], 1e-5))
    assert len(ledger.spent_by_run("chest", "r1")) == 2
    assert len(ledger.spent_for_life("chest")) == 3
    assert ledger.spent_for_life("other") == []
    assert [found.round for found in Ledger(tmp_path / "ledger.sqlite").entries()] == [1, 2, 1]


@pytest.mark.parametrize(("limits", "reason"), [((3.0, 99), "over its limit"), ((99, 3.0), "for life")])
def test_a_full_budget_is_refused_with_the_numbers_and_nothing_is_written(tmp_path, limits, reason):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(RefusedError, match=reason):
        ledger.spend(entry(), run_limit=limits[0], life_limit=limits[1])
    assert ledger.entries() == []


def test_the_budget_for_life_counts_every_run_on_the_collection_and_no_other(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    limit = epsilon_of([ROUND, ROUND], 1e-5)
    ledger.spend(entry(run="r1"), run_limit=99, life_limit=limit)
    ledger.spend(entry(run="r2"), run_limit=99, life_limit=limit)
    with pytest.raises(RefusedError, match="for life"):
        ledger.spend(entry(run="r3"), run_limit=99, life_limit=limit)
    ledger.spend(entry(run="r3", collection="ct"), run_limit=99, life_limit=limit)


def _spend_until_refused(path, run, limit):
    ledger = Ledger(path)
    try:
        for number in range(50):
            ledger.spend(entry(run=run, number=number), run_limit=99, life_limit=limit)
    except RefusedError:
        return


def test_two_runs_at_once_cannot_overspend(tmp_path):
    path, limit = tmp_path / "ledger.sqlite", epsilon_of([ROUND] * 7, 1e-5)
    Ledger(path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_spend_until_refused, args=(path, run, limit)) for run in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Ledger(path).entries()) == 7


def _spend_for_ever(path, heard):
    ledger = Ledger(path)
    for number in range(10_000):
        ledger.spend(entry(number=number, spending=Spending(50.0, 0.01, 1)), run_limit=99, life_limit=99)
        with heard.open("a") as file:  # what a round of training would have done: it begins only now
            file.write(f"{number}\n")


def test_a_killed_site_has_never_trained_what_is_not_in_the_ledger(tmp_path):
    path, heard = tmp_path / "ledger.sqlite", tmp_path / "trained"
    worker = multiprocessing.get_context("spawn").Process(target=_spend_for_ever, args=(path, heard))
    worker.start()
    end = time.monotonic() + 300
    while not heard.exists() or len(heard.read_text().splitlines()) < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    trained = len(heard.read_text().splitlines())
    assert trained <= len(Ledger(path).entries()) <= trained + 1


def test_a_damaged_ledger_stops_training_with_one_line(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(DataError, match="ledger can't be used"):
        Ledger(path)


def test_the_noise_stays_the_same_over_a_run_and_is_raised_when_a_crash_had_a_round_counted_twice():
    noise, whole = noise_for(5.0, 1e-5, 0.2, 100), {"epsilon": 5.0, "delta": 1e-5}
    spent = [Spending(noise, 0.2, 10)] * 4
    assert calibrate(spent, 0.2, 60, current=noise, **whole) == noise
    after_crash = calibrate([*spent, spent[0]], 0.2, 60, current=noise, **whole)
    assert after_crash > noise
    assert epsilon_of([*spent, spent[0], Spending(after_crash, 0.2, 60)], 1e-5) <= 5.0
