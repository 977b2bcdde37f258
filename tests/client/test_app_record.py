"""What the site's app does beside the answer: it records, hands out the log's head, and looks at the witness."""

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import answer, introduce
from client.policy import DEFAULT_POLICY
from client.releases import read
from client.site import Site
from common.audit import Head, verify_log
from common.errors import DataError
from common.job import parse_job
from common.update import Request, decode_answer, encode_request

JOB = parse_job('name="j"\nsites=["north"]\n[task]\nlabels=["no","yes"]\n[data]\ncollection="c"')


@pytest.fixture(autouse=True)
def in_a_run():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def site(kit_folder, write_kit):
    (write_kit(kit_folder) / "policy.toml").write_text(DEFAULT_POLICY)
    return Site.open(kit_folder, "cpu")


def message(witness="", content=None):
    request = Request("consent", "run", 1, JOB, {}, witness=witness)
    built = Message(encode_request(request) if content is None else content, 7, "query", group_id="1")
    built.metadata.__dict__["_message_id"] = "m"
    return built


def ask(site, witness=""):
    return decode_answer(answer(message(witness), site).content)


def test_every_answer_to_a_request_brings_the_head_of_the_log_that_holds_it(site):
    first = ask(site)
    second = ask(site, first.head)
    heads = [Head.from_json(given.head) for given in (first, second)]
    assert [head.sequence for head in heads] == [3, 4]  # opened, policy, then one release for each
    assert all(head.signed and site.log.holds(head) for head in heads)
    assert verify_log(site.log.path, witnesses=heads) == []


def test_a_log_that_was_rolled_back_is_told_to_the_coordinator_and_nothing_else_is_done(site):
    lines = [site.log.path.read_bytes() for given in range(3) if ask(site)]
    witness = site.log.head().to_json()
    site.log.path.write_bytes(lines[0])
    refused = ask(site, witness)
    assert refused.status == "refused"
    assert "does not hold entry 5 as the coordinator witnessed it: it was rolled back" in refused.reason
    assert refused.head == ""  # a log that was rolled back must not become the witness of itself
    assert read(site.kit_folder)[-1].status == "refused"
    assert "can't be read" in ask(site, "no witness").reason


def test_what_is_no_answer_to_a_request_brings_no_head(site):
    unreadable = answer(message(content=RecordDict()), site)
    for reply in (unreadable, introduce(message(), site)):
        assert decode_answer(reply.content).head == ""
    assert [release.status for release in read(site.kit_folder)] == ["failed", "ok"]


def test_when_the_log_is_gone_nothing_leaves(site):
    ask(site)
    site.log.path.unlink()
    with pytest.raises(DataError, match="deleted or emptied"):
        answer(message(), site)


def test_a_policy_that_changes_between_two_messages_is_recorded_between_them(site):
    ask(site)
    (site.kit_folder / "policy.toml").write_text(DEFAULT_POLICY.replace("20 ", "30 "))
    ask(site)
    assert [entry.kind for entry in site.log.entries()] == ["opened", "policy", "release", "policy", "release"]
