"""What a strategy keeps at a site: found again after a crash; a round that did not count is as if it had not been."""

from __future__ import annotations

import numpy as np
import pytest

from client.memory import KitMemory, OpenMemory
from common.errors import DataError, UpdateError
from common.job import parse_job
from common.update import COUNTED, Request, decode_request, encode_request, round_before

JOB = parse_job(
    'name = "j"\nsites = ["north", "south"]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"\n'
    '[training]\nmomentum = 0\n[aggregation]\nstrategy = "scaffold"\n'
)


def kept(value):
    return {"control/w": np.full(3, value, np.float32), "layer/n": np.array(value, np.float32)}


def value_of(tensors):
    return tensors["control/w"].tolist()[0] if tensors else None


@pytest.fixture(params=["kit", "open"])
def memory(request, tmp_path):
    return KitMemory(tmp_path, "run-1") if request.param == "kit" else OpenMemory()


def test_a_round_starts_from_what_the_one_before_left(memory):
    assert memory.read(1) == {}
    for number in (1, 2, 5):
        memory.write(number, kept(number))
    assert value_of(memory.read(6)) == 5
    assert memory.read(6)["layer/n"].shape == ()


def test_a_round_that_comes_again_starts_from_where_it_started_first(memory):
    for number in (1, 2, 2, 2):
        assert value_of(memory.read(number)) == (1 if number == 2 else None)
        memory.write(number, kept(number))


def test_a_round_whose_answer_did_not_count_is_as_if_it_had_not_been(memory):
    memory.write(1, kept(1), 1)
    for number in (2, 3, 4, 9):  # none of these arrived: each starts from round 1 again
        assert value_of(memory.read(2)) == 1
        memory.write(number, kept(number), 2)
    assert value_of(memory.read(5)) == 1  # round 4 is forgotten; 9 is what came last
    assert value_of(memory.read(10)) == 9


def test_no_more_than_two_rounds_are_kept(memory, tmp_path):
    for number in range(1, 20):
        memory.write(number, kept(number), number)
    left = len(memory.kept) if isinstance(memory, OpenMemory) else len(list(tmp_path.rglob("*.safetensors")))
    assert left == 2


def test_what_is_kept_is_readable_by_its_owner_only_and_bears_no_name_from_outside(tmp_path):
    KitMemory(tmp_path, "../../etc/run").write(1, kept(1))
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.is_relative_to(tmp_path / "memory")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_runs_do_not_see_each_others_memory(tmp_path):
    KitMemory(tmp_path, "run-1").write(1, kept(1))
    assert KitMemory(tmp_path, "run-2").read(5) == {}
    assert value_of(KitMemory(tmp_path, "run-1").read(5)) == 1


def test_a_damaged_file_is_named_and_not_taken_for_nothing(tmp_path):
    KitMemory(tmp_path, "run-1").write(1, kept(1))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="can't be read"):
        KitMemory(tmp_path, "run-1").read(2)


def request_with(control, number=7):
    sent = Request("train", "run-1", number, JOB, {"w": np.zeros(2, np.float32)}, control=control)
    return decode_request(encode_request(sent))


@pytest.mark.parametrize(("counted", "before"), [([0, 6], 1), ([6, 0], 7), ([4, 6], 5), ([9, 0], 7)])
def test_a_request_says_from_which_round_a_site_goes_on(counted, before):
    assert round_before(request_with({COUNTED: np.array(counted)}), "north") == before


def test_without_a_word_about_it_a_site_goes_on_from_its_last_round():
    assert round_before(request_with({}), "north") == 7


@pytest.mark.parametrize("counted", [np.array([1]), np.array([1.0, 2.0]), np.array([[1], [2]]), np.array(3)])
def test_a_word_about_it_that_does_not_fit_the_job_is_refused(counted):
    with pytest.raises(UpdateError, match="does not fit the job"):
        round_before(request_with({COUNTED: counted}), "north")
