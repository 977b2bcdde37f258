from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from common.job import parse_job
from common.update import Answer, Request, decode_answer, encode_request
from simulations.grid import InProcessGrid

JOB = parse_job('name="j"\nsites=["a","b"]\n[task]\nlabels=["no","yes"]\n[data]\ncollection="c"')


class DoublingSite:
    """A site whose update is twice the model it was sent."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, 0

    def answer(self, request: Request) -> Answer:
        self.seen += 1
        tensors = {name: 2 * tensor for name, tensor in request.model.items()}
        return Answer(self.name, request.job.digest, request.number, "ok", examples=3, tensors=tensors)


class BrokenSite:
    def answer(self, request: Request) -> Answer:
        raise RuntimeError("disk on fire")


def messages(grid: InProcessGrid, node_ids: list[int]) -> list[Message]:
    request = Request("train", "run-1", 1, JOB, {"w": np.arange(3, dtype=np.float32)})
    return [grid.create_message(encode_request(request), MessageType.TRAIN, node, "1") for node in node_ids]


def test_sites_answer_in_the_order_in_which_they_were_asked():
    grid, node_ids = InProcessGrid.of_sites({"a": DoublingSite("a"), "b": DoublingSite("b")})
    replies = grid.send_and_receive(messages(grid, [node_ids["b"], node_ids["a"]]))
    answers = [decode_answer(reply.content) for reply in replies]
    assert [answer.site for answer in answers] == ["b", "a"]
    assert answers[0].tensors is not None
    assert answers[0].tensors["w"].tolist() == [0, 2, 4]


def test_a_site_works_only_when_its_reply_is_pulled_and_one_reply_comes_at_a_time():
    sites = {"a": DoublingSite("a"), "b": DoublingSite("b")}
    grid, _ = InProcessGrid.of_sites(sites)
    pushed = list(grid.push_messages(messages(grid, [1, 2])))
    assert sites["a"].seen == 0
    first = list(grid.pull_messages(pushed))
    assert [reply.metadata.reply_to_message_id for reply in first] == pushed[:1]
    assert (sites["a"].seen, sites["b"].seen) == (1, 0)
    assert len(list(grid.pull_messages(pushed))) == 1
    assert list(grid.pull_messages(pushed)) == []


def test_a_site_that_fails_costs_only_its_own_turn():
    grid, _ = InProcessGrid.of_sites({"a": BrokenSite(), "b": DoublingSite("b")})
    first, second = grid.send_and_receive(messages(grid, [1, 2]))
    assert first.has_error()
    assert first.error.reason == "RuntimeError: disk on fire"
    assert decode_answer(second.content).status == "ok"


def test_what_is_no_request_gets_an_error_that_says_so():
    grid, _ = InProcessGrid.of_sites({"a": DoublingSite("a")})
    (reply,) = grid.send_and_receive([Message(RecordDict({"x": ArrayRecord()}), 1, MessageType.TRAIN)])
    assert "the coordinator's message lacks" in str(reply.error.reason)


def test_a_message_to_a_node_that_is_not_there_gets_no_id():
    grid, node_ids = InProcessGrid.of_sites({"a": DoublingSite("a")})
    assert list(grid.get_node_ids()) == list(node_ids.values()) == [1]
    assert list(grid.push_messages(messages(grid, [7]))) == [""]


def test_messages_carry_the_run_and_their_round():
    grid = InProcessGrid({1: lambda message: Message(message.content, reply_to=message)}, run_id=12)
    (reply,) = grid.send_and_receive(messages(grid, [1]))
    assert (reply.metadata.run_id, reply.metadata.group_id, reply.metadata.src_node_id) == (12, "1", 1)


def test_no_time_no_replies():
    grid, _ = InProcessGrid.of_sites({"a": DoublingSite("a")})
    assert list(grid.send_and_receive(messages(grid, [1]), timeout=0)) == []


@pytest.mark.parametrize("run_id", [1, 99])
def test_the_run_is_the_one_that_was_set(run_id: int):
    assert InProcessGrid({}, run_id=run_id).run.run_id == run_id
