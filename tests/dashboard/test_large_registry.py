"""A registry of many sites, runs and rounds: pages ask for what they show, and what has been read is not read again."""

from __future__ import annotations

import pytest
from large_registry import Large, make_large, more_rounds
from sqlalchemy import event

from common.once import Once
from server.dashboard.pages import run as run_page
from server.readmodel import ReadModel

SITES, RUNS, ROUNDS = 14, 120, 40


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    made = make_large(tmp_path_factory.mktemp("large"), hospitals=SITES, run_count=RUNS, longest_rounds=ROUNDS)
    yield made
    made.registry.close()


@pytest.fixture
def read(large: Large) -> ReadModel:
    return ReadModel(large.registry, large.kit)


def statements(large: Large, act) -> list[str]:
    """What is asked of the database while `act` is at work."""
    asked: list[str] = []
    engine = large.registry.database._engine

    def note(connection, cursor, statement, *rest):
        asked.extend([statement] if statement != "BEGIN" else [])

    event.listen(engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return asked


def test_lists_come_a_page_at_a_time_and_find_what_is_looked_for(read):
    listed = read.runs(limit=50)
    assert (len(listed.items), listed.total) == (50, RUNS)
    assert {line.job_name for line in read.runs(text="study-07").items} == {"study-07"}
    assert {line.status for line in read.runs(status="failed").items} == {"failed"}
    assert read.runs(offset=100, limit=50).items[-1].name.endswith(f"{1:06x}")
    assert len(read.models(stage="approved", limit=5).items) == 5


@pytest.mark.parametrize("page", ["federation", "participation", "runs", "models"])
def test_the_number_of_statements_does_not_grow_with_the_number_of_runs(read, large, page):
    few = 5 if page != "federation" else 10 + SITES  # a witnessed head for each site
    assert len(statements(large, getattr(read, page))) <= few
    assert statements(large, getattr(read, page)) == []


def test_a_long_run_that_goes_on_is_read_on_from_where_it_was(read, large):
    before = read.run(large.longest)
    assert len(before.rounds) == ROUNDS
    next(more_rounds(large, start=ROUNDS + 1))
    after = read.run(large.longest)
    assert len(after.rounds) == ROUNDS + 1
    assert after.rounds[0] is before.rounds[0]
    assert after.rounds[-1].number == ROUNDS + 1


def test_a_chart_of_many_rounds_and_sites_has_a_band_and_not_a_line_a_site(read, large):
    pieces = run_page.pieces_of(read, large.longest, Once(4), whole=False, offset=0, diff="")
    assert pieces["norms"].options["legend"]["data"] == [f"{SITES} sites: median, lowest to highest"]
