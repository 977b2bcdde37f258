"""Every message that leaves is in the log, and a crash while writing leaves the log readable."""

import dataclasses
import threading

import pytest

from client.record import LOG_FILE, note_policy, rolled_back, site_log
from client.releases import describe, read, record
from common.audit import verify_log
from common.errors import DataError


@pytest.fixture(autouse=True)
def kit(write_kit, tmp_path):
    write_kit(tmp_path)


def release(number=1):
    return describe(
        {"train.loss": b"0.5", "update/w": b"1234"},
        run="r",
        job_digest="d",
        round_number=number,
        kind="train",
        status="ok",
        epsilon=1.0,
        delta=1e-5,
        to="coordinator.example:9092",
    )


def release_at(at):
    return dataclasses.replace(release(), at=at)


def test_a_recorded_release_says_what_left(tmp_path):
    record(tmp_path, release())
    (found,) = read(tmp_path)
    assert found.fields == ("train.loss", "update/w")
    assert (found.bytes, found.to) == (7, "coordinator.example:9092")
    assert found == release_at(found.at)
    assert (tmp_path / LOG_FILE).stat().st_mode & 0o777 == 0o600


def test_the_checksum_depends_on_every_byte_and_name():
    def checksum(parts):
        return describe(parts, run="", job_digest="", round_number=0, kind="", status="", epsilon=None).sha256

    assert len({checksum(parts) for parts in [{"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"a": b"bd"}]}) == 4


def test_a_line_cut_short_by_a_crash_is_written_over_because_it_was_never_sent(tmp_path):
    record(tmp_path, release(1))
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"at":"2026-')
    assert [found.round for found in read(tmp_path)] == [1]
    record(tmp_path, release(2))
    assert [found.round for found in read(tmp_path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    record(tmp_path, release(1))
    path = tmp_path / LOG_FILE
    path.write_text(path.read_text() + "damage\n")
    with pytest.raises(DataError, match=f"{LOG_FILE}:3.*damaged"):
        read(tmp_path)


def test_two_writers_at_once_lose_no_line(tmp_path):
    def write(start):
        for number in range(start, start + 25):
            record(tmp_path, release(number))

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 25, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found.round for found in read(tmp_path)) == list(range(75))
    assert verify_log(tmp_path / LOG_FILE) == []


def test_nothing_may_be_sent_when_the_log_cannot_be_written(tmp_path):
    (tmp_path / LOG_FILE).mkdir()
    with pytest.raises(DataError, match="nothing is sent"):
        record(tmp_path, release())


def test_the_policy_is_recorded_whenever_it_is_another_and_not_else(tmp_path):
    log, path = site_log(tmp_path), tmp_path / "policy.toml"
    assert note_policy(log, tmp_path).sequence == 2  # none yet: that, too, is a policy
    for text in ("collections = []\n", "collections = []\n", 'collections = ["chest"]\n', "collections = []\n"):
        path.write_text(text)
        note_policy(log, tmp_path)
        note_policy(log, tmp_path)
    texts = [entry.body["text"] for entry in log.entries() if entry.kind == "policy"]
    assert texts == ["", "collections = []\n", 'collections = ["chest"]\n', "collections = []\n"]


def test_a_log_that_is_not_what_the_coordinator_saw_is_told_from_one_that_is(tmp_path):
    log = site_log(tmp_path)
    head = record(tmp_path, release())
    assert rolled_back(log, "") == rolled_back(log, head.to_json()) == ""
    record(tmp_path, release(2))
    assert rolled_back(log, head.to_json()) == ""
    (tmp_path / LOG_FILE).write_bytes((tmp_path / LOG_FILE).read_bytes().splitlines(keepends=True)[0])
    record(tmp_path, release(3))
    assert "entry 2 as the coordinator witnessed it: it was rolled back" in rolled_back(log, head.to_json())
    assert "can't be read" in rolled_back(log, "nonsense")
