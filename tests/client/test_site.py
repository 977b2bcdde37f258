"""A site: the policy and the ledger stand before the data, and what leaves is only what may."""

import dataclasses
import json

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import answer, introduce
from client.baseline import train_alone
from client.intake.importer import import_folder
from client.policy import DEFAULT_POLICY, change_policy
from client.releases import read
from client.site import Site
from common.job import parse_job
from common.networks import initial_model
from common.privacy import epsilon_of
from common.update import Request, decode_answer, encode_request

JOB = """
name = "j"
sites = ["north"]
[task]
labels = ["well", "sick"]
[data]
collection = "chest"
size = [16, 16]
[training]
batch_size = 4
[aggregation]
rounds = 3
[privacy]
mechanism = "{mechanism}"
"""
KEY = 1
PRIVATE, OPEN = (parse_job(JOB.format(mechanism=mechanism)) for mechanism in ("dp-sgd", "none"))


@pytest.fixture
def site(kit_folder, write_kit, hospital):
    """A site of 12 patients with two images each, whose policy allows what the jobs here ask for."""
    write_kit(kit_folder)
    allow(kit_folder, collections='["chest"]', require_privacy="false", min_patients=2, min_evaluation_patients=1)
    key = kit_folder / "pseudonym.key"
    key.write_bytes(bytes([KEY]) * 32)  # splits hang on the key: with this one every split has patients of both labels
    key.chmod(0o600)
    import_folder(kit_folder, "chest", *hospital)
    return Site.open(kit_folder, "cpu")


def allow(folder, **changes):
    lines = [
        f"{line.split(' ')[0]} = {changes[line.split(' ')[0]]}" if line.split(" ")[0] in changes else line
        for line in DEFAULT_POLICY.splitlines()
    ]
    (folder / "policy.toml").write_text("\n".join(lines))


def spent(site, purpose):
    """What the ledger says was spent for a purpose."""
    return [entry for entry in site.ledger.entries() if entry.purpose == purpose]


def ask(job=OPEN, kind="train", number=1, run="run", **changes):
    return Request(kind=kind, run=run, number=number, job=job, model=initial_model(job), **changes)


def test_a_site_evaluates_then_trains_and_sends_its_model_with_listed_numbers(site):
    given = site.answer(ask())
    assert (given.status, given.reason) == ("ok", "")
    assert given.examples == given.metrics["train.images"] > 0
    assert "eval.loss" in given.metrics
    assert any(not np.array_equal(given.tensors[name], tensor) for name, tensor in ask().model.items())


def test_with_privacy_the_round_is_in_the_ledger_and_the_loss_stays_here(site):
    given = site.answer(ask(PRIVATE))
    (entry,) = spent(site, "training")
    assert (entry.run, entry.round, entry.job_digest) == ("run", 1, PRIVATE.digest)
    assert 0 < given.metrics["privacy.epsilon"] < PRIVATE.privacy.epsilon
    assert given.metrics["privacy.noise_multiplier"] == entry.spending.noise_multiplier
    assert "train.loss" not in given.metrics


def test_over_all_rounds_the_run_stays_within_its_epsilon_and_uses_it(site):
    spent = [site.answer(ask(PRIVATE, number=number)).metrics["privacy.epsilon"] for number in (1, 2, 3)]
    assert spent == sorted(spent)
    assert 0.95 * PRIVATE.privacy.epsilon < spent[-1] <= PRIVATE.privacy.epsilon


def test_the_same_request_again_gets_the_same_answer_and_spends_nothing(site):
    first, again = site.answer(ask(PRIVATE)), site.answer(ask(PRIVATE))
    assert all(first.tensors[name].tobytes() == again.tensors[name].tobytes() for name in first.tensors)
    assert len(spent(site, "training")) == 1
    assert len(spent(site, "count")) == 1
    assert len(spent(site, "metrics")) <= 1


def test_a_budget_for_life_that_is_used_up_refuses_the_next_run(site):
    for number in (1, 2, 3):
        assert site.answer(ask(PRIVATE, number=number)).status == "ok"
    refused = [site.answer(ask(PRIVATE, run="second", number=number)) for number in (1, 2, 3)]
    assert refused[-1].status == "refused"
    assert "for life" in refused[-1].reason
    assert refused[-1].tensors is None


@pytest.mark.parametrize(("policy", "job", "reason"), [
    ({"require_privacy": "true"}, OPEN, "requires differential privacy"),
    ({"collections": "[]"}, OPEN, 'does not allow the collection "chest"'),
    ({"min_patients": 500}, OPEN, "smallest cohort"),
    ({"max_epsilon_per_run": 1.0}, PRIVATE, "epsilon 8 is over"),
    ({}, OPEN.model_copy(update={"sites": ("south",)}), "does not name this site"),
    ({}, parse_job(JOB.format(mechanism="none").replace("sick", "other")), "log has the details"),
    ({}, OPEN.model_copy(update={"data": OPEN.data.model_copy(update={"collection": "ct"})}), "does not allow"),
])  # fmt: skip
def test_what_the_policy_or_the_data_does_not_allow_is_answered_no_with_the_reason(site, policy, job, reason):
    settings = {"collections": '["chest"]', "require_privacy": "false", "min_patients": 2} | policy
    allow(site.kit_folder, **settings)
    given = site.answer(ask(job))
    assert given.status in ("refused", "failed")
    assert reason in given.reason
    assert given.tensors is None
    assert not given.metrics
    assert site.ledger.entries() == []


def test_one_class_only_is_refused(site, hospital):
    folder, labels = hospital
    labels.write_text(labels.read_text().replace("sick", "well"))
    import_folder(site.kit_folder, "chest", folder, labels)
    assert "one class only" in site.answer(ask()).reason


def test_a_site_without_a_policy_refuses(site):
    (site.kit_folder / "policy.toml").unlink()
    assert "no policy" in site.answer(ask()).reason


def test_metrics_stay_here_when_the_policy_says_so(site):
    allow(site.kit_folder, collections='["chest"]', require_privacy="false", min_patients=2, metrics='"none"')
    assert not any(name.startswith("eval.") for name in site.answer(ask()).metrics)


def test_a_model_of_another_architecture_is_answered_with_its_first_fault(site):
    wrong = dataclasses.replace(ask(), model={"w": np.zeros(3, np.float32)})
    given = site.answer(wrong)
    assert given.status == "failed"
    assert "another architecture" in given.reason


def test_a_problem_with_the_data_leaves_no_file_name_and_no_count(site, hospital):
    for path in hospital[0].rglob("*.dcm"):
        path.write_bytes(b"gone")
    given = site.answer(ask())
    assert given.status == "failed"
    assert "dcm" not in given.reason
    assert str(hospital[0]) not in given.reason


@pytest.fixture
def in_a_run():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def message(request):
    built = Message(encode_request(request), 7, "train", group_id="1")
    built.metadata.__dict__["_message_id"] = "m"
    return built


def test_a_policy_may_keep_the_machine_to_itself(site, in_a_run):
    told = decode_answer(answer(message(ask(PRIVATE)), site).content)
    path = site.kit_folder / "policy.toml"
    path.write_text(change_policy(path.read_text(), {"machine": "false"}, "policy.toml"))
    untold = decode_answer(answer(message(ask(PRIVATE, number=2)), site).content)
    assert told.device == "CPU"
    assert told.metrics["train.held"] > told.metrics["train.seconds"] > 0
    assert (untold.device, untold.version) == ("", "")
    assert not {"train.held", "train.seconds"} & set(untold.metrics)


def test_every_reply_is_in_the_release_log_before_it_is_handed_over(site, in_a_run):
    answer(message(ask(PRIVATE)), site)
    answer(message(ask(PRIVATE, kind="evaluate", split="test")), site)
    answer(message(ask(OPEN.model_copy(update={"sites": ("south",)}))), site)
    introduce(message(ask()), site)
    releases = read(site.kit_folder)
    assert [release.status for release in releases] == ["ok", "ok", "refused", "ok"]
    assert releases[0].job_digest == PRIVATE.digest
    assert releases[0].epsilon > 0
    assert releases[0].bytes > 4 * 20_000
    assert "update/tensors" in releases[0].fields
    assert {"version", "device", "train.held"} <= set(releases[0].fields)
    assert set(releases[2].fields) == {"site", "job", "number", "status", "reason", "examples"}
    assert {release.to for release in releases} == {"127.0.0.1:1"}


def test_every_release_tells_what_its_run_has_cost_a_patient_so_far_the_metrics_included(site, in_a_run):
    for request in (ask(PRIVATE, "consent"), ask(PRIVATE), ask(PRIVATE, "evaluate", split="test")):
        answer(message(request), site)
    told = [release.epsilon for release in read(site.kit_folder)]
    by_split = {split: epsilon_of(site.ledger.spent_by_run("chest", "run", split), 1e-5) for split in ("train", "test")}
    assert 0 < told[0] < told[1] < told[2] == max(by_split.values())


def test_a_message_that_is_no_request_is_answered_and_recorded(site, in_a_run):
    built = Message(RecordDict(), 7, "train", group_id="1")
    built.metadata.__dict__["_message_id"] = "m"
    assert decode_answer(answer(built, site).content).status == "failed"
    assert len(read(site.kit_folder)) == 1


@pytest.mark.parametrize("job", [OPEN, PRIVATE], ids=["privacy off", "privacy on"])
def test_no_pixel_of_any_image_is_in_any_byte_that_leaves(site, in_a_run, job):
    # The patterns are the decoded images as the network sees them, in the forms in which bytes could carry them.
    images = site.bench(job).splits["test"].cases.images, site.bench(job).training.cases.images
    replies = [answer(message(ask(job, kind=kind)), site) for kind in ("train", "evaluate")]
    sent = b"".join(
        array.data for reply in replies for record in reply.content.array_records.values() for array in record.values()
    )
    sent += json.dumps([str(reply.content) for reply in replies]).encode()
    for image in np.concatenate([np.array(part) for part in images])[:, 0]:
        for row in image[:: len(image) // 4]:
            assert row.astype(np.float32).tobytes() not in sent
            assert np.rint(row * 255).astype(np.uint8).tobytes() not in sent


def test_a_sites_own_model_is_trained_and_tested_and_spends_nothing(site):
    alone = train_alone(site, PRIVATE)
    assert alone.metrics["eval.images"] > 0
    assert site.ledger.entries() == []
    assert read(site.kit_folder) == []
