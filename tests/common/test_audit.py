"""The audit log: whatever is done to it is found, has a name and a line; and a crash leaves it whole."""

import multiprocessing
import os
import shutil
import signal
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.audit import AuditLog, Head, verify_log
from common.chain import canonical, read_entry, write_entry
from common.errors import DataError, KitError

ENTRIES = 7
BODIES = [{"round": number, "fields": ["a", "é"], "epsilon": number / 3} for number in range(1, ENTRIES)]


def open_log(folder, name="north"):
    return AuditLog(folder / "audit.jsonl", folder / "audit.key", name)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A log of seven entries, with the heads that a witness was given after each; nobody writes to it."""
    log = open_log(tmp_path_factory.mktemp("written"))
    heads = [log.append("release", body) for body in BODIES]
    return log, heads


@pytest.fixture
def log(written, tmp_path):
    shutil.copytree(written[0].path.parent, tmp_path / "node")
    return open_log(tmp_path / "node")


def lines_of(log):
    return log.path.read_bytes().splitlines(keepends=True)


def found(path, *witnesses):
    return [(fault.name, fault.line) for fault in verify_log(path, witnesses=witnesses)]


def changed(written, content, *witnesses):
    """The faults of a log that holds `content` in place of what was written."""
    path = written[0].path.with_name("changed.jsonl")
    path.write_bytes(content)
    return found(path, *witnesses)


examples = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
some_line = st.integers(1, ENTRIES)


def test_what_was_written_is_read_back_and_verifies(written):
    log, heads = written
    entries = log.entries()
    assert [entry.sequence for entry in entries] == list(range(1, ENTRIES + 1))
    assert entries[0].kind == "opened"
    assert entries[0].body == {"name": "north", "public_key": log.own_public_key()}
    assert [entry.body for entry in entries[1:]] == BODIES
    assert (log.head(), log.newest("release").body) == (heads[-1], BODIES[-1])
    assert found(log.path, *heads) == []
    assert log.key_path.stat().st_mode & 0o777 == 0o600


def test_a_head_can_be_sent_kept_and_checked(written):
    head = written[1][2]
    assert Head.from_json(head.to_json()) == head
    assert head.signed
    assert not Head(head.sequence, head.hash[::-1], head.signature, head.public_key).signed
    assert all(written[0].holds(head) for head in written[1])
    for text in ("", "[]", "{}", '{"sequence": 1}', head.to_json().replace('"sequence":4', '"sequence":"4"')):
        with pytest.raises(DataError, match="no head"):
            Head.from_json(text)


@examples
@given(data=st.data())
def test_any_byte_that_is_changed_is_found_on_its_line(written, data):
    content = written[0].path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    line = content[:place].count(b"\n") + 1
    faults = changed(written, content[:place] + bytes([byte]) + content[place + 1 :], written[1][-1])
    assert faults[0][1] == line
    assert faults[0][0] in ("tampered", "forged")
    assert {name for name, _ in faults} <= {"tampered", "forged"}


@examples
@given(line=some_line)
def test_a_line_that_was_taken_out_is_missed(written, line):
    lines = lines_of(written[0])
    without = b"".join(lines[: line - 1] + lines[line:])
    expected = [("removed", line)] if line < ENTRIES else []
    assert changed(written, without) == expected  # the last one is missed by a witness only
    assert changed(written, without, written[1][-1]) == (expected or [("truncated", line)])


@examples
@given(first=some_line, second=some_line)
def test_lines_that_were_swapped_are_named(written, first, second):
    lines = lines_of(written[0])
    lines[first - 1], lines[second - 1] = lines[second - 1], lines[first - 1]
    expected = sorted({first, second}) if first != second else []
    assert changed(written, b"".join(lines), written[1][-1]) == [("reordered", line) for line in expected]


@examples
@given(line=some_line, place=some_line)
def test_a_line_that_stands_twice_is_named_where_it_stands_again(written, line, place):
    lines = lines_of(written[0])
    twice = [*lines[:place], lines[line - 1], *lines[place:]]
    faults = changed(written, b"".join(twice), written[1][-1])
    copies = [number for number, text in enumerate(twice, start=1) if text == lines[line - 1]]
    assert ("repeated", copies[1]) in faults
    if copies[0] == line:
        assert faults == [("repeated", copies[1])]


@examples
@given(data=st.data())
def test_a_tail_that_was_cut_off_anywhere_is_missed_by_a_witness(written, data):
    log, heads = written
    content = log.path.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    whole = content[:cut].count(b"\n")
    assert changed(written, content[:cut]) == []  # whole in itself, with at most a line that a crash may have cut
    expected = ("truncated", whole + 1) if whole else ("missing", 1)
    assert changed(written, content[:cut], heads[-1]) == [expected]
    seen = [head for head in heads if head.sequence <= whole]
    assert whole == 0 or changed(written, content[:cut], *seen) == []


@examples
@given(data=st.data())
def test_a_line_that_was_put_in_is_named(written, data):
    lines = lines_of(written[0])
    place = data.draw(st.integers(0, ENTRIES))
    foreign = data.draw(st.binary(max_size=60).filter(lambda text: b"\n" not in text))
    faults = changed(written, b"".join([*lines[:place], foreign + b"\n", *lines[place:]]), written[1][-1])
    assert faults == [("tampered", place + 1)]


def test_an_entry_rewritten_by_somebody_without_the_key_is_forged(log, tmp_path):
    (tmp_path / "other").mkdir()
    other = open_log(tmp_path / "other")
    other.append("x", {})
    lines = lines_of(log)
    before = read_entry(lines[2].strip())
    _, lines[3] = write_entry(other._load_key(), before, at="2026-01-01T00:00:00+00:00", kind="release", body={})
    log.path.write_bytes(b"".join(lines))
    assert found(log.path) == [("forged", 4)]


def test_a_log_written_anew_with_another_key_is_forged_for_whoever_knows_the_key(log, written, tmp_path):
    key = log.own_public_key()
    log.path.unlink()
    log.key_path.unlink()
    for body in BODIES:
        log.append("release", body)
    assert verify_log(log.path) == []
    assert found(log.path, written[1][0]) == [("forged", 1)]
    assert [fault.name for fault in verify_log(log.path, public_key=key)] == ["forged"]
    assert not log.holds(written[1][-1])


def test_an_older_copy_put_back_and_written_on_is_a_rollback(log, written):
    """The head that the coordinator kept is of an entry in whose place there is another now."""
    lines = lines_of(log)
    log.path.write_bytes(b"".join(lines[:3]))
    assert found(log.path, written[1][-1]) == [("truncated", 4)]
    for number in range(6):
        log.append("release", {"again": number})
    assert verify_log(log.path) == []
    assert found(log.path, *written[1]) == [("rolled back", line) for line in range(4, ENTRIES + 1)]
    assert [log.holds(head) for head in written[1]] == [True, True, False, False, False, False]


def test_two_histories_put_together_do_not_continue_each_other(log, written):
    first = lines_of(log)
    log.path.write_bytes(b"".join(first[:3]))
    for number in range(4):
        log.append("release", {"again": number})
    log.path.write_bytes(b"".join(first[:5] + lines_of(log)[5:]))
    assert found(log.path) == [("rewritten", 6)]


def test_a_head_that_its_key_never_signed_is_no_witness(written):
    head = written[1][-1]
    assert found(written[0].path, Head(99, head.hash, head.signature[::-1], head.public_key)) == [("false witness", 1)]


def test_a_log_that_is_gone_is_named(log, written):
    log.path.unlink()
    assert found(log.path) == []  # nothing says that there should be one
    assert found(log.path, written[1][0]) == [("missing", 1)]
    with pytest.raises(DataError, match=r"audit\.jsonl.*deleted or emptied"):
        log.append("release", {})


def test_a_key_that_is_gone_or_another_stops_writing(log, tmp_path):
    kept = log.key_path.read_bytes()
    log.key_path.unlink()
    with pytest.raises(DataError, match=r"audit\.key: .*gone"):
        log.append("release", {})
    (tmp_path / "other").mkdir()
    other = open_log(tmp_path / "other")
    other.append("x", {})
    log.key_path.write_bytes(other.key_path.read_bytes())
    with pytest.raises(DataError, match="not signed with"):
        log.append("release", {})
    log.key_path.write_text("no key")
    with pytest.raises(KitError, match="can't be read"):
        log.append("release", {})
    log.key_path.write_bytes(kept)
    log.append("release", {})
    assert found(log.path) == []


def test_a_damaged_last_line_is_not_written_after(log):
    log.path.write_bytes(log.path.read_bytes()[:-20] + b"x" * 19 + b"\n")
    with pytest.raises(DataError, match="damaged"):
        log.append("release", {})


@pytest.mark.parametrize(
    "left", [b'{"at', b'{"at":"2026-01-01","body":{"x":"\xc3', b"\0" * 50, b'{"at":"20' + b"\0" * 9]
)
def test_what_a_crash_left_of_a_line_is_no_fault_and_is_written_over(log, left):
    with log.path.open("ab") as file:
        file.write(left)
    assert found(log.path) == []
    log.append("release", {"after": "the crash"})
    assert found(log.path) == []
    assert len(log.entries()) == ENTRIES + 1


def test_a_crash_between_the_first_entry_and_its_key_opens_the_log_anew(tmp_path):
    log = open_log(tmp_path)
    log.append("x", {})
    log.path.write_bytes(lines_of(log)[0])
    log.key_path.unlink()
    log.append("y", {})
    assert found(log.path) == []
    assert [entry.kind for entry in log.entries()] == ["opened", "y"]


def test_what_json_does_not_have_is_refused_and_nothing_is_written(log):
    before = log.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        log.append("release", {"epsilon": float("inf")})
    assert log.path.read_bytes() == before
    assert canonical({"b": 1, "a": "é"}) == b'{"a":"\\u00e9","b":1}'


def _append_many(folder, kind, count):
    log = open_log(folder)
    for number in range(count):
        log.append(kind, {"number": number})


def test_processes_that_write_at_once_make_one_chain(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(tmp_path, kind, 20)) for kind in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    log = open_log(tmp_path)
    assert found(log.path) == []
    assert [entry.body["number"] for entry in log.entries() if entry.kind == "b"] == list(range(20))


def lines_in(path):
    return path.read_text().count("\n") if path.exists() else 0


def test_a_writer_that_is_killed_leaves_a_log_that_verifies_with_every_head_it_gave(tmp_path):
    witness = tmp_path / "heads"
    for _ in range(6):
        child = os.fork()
        if child == 0:
            try:
                log = open_log(tmp_path)
                with witness.open("a") as file:
                    while True:
                        print(log.append("release", {"text": "x" * 20_000}).to_json(), file=file, flush=True)
            finally:
                os._exit(1)
        before, end = lines_in(witness), time.monotonic() + 120
        while lines_in(witness) < before + 3 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        heads = [Head.from_json(line) for line in witness.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        assert found(tmp_path / "audit.jsonl", *heads) == []
    assert len(heads) > 5


@pytest.mark.slow
def test_ten_thousand_entries_are_verified_in_seconds(log):
    key, entry, lines = log._load_key(), log.entries()[-1], []
    body = {"sha256": "a" * 64, "fields": ["eval.auc"] * 20}
    for _ in range(10_000):
        entry, line = write_entry(key, entry, at="2026-01-01T00:00:00.000+00:00", kind="release", body=body)
        lines.append(line)
    with log.path.open("ab") as file:
        file.writelines(lines)
    started = time.process_time()  # not the clock's: this machine may have other work
    assert verify_log(log.path, witnesses=[entry.head(log.public_key())]) == []
    assert time.process_time() - started < 20
