"""What goes through the link: messages to the right sites, replies as they were, and nothing left behind."""

from __future__ import annotations

import numpy as np
from flwr.app import Message
from flwr.common.constant import ErrorCode


def test_numbers_reach_the_sites_named_and_come_back_changed_by_each(federation, ask):
    federation.start_site("north", "add:1")
    federation.start_site("south", "add:2")
    model = np.random.default_rng(0).normal(size=(1000, 900)).astype(np.float32)  # two of Flower's chunks
    with federation.link() as link, link.open_run("run", ["north", "south"]) as run:
        ids = ask.push(run, "north", "south", arrays=(model, np.full((2, 0, 3), 3.0)))
        for name, step in (("north", 1), ("south", 2)):
            first, second = ask.numbers(ask.pull(run, ids[name]))
            np.testing.assert_array_equal(first, model + np.float32(step))
            assert second.shape == (2, 0, 3)
        ask.wait_until(lambda: len(link._state.object_store) == 0)  # nothing stays in the store once it is read


def test_a_run_goes_to_no_site_that_its_job_does_not_name(federation, ask):
    site = federation.start_site("south")
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        ask.wait_until(lambda: link.sites()[1].online)
        assert list(run.grid.get_node_ids()) == []
        assert run.node_ids.keys() == {"north"}
        message = Message(ask.content(np.zeros(3)), link.node_ids()["south"], "train")
        assert list(run.grid.push_messages([message])) == [""]
    assert "asked" not in site.said()


def test_a_message_waits_for_a_site_that_is_away_and_is_asked_once(federation, ask):
    with federation.link() as link:
        first = federation.start_site("north")
        first.says("connected")
        first.end()
        with link.open_run("run", ["north"]) as run:
            message_id = ask.push(run, "north")["north"]
            assert list(run.grid.pull_messages([message_id])) == []
            site = federation.start_site("north")
            assert not ask.pull(run, message_id).has_error()
            assert site.said().count("asked") == 1


def test_a_reply_is_read_although_its_site_has_gone_since(federation, ask):
    site = federation.start_site("north")
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        message_id = ask.push(run, "north")["north"]
        site.says("sent")
        site.end()
        assert not link.sites()[0].online
        np.testing.assert_array_equal(ask.numbers(ask.pull(run, message_id))[0], np.arange(5) + 1)


def test_an_error_in_the_sites_code_costs_that_message_only_and_its_text_stays_at_the_site(federation, ask):
    site = federation.start_site("north", "fail")
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        for _ in range(2):
            reply = ask.pull(run, ask.push(run, "north")["north"])
            assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            assert "ValueError" in reply.error.reason
            assert "patient" not in reply.error.reason
    assert "the patient's name" in site.said()


def test_a_site_says_how_much_it_received_and_sent(federation, ask):
    site = federation.start_site("north")
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        ask.pull(run, ask.push(run, "north", group="7", arrays=(np.zeros(500_000, np.float32),))["north"])
    site.says("train 7: received 2.0 MB")
    site.says("sent 2.0 MB")


def test_runs_follow_one_another_over_one_link(federation, ask):
    site = federation.start_site("north")
    with federation.link() as link:
        for name in ("first", "second"):
            with link.open_run(name, ["north"]) as run:
                assert not ask.pull(run, ask.push(run, "north", group=name)["north"]).has_error()
    assert site.said().count("connected to") == 1
