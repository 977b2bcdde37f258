"""The ledger and the audit log watch each other: whichever is deleted, edited or put back from a copy is named."""

import multiprocessing
import shutil
import sqlite3

import pytest

from client.privacy.ledger import Entry, Ledger
from client.record import site_log
from common.audit import verify_log
from common.errors import DataError, RefusedError
from common.privacy import Spending, epsilon_of

ROUND = Spending(4.0, 0.2, 10)
FREE = {"run_limit": 99, "life_limit": 99}
FIRST_VERSION = """
CREATE TABLE spending (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, collection TEXT NOT NULL, run TEXT NOT NULL,
    job_digest TEXT NOT NULL, round INTEGER NOT NULL, unit TEXT NOT NULL, noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL, steps INTEGER NOT NULL, delta REAL NOT NULL
) STRICT
"""


def entry(number=1, collection="chest", split="train", purpose="training", run="r", spending=ROUND):
    return Entry(collection, run, "d" * 64, number, "patient", 1e-5, spending, split, purpose)


@pytest.fixture
def kit(kit_folder, write_kit):
    return write_kit(kit_folder)


def open_ledger(kit):
    return Ledger(kit / "ledger.sqlite", site_log(kit))


@pytest.fixture
def ledger(kit):
    """Three rounds that were spent, each told to the log, with releases between."""
    ledger = open_ledger(kit)
    for number in (1, 2, 3):
        ledger.spend(entry(number), **FREE)
        site_log(kit).append("release", {"round": number})
    return ledger


def execute(kit, statement):
    connection = sqlite3.connect(kit / "ledger.sqlite")
    with connection:
        connection.execute(statement)
    connection.close()


def copy_of(kit, name):
    """A whole copy, as a backup makes one, of a file of the kit."""
    if name == "ledger.sqlite":
        execute(kit, "PRAGMA wal_checkpoint(TRUNCATE)")
    return shutil.copy(kit / name, kit / f"{name}.copy")


def put_back(kit, name):
    for path in kit.glob(f"{name}-*"):
        path.unlink()
    shutil.copy(kit / f"{name}.copy", kit / name)


def test_each_row_names_the_logs_head_and_the_log_tells_of_each_row(kit, ledger):
    log = site_log(kit)
    told = [found for found in log.entries() if found.kind == "spending"]
    assert [(found.body["sequence"], found.body["hash"]) for found in told] == [
        (row.number, row.hash) for row in ledger.rows()
    ]
    assert all(log.holds_entry(row.log_sequence, row.log_hash) for row in ledger.rows())
    assert told[0].body["spending"] == {"noise_multiplier": 4.0, "sample_rate": 0.2, "steps": 10}
    assert verify_log(log.path) == []


def test_a_site_whose_files_are_whole_opens_its_ledger_again(kit, ledger):
    assert len(open_ledger(kit).entries()) == 3


@pytest.mark.parametrize("when", ["opened", "spent"])
@pytest.mark.parametrize(("name", "says"), [
    ("ledger.sqlite", r"ledger\.sqlite: the privacy ledger (has 0 entries.*audit\.jsonl tells of 3|was deleted)"),
    ("audit.jsonl", r"audit\.jsonl: the audit log does not hold its entry \d+, which.*ledger\.sqlite names"),
])  # fmt: skip
def test_a_deleted_file_is_named(kit, ledger, when, name, says):
    for path in kit.glob(f"{name}*"):
        path.unlink()
    with pytest.raises(DataError, match=says):
        open_ledger(kit) if when == "opened" else ledger.spend(entry(4), **FREE)
    assert not (kit / name).exists() or name == "audit.jsonl"


@pytest.mark.parametrize("when", ["opened", "spent"])
@pytest.mark.parametrize(("name", "says"), [
    ("ledger.sqlite", r"ledger\.sqlite: the privacy ledger has 3 entries, but.*tells of 5: it was deleted, cut short"),
    ("audit.jsonl", r"audit\.jsonl: the audit log does not hold its entry \d+, which.*put back from an older copy"),
])  # fmt: skip
def test_an_older_copy_that_was_put_back_is_named(kit, ledger, when, name, says):
    copy_of(kit, name)
    for number in (4, 5):
        ledger.spend(entry(number), **FREE)
    put_back(kit, name)
    with pytest.raises(DataError, match=says):
        open_ledger(kit) if when == "opened" else ledger.spend(entry(6), **FREE)


def test_both_put_back_fit_each_other_and_only_a_head_kept_elsewhere_tells(kit, ledger):
    for name in ("ledger.sqlite", "audit.jsonl"):
        copy_of(kit, name)
    ledger.spend(entry(4), **FREE)
    witness = site_log(kit).head()
    for name in ("ledger.sqlite", "audit.jsonl"):
        put_back(kit, name)
    assert len(open_ledger(kit).entries()) == 3
    assert not site_log(kit).holds(witness)
    assert [fault.name for fault in verify_log(kit / "audit.jsonl", witnesses=[witness])] == ["truncated"]


@pytest.mark.parametrize("statement", [
    "UPDATE spending SET noise_multiplier = 40 WHERE id = 2",
    "UPDATE spending SET collection = 'other' WHERE id = 3",
    "DELETE FROM spending WHERE id = 2",
    "DELETE FROM spending WHERE id = 1",
    "UPDATE spending SET id = id + 1 WHERE id = 3",
])  # fmt: skip
def test_an_edited_row_is_named(kit, ledger, statement):
    execute(kit, statement)
    with pytest.raises(DataError, match=r"ledger\.sqlite: entry \d of the privacy ledger was changed"):
        open_ledger(kit)


def test_a_ledger_written_anew_with_right_hashes_is_not_what_the_log_tells_of(kit, ledger, tmp_path):
    for path in kit.glob("ledger.sqlite*"):
        path.unlink()
    forged = Ledger(kit / "ledger.sqlite")
    for number in (1, 2, 3):
        forged.spend(entry(number, spending=Spending(400.0, 0.2, 10)), **FREE)
    with pytest.raises(DataError, match=r"entry 3 of the privacy ledger is not the one that the audit log.*edited"):
        open_ledger(kit)


def test_a_crash_between_the_ledger_and_the_log_is_caught_up(kit, ledger):
    lines = (kit / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (kit / "audit.jsonl").write_bytes(b"".join(lines[:-2]))  # neither the last spending nor what followed was written
    assert len(open_ledger(kit).entries()) == 3
    told = [found.body["sequence"] for found in site_log(kit).entries() if found.kind == "spending"]
    assert told == [1, 2, 3]


@pytest.mark.parametrize("rows", [0, 3])
def test_a_ledger_of_the_first_version_is_brought_up_to_date(kit, rows):
    execute(kit, FIRST_VERSION)
    for number in range(rows):
        execute(
            kit,
            "INSERT INTO spending (at, collection, run, job_digest, round, unit, noise_multiplier, sample_rate, steps,"
            f" delta) VALUES ('2026', 'chest', 'r', 'd', {number}, 'patient', 1.5, 0.2, 10, 1e-5)",
        )
    ledger = open_ledger(kit)
    assert ledger.spent_by_run("chest", "r") == [Spending(1.5, 0.2, 10)] * rows
    assert {(found.split, found.purpose) for found in ledger.entries()} <= {("train", "training")}
    ledger.spend(entry(9), **FREE)
    assert len(open_ledger(kit).entries()) == rows + 1


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 9", "CREATE TABLE spending (other TEXT)"])
def test_a_ledger_of_an_unknown_form_is_refused_in_one_line(kit, statement):
    execute(kit, statement)
    with pytest.raises(
        DataError, match=r"ledger\.sqlite: the privacy ledger can't be used \(it was written by another"
    ):
        open_ledger(kit)


def test_splits_have_budgets_of_their_own(kit):
    ledger, limit = open_ledger(kit), epsilon_of([ROUND], 1e-5)
    for split in ("train", "validation", "test"):
        ledger.spend(entry(split=split, purpose="metrics"), run_limit=limit, life_limit=limit)
    with pytest.raises(RefusedError, match="its limit"):
        ledger.spend(entry(split="test"), run_limit=limit, life_limit=99)
    assert ledger.spent_by_run("chest", "r", "test") == [ROUND]
    assert [found.purpose for found in ledger.entries()] == ["metrics"] * 3


def test_collections_that_share_patients_share_their_budget_for_life(kit):
    ledger, limit = open_ledger(kit), epsilon_of([ROUND] * 2, 1e-5)
    ledger.spend(entry(collection="chest"), **FREE)
    ledger.spend(entry(collection="heart", split="test"), **FREE)
    assert ledger.spent_for_life(["chest", "heart"]) == [ROUND] * 2
    assert ledger.spent_for_life(["chest", "heart"], unit="image") == []
    ledger.spend(entry(2, "lung"), run_limit=99, life_limit=limit, sharing=["foot"])
    with pytest.raises(RefusedError, match="those that share patients"):
        ledger.spend(entry(2, "chest"), run_limit=99, life_limit=limit, sharing=["heart"])
    ledger.spend(entry(2, "chest"), run_limit=99, life_limit=limit, sharing=["chest", "foot"])


def test_a_log_that_cannot_be_written_stops_the_training_after_it_was_counted(kit, ledger):
    (kit / "audit.key").unlink()
    with pytest.raises(DataError, match=r"audit\.key"):
        ledger.spend(entry(4), **FREE)
    assert len(ledger.entries()) == 4


def _spend_until_refused(kit, run, limit):
    ledger = open_ledger(kit)
    try:
        for number in range(50):
            ledger.spend(entry(number, run=run), run_limit=99, life_limit=limit)
    except RefusedError:
        return


def test_two_processes_at_once_neither_overspend_nor_tangle_the_log(kit):
    context, limit = multiprocessing.get_context("spawn"), epsilon_of([ROUND] * 9, 1e-5)
    workers = [context.Process(target=_spend_until_refused, args=(kit, run, limit)) for run in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(open_ledger(kit).entries()) == 9
    told = [found.body["sequence"] for found in site_log(kit).entries() if found.kind == "spending"]
    assert told == list(range(1, 10))
    assert verify_log(kit / "audit.jsonl") == []
