"""Statistics at a site: counted as declared, paid for before they leave, refused where the policy says nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.catalog import FileRecord
from client.intake.image import Acquired, Seen
from client.intake.importer import import_folder
from client.policy import DEFAULT_POLICY
from client.releases import read
from client.site import Site
from client.summary import in_plain_words
from client.survey import count
from common.bins import HISTOGRAMS, LABEL, SENSITIVITY, histogram
from common.release import METRIC_FIELDS
from common.statistics import statistics_job
from common.update import Request

LABELS = ("well", "sick")
NOISED, EXACT = (statistics_job("count", ("north",), "chest", LABELS, epsilon=epsilon) for epsilon in (2.0, None))


@pytest.fixture
def site(kit_folder, write_kit, hospital):
    """A site of 12 patients with two images each, whose policy allows statistics."""
    write_kit(kit_folder)
    allow(kit_folder)
    key = kit_folder / "pseudonym.key"
    key.write_bytes(bytes([1]) * 32)  # splits hang on the key: with this one every split has patients
    key.chmod(0o600)
    import_folder(kit_folder, "chest", *hospital)
    return Site.open(kit_folder, "cpu")


def allow(folder, **changes):
    chosen = {"collections": '["chest"]', "tasks": '["statistics"]', "min_patients": 2} | changes
    lines = [
        f"{name} = {chosen[name]}" if (name := line.split(" ")[0]) in chosen else line
        for line in DEFAULT_POLICY.splitlines()
    ]
    (folder / "policy.toml").write_text("\n".join(lines))


def ask(site, job=NOISED, kind="statistics", run="run"):
    return site.answer(Request(kind, run, 1, job, {}))


def test_noised_statistics_are_paid_for_on_every_split_and_near_the_truth(site):
    given_ = ask(site)
    assert (given_.status, given_.reason) == ("ok", "")
    entries = site.ledger.entries()
    assert {entry.split for entry in entries} == {"train", "validation", "test"}
    assert {(entry.purpose, entry.run, entry.job_digest) for entry in entries} == {("statistics", "run", NOISED.digest)}
    found = given_.numbers.statistics
    assert found.deviation == pytest.approx(entries[0].spending.noise_multiplier * SENSITIVITY)
    errors = np.array(found.label) - [8, 4, 0, 0]
    assert 0 < np.abs(errors).max() < 6 * found.deviation
    assert given_.metrics["privacy.epsilon"] <= 2.0


def test_without_room_in_the_budget_nothing_leaves_and_nothing_is_written(site):
    allow(site.kit_folder, max_epsilon_for_life=0.5)
    for kind in ("consent", "statistics"):
        given_ = ask(site, kind=kind)
        assert (given_.status, given_.numbers.statistics) == ("refused", None)
        assert "for life" in given_.reason
    assert site.ledger.entries() == []


def test_a_second_run_draws_on_what_the_first_left(site):
    allow(site.kit_folder, max_epsilon_for_life=2.5)
    assert ask(site).status == "ok"
    assert "the largest epsilon that does is" in ask(site, kind="consent", run="again").reason


def test_the_same_request_again_gets_the_same_numbers_and_spends_nothing(site):
    first, spent = ask(site), len(site.ledger.entries())
    assert ask(site).numbers.statistics == first.numbers.statistics
    assert len(site.ledger.entries()) == spent


@pytest.mark.parametrize(("changes", "job", "reason"), [
    ({"tasks": '["classification"]'}, NOISED, 'does not allow the task "statistics"'),
    ({"min_patients": 13}, NOISED, "smallest cohort"),
    ({}, EXACT, "requires differential privacy"),
    ({"require_privacy": "false"}, EXACT, "no exact count leave"),
    ({"max_epsilon_per_run": 1.0}, NOISED, "epsilon 2 is over"),
])  # fmt: skip
def test_what_the_policy_does_not_allow_is_refused(site, changes, job, reason):
    allow(site.kit_folder, **changes)
    given_ = ask(site, job)
    assert given_.status == "refused"
    assert reason in given_.reason
    assert site.ledger.entries() == []


def test_a_person_is_asked_in_plain_words_where_the_policy_wants_one(site):
    allow(site.kit_folder, approval='"each-job"')
    assert ask(site, kind="consent").status == "waiting"
    words = " ".join(in_plain_words(NOISED))
    assert "Nothing is trained" in words
    assert "epsilon 2 at delta 1e-05" in words


def test_exact_counts_leave_where_they_are_public_and_never_of_few_patients(site):
    allow(site.kit_folder, require_privacy="false", counts='"public"')
    given_ = ask(site, EXACT)
    assert given_.numbers.bases()["stat"] == "declared"
    assert given_.numbers.statistics.label == (8.0, 0.0, 0.0, 0.0)  # four sick ones: fewer than five
    assert given_.numbers.statistics.sex[-1] == 12.0


def test_a_job_for_statistics_trains_nothing_and_one_for_training_counts_nothing(site):
    assert ask(site, kind="train").status == "failed"
    training = NOISED.model_copy(update={"task": NOISED.task.model_copy(update={"kind": "classification"})})
    allow(site.kit_folder, tasks='["classification", "statistics"]')
    given_ = ask(site, training)
    assert (given_.status, given_.numbers.statistics) == ("failed", None)


files = st.builds(
    lambda who, label, modality, sex, age, spacing, frames, bins: FileRecord(
        "", "", 0, 0, patient=who, label=label, modality=modality, frames=frames, rows=64, columns=70,
        acquired=Acquired(sex=sex, age=age, spacing=(spacing, spacing) if spacing else ()), seen=Seen(histogram=bins),
    ),
    who=st.sampled_from("abcde"), label=st.sampled_from([*LABELS, "odd", None]), modality=st.sampled_from(["CT", "XX"]),
    sex=st.sampled_from(["F", "M", ""]), age=st.sampled_from([None, 0, 80]), spacing=st.sampled_from([0, 0.2, 9]),
    frames=st.integers(1, 500),
    bins=st.lists(st.integers(0, 9), min_size=16, max_size=16).filter(any).map(tuple),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(files, min_size=1, max_size=30))
def test_a_patient_moves_all_histograms_together_by_no_more_than_their_sensitivity(records):
    """Whatever a patient's images are: this is what the noise is calibrated to."""
    someone = records[0].patient
    having, lacking = count(records, LABELS), count([one for one in records if one.patient != someone], LABELS)
    moved = np.concatenate([having[name] - lacking[name] for name in having])
    assert np.linalg.norm(moved) <= SENSITIVITY + 1e-9
    assert all(weights.sum() == pytest.approx(len({one.patient for one in records})) for weights in having.values())


def test_what_is_counted_is_what_the_type_lists():
    names = {f"stat.{name}" for name in (LABEL, *HISTOGRAMS)} | {"stat.deviation"}
    assert {name for name in METRIC_FIELDS if name.startswith("stat.")} == names
    assert len(histogram(LABEL, LABELS).bins) == 4


def test_statistics_stand_in_the_log_of_what_left(site, monkeypatch):
    from flwr.app import Message
    from flwr.supercore.task_identity import TaskIdentity

    from client.app import answer
    from common.update import decode_answer, encode_request

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    built = Message(encode_request(Request("statistics", "run", 1, NOISED, {})), 7, "train", group_id="1")
    built.metadata.__dict__["_message_id"] = "m"
    given_ = decode_answer(answer(built, site).content)
    (release,) = read(site.kit_folder)
    assert (release.kind, release.run) == ("statistics", "run")
    assert {f"stat.{name}" for name in HISTOGRAMS} <= set(release.fields)
    assert release.epsilon == given_.metrics["privacy.epsilon"]
