"""A hospital's policy decides; without one everything is refused."""

import pytest

from client.policy import (
    DEFAULT_POLICY,
    FILE_NAME,
    Cohort,
    check_cohort,
    check_job,
    count_basis,
    metrics_basis,
    read_policy,
)
from common.errors import RefusedError, UsageError
from common.job import Job, parse_job

PRIVATE = parse_job("""
name = "j"
sites = ["north"]
[task]
labels = ["n", "p"]
[data]
collection = "chest"
[privacy]
mechanism = "dp-sgd"
""")


def policy(folder, **changes):
    text = DEFAULT_POLICY.replace("collections = []", 'collections = ["chest"]')
    for key, value in changes.items():
        text = "\n".join(f"{key} = {value}" if line.startswith(f"{key} ") else line for line in text.splitlines())
    (folder / FILE_NAME).write_text(text)
    return read_policy(folder)


def with_privacy(job: Job, **changes) -> Job:
    return job.model_copy(update={"privacy": job.privacy.model_copy(update=changes)})


def test_no_policy_means_refusal(tmp_path):
    with pytest.raises(RefusedError, match="no policy"):
        read_policy(tmp_path)


def test_the_policy_as_installed_allows_no_collection(tmp_path):
    (tmp_path / FILE_NAME).write_text(DEFAULT_POLICY)
    with pytest.raises(RefusedError, match='collection "chest"'):
        check_job(read_policy(tmp_path), PRIVATE)


def test_a_private_job_on_an_allowed_collection_is_accepted(tmp_path):
    check_job(policy(tmp_path), PRIVATE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mechanism": "none"}, "requires differential privacy"),
        ({"epsilon": 9.0}, "epsilon 9 is over"),
        ({"delta": 1e-3}, "delta 0.001 is over"),
        ({"unit": "image"}, "protects patients"),
    ],
)
def test_a_job_that_protects_less_than_the_policy_wants_is_refused_with_the_reason(tmp_path, changes, reason):
    with pytest.raises(RefusedError, match=reason):
        check_job(policy(tmp_path), with_privacy(PRIVATE, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"networks": '["resnet18"]'}, "small-cnn"),
        ({"tasks": "[]"}, "classification"),
        ({"strategies": '["fedprox"]'}, "fedavg"),
        ({"secure_noise": "true"}, "cryptographic"),
    ],
)
def test_what_the_policy_does_not_list_is_refused(tmp_path, changes, reason):
    with pytest.raises(RefusedError, match=reason):
        check_job(policy(tmp_path, **changes), PRIVATE)


def test_every_reason_is_given_at_once(tmp_path):
    with pytest.raises(RefusedError, match=r"epsilon.*;.*unit"):
        check_job(policy(tmp_path), with_privacy(PRIVATE, epsilon=20.0, unit="image"))


def test_a_small_cohort_is_refused_without_telling_how_small(tmp_path):
    with pytest.raises(RefusedError) as refusal:
        check_cohort(policy(tmp_path), Cohort(training_patients=7, evaluation_patients=0))
    assert "7" not in str(refusal.value)


@pytest.mark.parametrize(("changes", "patients", "test", "validation"), [
    ({}, 5, "noised", "noised"),
    ({}, 4, None, None),
    ({"metrics": '"none"', "releasable_splits": '["test"]'}, 500, None, None),
    ({"metrics": '"exact"'}, 500, "declared", "declared"),
    ({"releasable_splits": '["test"]'}, 500, "declared", "noised"),
])  # fmt: skip
def test_metrics_leave_as_the_policy_says_and_never_of_too_few_patients(tmp_path, changes, patients, test, validation):
    found = policy(tmp_path, **changes)
    assert metrics_basis(found, PRIVATE, "test", patients) == test
    assert metrics_basis(found, PRIVATE, "validation", patients) == validation


def test_a_count_is_noised_unless_the_hospital_declares_it_public(tmp_path):
    assert count_basis(policy(tmp_path), PRIVATE) == "noised"
    assert count_basis(policy(tmp_path, counts='"public"'), PRIVATE) == "declared"


def test_a_job_without_privacy_sends_exact_numbers_as_it_sends_exact_updates(tmp_path):
    found = policy(tmp_path)
    assert count_basis(found, with_privacy(PRIVATE, mechanism="none")) == "exact"
    assert metrics_basis(found, with_privacy(PRIVATE, mechanism="none"), "test", 20) == "exact"


@pytest.mark.parametrize("text", ["collections = 3", "collections = []\ncolections = []", "collections = ["])
def test_a_wrong_policy_is_named_in_one_line(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UsageError) as refusal:
        read_policy(tmp_path)
    assert FILE_NAME in str(refusal.value)
    assert "\n" not in str(refusal.value)
