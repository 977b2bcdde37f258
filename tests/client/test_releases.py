"""Every message that leaves is in the log, and a crash while writing leaves the log readable."""

import threading

import pytest

from client.releases import FILE_NAME, describe, read, record
from common.errors import DataError


def release(number=1):
    return describe(
        {"train.loss": b"0.5", "update/w": b"1234"},
        run="r",
        job_digest="d",
        round_number=number,
        kind="train",
        status="ok",
        epsilon=1.0,
    )


def test_a_recorded_release_says_what_left(tmp_path):
    record(tmp_path, release())
    (found,) = read(tmp_path)
    assert found.fields == ("train.loss", "update/w")
    assert found.bytes == 7
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_the_checksum_depends_on_every_byte_and_name():
    def checksum(parts):
        return describe(parts, run="", job_digest="", round_number=0, kind="", status="", epsilon=None).sha256

    assert len({checksum(parts) for parts in [{"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"a": b"bd"}]}) == 4


def test_a_line_cut_short_by_a_crash_is_written_over_because_it_was_never_sent(tmp_path):
    record(tmp_path, release(1))
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"at": "2026-')
    assert [found.round for found in read(tmp_path)] == [1]
    record(tmp_path, release(2))
    assert [found.round for found in read(tmp_path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    record(tmp_path, release(1))
    path = tmp_path / FILE_NAME
    path.write_text("damage\n" + path.read_text())
    with pytest.raises(DataError, match=f"{FILE_NAME}:1"):
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


def test_nothing_may_be_sent_when_the_log_cannot_be_written(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(DataError, match="nothing is sent"):
        record(tmp_path, release())
