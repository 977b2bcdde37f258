"""Whatever job comes, with whatever policy: only listed fields leave, each on a basis that the hospital allows."""

import json
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.app import answer
from client.intake.importer import import_folder
from client.policy import DEFAULT_POLICY
from client.site import Site
from common.job import parse_job
from common.networks import initial_model
from common.release import BASES, METRIC_FIELDS, NO_NUMBERS, Evaluation, Training
from common.statistics import counts_only
from common.update import BASIS, HEAD, METRICS, REPORT, UPDATE, Request, Status, decode_answer, encode_request

FIELDS = {
    METRICS: set(METRIC_FIELDS),
    BASIS: {"train", "eval", "stat"},
    REPORT: {"site", "job", "number", "status", "reason", "examples", "version", "device"},
    HEAD: {"head"},
    UPDATE: {"tensors"},
}
SETTINGS = {fields_.split(" ")[0] for fields_ in DEFAULT_POLICY.splitlines() if " = " in fields_.split("#")[0]}


@pytest.fixture(scope="module")
def in_a_run():
    """What Flower sets for an app that runs."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def kit(kit_folder, write_kit, hospital):
    """The kit of a site of 12 patients with two images each."""
    write_kit(kit_folder)
    key = kit_folder / "pseudonym.key"
    key.write_bytes(bytes([1]) * 32)
    key.chmod(0o600)
    import_folder(kit_folder, "chest", *hospital)
    return kit_folder


def allow(folder, wanted):
    chosen = {"collections": ["chest"], "min_patients": 2, "min_evaluation_patients": 1, "require_privacy": False}
    chosen |= {"image_unit": True, "tasks": ["classification", "statistics"]} | wanted
    assert set(chosen) <= SETTINGS
    lines = [line for line in DEFAULT_POLICY.splitlines() if line.split(" ")[0] not in chosen]
    lines += [f"{name} = {json.dumps(value)}" for name, value in chosen.items()]
    (folder / "policy.toml").write_text("\n".join(lines) + "\n")


policies = st.fixed_dictionaries(
    {},
    optional={
        "metrics": st.sampled_from(["noised", "exact", "none"]),
        "counts": st.sampled_from(["noised", "public"]),
        "releasable_splits": st.sampled_from([[], ["test"], ["validation"]]),
        "min_evaluation_patients": st.sampled_from([1, 3, 1000]),
        "min_patients": st.sampled_from([2, 1000]),
        "tasks": st.sampled_from([["classification"], ["statistics", "classification"]]),
        "max_epsilon_for_life": st.sampled_from([0.5, 30.0]),
    },
)
jobs = st.builds(
    lambda kind, mechanism, unit, epsilon, labels, size, sites, rounds: parse_job(
        f'name = "j"\nsites = {json.dumps(sites)}\n[task]\nkind = "{kind}"\nlabels = {json.dumps(labels)}\n'
        '[data]\ncollection = "chest"\n'
        f"size = [{size}, {size}]\n[training]\nbatch_size = 4\n[aggregation]\nrounds = {rounds}\n"
        f'[privacy]\nmechanism = "{mechanism}"\nunit = "{unit}"\nepsilon = {epsilon}\nengine = "plain"\n'
    ),
    kind=st.sampled_from(["classification", "classification", "statistics"]),
    mechanism=st.sampled_from(["dp-sgd", "dp-sgd", "none"]),
    unit=st.sampled_from(["patient", "image"]),
    epsilon=st.sampled_from([1.0, 8.0]),
    labels=st.sampled_from([["well", "sick"], ["sick", "well"], ["well", "dead"]]),
    size=st.sampled_from([8, 16]),
    sites=st.sampled_from([["north"], ["south"]]),
    rounds=st.integers(1, 3),
)


def private_job(more=""):
    return parse_job(
        'name = "j"\nsites = ["north"]\n[task]\nlabels = ["well", "sick"]\n'
        f'[data]\ncollection = "chest"\nsize = [8, 8]\n[privacy]\nmechanism = "dp-sgd"\n{more}'
    )


def sent(site, request):
    built = Message(encode_request(request), 7, "train", group_id="1")
    built.metadata.__dict__["_message_id"] = "m"
    return answer(built, site).content


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    policy=policies,
    job=jobs,
    kind=st.sampled_from(["consent", "train", "train", "evaluate", "statistics"]),
    data=st.data(),
)
def test_no_unlisted_field_leaves_and_every_number_has_a_basis_that_the_policy_allows(
    kit, in_a_run, policy, job, kind, data
):
    allow(kit, policy)
    site = Site.open(kit, "cpu")
    split = data.draw(st.sampled_from(["validation", "test"]))
    number, run = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["a", "b", "c"]))
    model = {} if kind in ("consent", "statistics") or counts_only(job) else initial_model(job)
    if data.draw(st.integers(0, 9)) == 0:
        model = {"w": np.zeros(3, np.float32)}
    before = site.ledger.entries()
    content = sent(site, Request(kind, run, number, job, model, split))

    for name, record in content.items():
        assert set(record) <= FIELDS[name], name
    given_ = decode_answer(content)
    assert given_.status in get_args(Status)
    bases = given_.numbers.bases()
    assert set(bases.values()) <= set(BASES)
    paid = {(entry.split, entry.purpose) for entry in [*before, *site.ledger.entries()]}
    if given_.status != "ok":
        assert not given_.metrics
        assert given_.tensors is None
        return
    assert ("stat" in bases) == (kind == "statistics")
    if counts_only(job):
        assert set(bases) <= {"stat"}
        assert bases.get("stat", "noised") == ("noised" if job.private or kind == "consent" else "declared")
        assert kind == "consent" or not job.private or ("train", "statistics") in paid
        return
    if given_.tensors is not None and job.private:
        assert ("train", "training") in paid
    if job.private:
        assert "exact" not in bases.values()
        assert given_.numbers.training is None or given_.numbers.training.loss is None
        assert policy.get("counts") == "public" or bases.get("train", "noised") == "noised"
        assert ("train", "count") in paid or policy.get("counts") == "public"
        evaluated = "validation" if kind == "train" else split
        open_ = policy.get("metrics") == "exact" or evaluated in policy.get("releasable_splits", [])
        assert bases.get("eval", "noised") == ("declared" if open_ else "noised") or "eval" not in bases
        if bases.get("eval") == "noised":
            assert (evaluated, "metrics") in paid
            assert given_.numbers.evaluation.loss is None
    if policy.get("metrics") == "none" or policy.get("min_evaluation_patients") == 1000:
        assert "eval" not in bases


def test_a_type_that_gains_a_field_gains_it_on_the_list():
    for prefix, kind in (("train", Training), ("eval", Evaluation)):
        assert {f"{prefix}.{item.name}" for item in fields(kind) if item.name not in NO_NUMBERS} <= set(METRIC_FIELDS)


def test_with_privacy_the_same_data_gives_the_same_count_in_every_run_and_pays_for_it_once(kit, in_a_run):
    allow(kit, {})
    job = private_job()
    site = Site.open(kit, "cpu")
    counts = {decode_answer(sent(site, Request("consent", run, 1, job, {}))).examples for run in ("a", "b", "c")}
    assert len(counts) == 1
    assert [entry.purpose for entry in site.ledger.entries()] == ["count"]


def test_noised_metrics_cost_their_own_split_and_not_the_training_patients(kit, in_a_run):
    allow(kit, {})
    job = private_job('engine = "plain"\n[aggregation]\nrounds = 2\n')
    site = Site.open(kit, "cpu")
    for number in (1, 2):
        assert decode_answer(sent(site, Request("train", "a", number, job, initial_model(job)))).status == "ok"
    decode_answer(sent(site, Request("evaluate", "a", 2, job, initial_model(job), "validation")))
    purposes = {(entry.split, entry.purpose) for entry in site.ledger.entries()}
    assert purposes == {("train", "count"), ("train", "training"), ("validation", "metrics")}
    assert len([entry for entry in site.ledger.entries() if entry.split == "validation"]) == 3
