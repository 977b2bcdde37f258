"""The round loop: who was asked, who answered, what was refused, when a round counts, and which model is kept."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc
from collections import deque

import numpy as np
import pytest
from playground import HonestSite, PlaygroundGrid, Slow, exact, job_of, model_of

from common.errors import JobError, RunError
from common.release import Numbers
from common.update import Answer, Tensors
from server.exchange import Stopped
from server.records import Kept, RoundRecord
from server.rounds import RoundLoop, Start


class Notebook:
    """A recorder in memory."""

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []
        self.models: dict[int, Tensors] = {0: model_of()}
        self.best: Kept | None = None

    def progress(self, record, waiting) -> None: ...

    def commit(self, record, advance, best) -> None:
        self.rounds.append(record)
        self.best = best
        if advance is not None:
            self.models[record.number] = advance.model

    def load(self, number):
        return self.models[number]

    def train(self, number=1):
        return [record for record in self.rounds if record.kind == "train" and record.number == number][-1]

    def status(self, site, number=1):
        return next(entry for entry in self.train(number).sites if entry.site == site)


def run(job, grid, start=None, **options):
    book = Notebook()
    loop = RoundLoop(job, "chest-1", grid, lambda: grid.node_ids, book, start or Start(model_of()), **options)
    try:
        book.kept = loop.run()
        book.error = None
    except RunError as error:
        book.error = str(error)
    return book


def test_a_run_asks_only_the_sites_that_its_job_names(federation):
    grid = PlaygroundGrid(federation)
    run(job_of(["north", "west"]), grid)
    assert {site for site, _ in grid.asked} == {"north", "west"}


def test_every_round_averages_the_updates_by_examples(federation):
    book = run(job_of(), PlaygroundGrid(federation))
    sites = {site.site: site for site in book.train().sites}
    assert {site.status for site in sites.values()} == {"aggregated"}
    expected = np.float32((2400 * 0.37 - 700 * 0.37 + 400 * 3 * 0.37) / 3500)
    np.testing.assert_allclose(book.models[1]["a.bias"], expected, rtol=1e-6)
    assert book.train().share == 1.0
    assert sites["north"].received == sites["north"].sent > 0
    assert [record.kind for record in book.rounds] == ["consent"] + ["train"] * 3 + ["validation", "test"]


def test_the_order_in_which_sites_answer_changes_no_bit_of_the_model(federation):
    forward, backward = (
        run(job_of(), PlaygroundGrid(dict(order))) for order in (federation.items(), reversed(federation.items()))
    )
    assert all(forward.models[3][name].tobytes() == backward.models[3][name].tobytes() for name in model_of())


def test_a_site_that_refuses_is_not_asked_again_and_its_reason_is_kept(federation):
    federation["west"] = lambda request: Answer("west", "", 0, "refused", "the policy allows no job without privacy")
    grid = PlaygroundGrid(federation)
    book = run(job_of(), grid)
    assert book.status("west").status == "refused"
    assert "no job without privacy" in book.status("west").reason
    assert book.status("west", 2).status == "excluded"
    assert [site for site, _ in grid.asked].count("west") == 1
    assert book.train(2).invited == ("north", "south")


def bad(**changes):
    def behave(request):
        honest = HonestSite("south", 700)(request)
        return dataclasses.replace(honest, **changes) if request.kind == "train" else honest

    return behave


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (
            bad(tensors={"z.weight": np.full((3, 2), np.nan, np.float32), "a.bias": np.zeros(2, np.float32)}),
            "not finite",
        ),
        (bad(tensors={"other": np.zeros(2, np.float32)}), "another architecture"),
        (bad(tensors={"z.weight": np.zeros((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}), "shape"),
        (bad(tensors={"z.weight": np.zeros((3, 2)), "a.bias": np.zeros(2, np.float32)}), "dtype float64"),
        (bad(tensors=None), "no update"),
        (bad(examples=0, numbers=Numbers()), "a count of 0"),
        (bad(examples=10**9, numbers=Numbers()), "a count of 1000000000"),
        (bad(examples=5), "its metrics say 700"),
        (bad(site="north"), 'bears the name "north"'),
        (bad(number=7), "for round 7"),
        (bad(job_digest="0" * 64), "for job 000000000000"),
    ],
)
def test_a_bad_update_is_rejected_with_its_reason_and_costs_only_that_sites_turn(federation, behaviour, reason):
    federation["south"] = behaviour
    book = run(job_of(aggregation="rounds = 1"), PlaygroundGrid(federation))
    assert book.status("south").status == "rejected"
    assert reason in book.status("south").reason
    assert book.train().named("aggregated") == ("north", "west")


def test_a_count_of_examples_that_jumps_between_rounds_is_rejected(federation):
    federation["south"] = lambda request: HonestSite("south", 700 if request.number == 1 else 70_000)(request)
    book = run(job_of(), PlaygroundGrid(federation))
    assert book.status("south", 2).reason == "south: the count of examples jumped from 700 to 70000"
    assert book.train(1).named("aggregated") == ("north", "south", "west")


def test_a_site_whose_app_breaks_has_failed_and_is_asked_again(federation):
    broken = []

    def break_once(request):
        if not broken:
            broken.append(1)
            raise RuntimeError("disk on fire")
        return HonestSite("west", 400)(request)

    federation["west"] = break_once
    book = run(job_of(), PlaygroundGrid(federation))
    assert (book.status("west").status, book.status("west", 2).status) == ("failed", "aggregated")
    assert "disk on fire" in book.status("west").reason


def test_a_round_waits_for_a_site_that_is_away_until_it_is_back(federation):
    grid = PlaygroundGrid(federation)
    grid.away, looks = {"south"}, []

    def come_back():
        looks.append(len(grid.asked))
        grid.away = {"south"} if len(looks) < 12 else set()
        return False

    book = run(job_of(aggregation="rounds = 1"), grid, stopped=come_back)
    assert book.train().named("aggregated") == ("north", "south", "west")
    assert not any(looks[:12])  # who would train waits for it too


def test_a_site_that_goes_away_while_it_is_asked_is_asked_again_when_it_is_back(federation):
    honest, looks = HonestSite("south", 700), []
    grid = PlaygroundGrid(federation | {"south": lambda request: honest(request) if sum(looks) > 8 else None})

    def come_and_go():
        looks.append("south" in {site for site, _ in grid.asked})
        grid.away = {"south"} if 2 < sum(looks) < 6 else set()
        return False

    book = run(job_of(aggregation="rounds = 1"), grid, stopped=come_and_go)
    assert book.train().named("aggregated") == ("north", "south", "west")
    assert [site for site, request in grid.asked if request.kind == "train"].count("south") == 2


def test_a_deadline_closes_the_round_and_tells_late_from_unreached(federation):
    federation["south"] = lambda request: None if request.kind == "train" else HonestSite("south", 700)(request)
    grid = PlaygroundGrid(federation)
    grid.away = {"west"}
    book = run(job_of(aggregation="rounds = 1\ndeadline_seconds = 0.3"), grid)
    assert {site.site: site.status for site in book.train().sites} == {
        "north": "aggregated",
        "south": "late",
        "west": "unreached",
    }
    assert book.train().reached == ("north", "south")


def test_an_answer_that_comes_after_the_round_has_closed_is_noted_and_not_used(federation):
    federation["south"] = Slow(HonestSite("south", 700))
    book = run(job_of(aggregation="rounds = 2\ndeadline_seconds = 0.3"), PlaygroundGrid(federation))
    assert book.status("south", 1).status == "late"
    late = [answer for record in book.rounds for answer in record.late]
    assert [(answer.number, answer.site) for answer in late] == [(1, "south")]


def test_without_quorum_the_model_stays_and_the_run_fails_after_the_rounds_that_the_job_allows(federation):
    federation["south"] = federation["west"] = lambda request: Answer("x", "", 0, "failed")
    book = run(job_of(aggregation="rounds = 3\nmin_sites = 2\nmax_failed_rounds = 2"), PlaygroundGrid(federation))
    assert [(record.number, record.attempt, record.status) for record in book.rounds[1:]] == [
        (1, 1, "no quorum"),
        (1, 2, "no quorum"),
    ]
    assert book.error == ("round 1 found no quorum 2 times in a row: no quorum: 1 of 3 sites trained, 2 needed")
    assert book.status("north").status == "trained"
    assert list(book.models) == [0]


def test_a_quorum_by_share_of_training_cases_counts_cases_and_not_sites(federation):
    honest = HonestSite("north", 2400)
    federation["north"] = lambda request: (
        Answer("north", "", 0, "failed", "GPU lost") if request.number == 2 else honest(request)
    )
    book = run(job_of(aggregation="rounds = 2\nmin_share = 0.5\nmax_failed_rounds = 1"), PlaygroundGrid(federation))
    assert book.train(2).named("trained") == ("south", "west")
    assert book.train(2).share == pytest.approx(1100 / 3500)
    assert "updates cover 31% of the known training cases, 50% needed" in book.error


def test_a_round_without_the_largest_site_carries_a_warning(federation):
    honest = HonestSite("north", 2400)
    federation["north"] = lambda request: (
        Answer("north", "", 0, "failed", "GPU lost") if request.number == 2 else honest(request)
    )
    book = run(job_of(), PlaygroundGrid(federation))
    assert [book.train(number).whole for number in (1, 2, 3)] == [True, False, True]
    assert (
        "north (failed) is missing from this round, the site with the most training cases, 2,400 of 3,500"
        in (book.train(2).warnings[0])
    )


def test_a_missing_site_of_unknown_size_may_be_the_largest(federation):
    federation["west"] = lambda request: Answer("west", "", 0, "refused", "no")
    book = run(job_of(), PlaygroundGrid(federation))
    assert "may be the largest" in book.train(1).warnings[0]


def test_a_run_whose_quorum_refused_ends_at_once(federation):
    federation["south"] = lambda request: Answer("south", "", 0, "refused", "ledger is spent")
    federation["west"] = lambda request: Answer("west", "", 0, "refused", "no policy")
    book = run(job_of(aggregation="rounds = 9\nmin_sites = 2"), PlaygroundGrid(federation))
    assert [record.kind for record in book.rounds] == ["consent", "train"]
    assert "can't be reached any more: south refused: ledger is spent; west refused: no policy" in book.error


def test_the_best_model_is_the_one_that_the_sites_scored_best_and_not_the_one_they_trained_then(federation):
    # A round's answers score the model that came in, so 0.9 in round 3 speaks of the model after round 2.
    scores = {1: 0.99, 2: 0.7, 3: 0.9, 4: 0.6}
    for site in federation.values():
        site.auc = lambda request: scores[request.number] if request.kind == "train" else 0.65
    grid = PlaygroundGrid(federation)
    book = run(job_of(aggregation="rounds = 4"), grid)
    assert book.kept == Kept(2, pytest.approx(0.9))
    final = next(request for _, request in grid.asked if request.split == "test")
    assert all(final.model[name].tobytes() == book.models[2][name].tobytes() for name in final.model)


def test_the_criterion_is_averaged_by_cases_evaluated(federation):
    for name, auc in (("north", 0.9), ("south", 0.6), ("west", 0.5)):
        federation[name].auc = lambda request, auc=auc: auc
    book = run(job_of(), PlaygroundGrid(federation))
    assert book.train(1).score == pytest.approx((0.9 * 2400 + 0.6 * 700 + 0.5 * 400) / 3500)


def test_when_loss_is_the_criterion_the_lowest_is_the_best(federation):
    losses = {2: 0.4, 3: 0.2}
    for site in federation.values():
        honest = HonestSite(site.name, site.examples)
        federation[site.name] = lambda request, honest=honest: dataclasses.replace(
            honest(request),
            numbers=exact(
                {
                    "eval.loss": losses.get(request.number, 0.9) if request.kind == "train" else 0.5,
                    "eval.images": 9.0,
                }
            ),
        )
    book = run(job_of(aggregation='rounds = 3\ncriterion = "loss"'), PlaygroundGrid(federation))
    assert book.kept.round == 2


def test_where_no_site_sends_metrics_the_last_model_is_kept(federation):
    for name, site in list(federation.items()):
        federation[name] = lambda request, site=site: dataclasses.replace(site(request), numbers=Numbers())
    book = run(job_of(), PlaygroundGrid(federation))
    assert book.kept == Kept(3, None)


def test_a_stop_ends_the_wait_at_once(federation):
    federation["south"] = lambda request: None
    started = time.monotonic()
    with pytest.raises(Stopped):
        run(job_of(), PlaygroundGrid(federation), stopped=lambda: time.monotonic() > started + 0.2)
    assert time.monotonic() - started < 60  # and not for ever


def test_a_criterion_that_is_no_metric_is_answered_with_the_nearest(federation):
    with pytest.raises(JobError, match='unknown metric "acuracy": did you mean "accuracy"'):
        run(job_of(aggregation='criterion = "acuracy"'), PlaygroundGrid(federation))


def test_the_loops_memory_does_not_grow_with_the_number_of_sites():
    def peak(count):
        sites = {f"s{number}": HonestSite(f"s{number}", 100) for number in range(count)}
        grid = PlaygroundGrid(sites)
        grid.asked = deque(maxlen=1)
        start = Start({"w": np.zeros(500_000, np.float32)})
        tracemalloc.start()
        run(job_of(sites, "rounds = 1"), grid, start)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(16) < 1.2 * peak(2)


def says(status, reason=""):
    return Answer("", "", 0, status, reason)


@pytest.fixture
def no_pauses(monkeypatch):
    """What waits for people, waits milliseconds here."""
    for name in ("server.consent.SHORTEST_PAUSE", "server.rounds.SHORTEST_PAUSE", "server.rounds.LONGEST_PAUSE"):
        monkeypatch.setattr(name, 0.01)


def test_a_run_waits_for_the_site_where_a_person_must_approve_it(federation, no_pauses):
    grid = PlaygroundGrid(federation)
    grid.consents["south"] = [says("waiting", "a person must approve"), says("waiting", "a person"), says("ok")]
    book = run(job_of(), grid)
    assert {site.site: site.status for site in book.rounds[0].sites} == dict.fromkeys(federation, "agreed")
    assert set(book.train().named("aggregated")) == set(federation)


def test_a_site_that_refuses_the_job_is_sent_no_model(federation):
    grid = PlaygroundGrid(federation)
    grid.consents["west"] = [says("refused", "the nearest job that fits has privacy.epsilon = 3.2")]
    book = run(job_of(), grid)
    assert "west" not in {site for site, _ in grid.asked}
    assert "3.2" in next(site.reason for site in book.rounds[0].sites if site.site == "west")
    assert book.kept.round == 3


def test_a_decision_that_does_not_come_counts_as_a_refusal(federation, no_pauses):
    grid = PlaygroundGrid(federation)
    grid.consents["west"] = [says("waiting", "a person must approve")]
    book = run(job_of(aggregation="rounds = 1\napproval_seconds = 0.1"), grid)
    refused = next(site for site in book.rounds[0].sites if site.site == "west")
    assert (refused.status, "no decision" in refused.reason) == ("refused", True)
    assert set(book.train().named("aggregated")) == {"north", "south"}


def test_when_too_few_agree_the_run_ends_before_its_first_round_with_their_reasons(federation):
    grid = PlaygroundGrid(federation)
    for site in ("north", "west"):
        grid.consents[site] = [says("refused", "the policy says no")]
    book = run(job_of(aggregation="rounds = 1\nmin_sites = 2"), grid)
    assert "can't be reached" in book.error
    assert book.error.count("the policy says no") == 2
    assert grid.asked == []


def test_a_stop_ends_the_wait_for_a_person_at_once(federation, monkeypatch):
    monkeypatch.setattr("server.consent.SHORTEST_PAUSE", 600.0)
    grid = PlaygroundGrid(federation)
    grid.consents["west"] = [says("waiting", "a person must approve")]
    started = time.monotonic()
    with pytest.raises(Stopped):
        run(job_of(), grid, stopped=lambda: time.monotonic() > started + 0.3)
    assert time.monotonic() - started < 60


def test_a_round_that_only_lacks_sites_outside_their_hours_is_tried_later_and_does_not_fail(federation, no_pauses):
    honest, asked = federation["north"], []

    def at_night(request):
        asked.append(request)
        early = len(asked) <= 5
        return Answer("north", request.job.digest, request.number, "waiting", "at night") if early else honest(request)

    federation["north"] = at_night
    book = run(job_of(aggregation="rounds = 1\nmin_sites = 3\nmax_failed_rounds = 2"), PlaygroundGrid(federation))
    assert book.error is None
    assert [record.status for record in book.rounds if record.kind == "train"] == ["no quorum"] * 5 + ["aggregated"]


def waits(request):
    return Answer("x", request.job.digest, request.number, "waiting", "at night")


def test_a_site_that_waits_does_not_hide_that_the_others_fail(federation, no_pauses):
    federation["west"] = lambda request: dataclasses.replace(waits(request), site="west")
    for name in ("north", "south"):
        federation[name] = lambda request, name=name: Answer(name, "", 0, "failed", "GPU lost")
    book = run(job_of(aggregation="rounds = 1\nmin_sites = 2\nmax_failed_rounds = 2"), PlaygroundGrid(federation))
    assert "no quorum 2 times in a row" in book.error


def test_sites_are_waited_for_in_a_round_no_longer_than_the_job_allows(federation, no_pauses):
    federation["west"] = lambda request: dataclasses.replace(waits(request), site="west")
    text = "rounds = 1\nmin_sites = 3\nmax_failed_rounds = 2\napproval_seconds = 0.05"
    book = run(job_of(aggregation=text), PlaygroundGrid(federation))
    assert "no quorum 2 times in a row" in book.error
    assert 2 < len([record for record in book.rounds if record.kind == "train"]) < 20
