"""Prometheus' numbers, read by its own parser."""

from __future__ import annotations

from playground import job_of, model_of
from prometheus_client.parser import text_string_to_metric_families
from ward import SITES


def numbers(ward):
    answer = ward.by_token("viewer", "metrics").get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation for family in families)
    return {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}


def test_the_numbers_tell_of_sites_runs_and_the_coordinator(ward):
    found = numbers(ward)
    assert found["wardround_coordinator_running",] == 0
    assert found["wardround_runs", "completed"] == 1
    for site in SITES:
        assert found["wardround_site_state", *sorted(("never seen", site))] == 1
        assert found["wardround_site_certificate_end_timestamp_seconds", site] > 1.7e9


def test_a_run_under_way_has_its_own_numbers_until_it_ends(ward):
    run = ward.registry.submit(job_of(SITES), model_of())
    found = numbers(ward)
    assert (found["wardround_run_rounds_done", run], found["wardround_run_rounds_planned", run]) == (0, 3)
    ward.registry.stop(run)
    assert ("wardround_run_rounds_done", run) not in numbers(ward)
