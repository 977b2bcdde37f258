"""What the link does when processes are killed, networks break, disks fill and sites are shut out."""

from __future__ import annotations

import logging
import socket
import sqlite3
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message
from flwr.common.constant import ErrorCode

from certs.admission import renew
from certs.enrol import accept, enrol
from client import node
from common.errors import DataError, LinkError, RunError
from server.link import open_link


def test_a_site_that_is_killed_in_a_round_and_comes_back_is_asked_again_at_once(federation, ask):
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        site = federation.start_site("north", "slow:600")
        message_id = ask.push(run, "north")["north"]
        site.says("asked")
        site.kill()
        federation.start_site("north").says("connected")
        reply = ask.pull(run, message_id, 40)  # Flower alone would keep it out for a minute
        assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert not ask.pull(run, ask.push(run, "north")["north"]).has_error()


def test_a_coordinator_that_is_killed_and_started_anew_finds_its_sites_again(federation):
    site = federation.start_site("north")
    nodes = []
    for _ in range(2):
        words = federation.coordinator.folder, federation.database, "north"
        coordinator = federation.start("linked_coordinator.py", *words)
        coordinator.says("answer False")
        nodes.append(coordinator.said().splitlines()[0])
        coordinator.kill()
    assert nodes[0] == nodes[1]
    assert site.said().count("connected") == 2
    site.says("can't be reached")


def test_what_a_killed_coordinator_left_in_the_database_is_dropped(federation, ask):
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        federation.start_site("north", "slow:600").says("connected")
        ask.push(run, "north", arrays=(np.zeros(1000),))
        with open_link(federation.coordinator, federation.database, listen="127.0.0.1:0") as other:
            assert len(other._state.object_store) == 0


def test_the_roster_decides_who_is_a_node_and_nodes_outlive_a_restart(federation):
    with federation.link() as link:
        before = link.node_ids()
        link.reconcile(federation.roster)
        assert link.node_ids() == before
    with federation.link() as link:
        assert link.node_ids() == before
        federation.revoke("south")
        link.reconcile(federation.roster)
        assert link.node_ids() == {"north": before["north"]}
        request = enrol(federation.site("north"), new_key=True)
        accept(federation.site("north"), renew(federation.kits, "north", request))
        link.reconcile(federation.roster)
        assert link.node_ids()["north"] != before["north"]


def test_a_site_whose_certificate_has_ended_is_shut_out(federation):
    class Ended:
        expired, public_key = True, federation.roster["north"].public_key

    with federation.link() as link:
        link.reconcile({**federation.roster, "north": Ended()})
        assert link.node_ids().keys() == {"south"}


def test_a_message_to_a_site_that_is_revoked_meanwhile_is_given_up_with_the_reason(federation, ask):
    site = federation.start_site("north", "slow:600")
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        message_id = ask.push(run, "north")["north"]
        site.says("asked")
        federation.revoke("north")
        link.reconcile(federation.roster)
        assert "roster" in ask.pull(run, message_id).error.reason


def test_a_message_whose_time_has_passed_is_given_up(federation, ask):
    federation.start_site("north", "slow:600")
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        message_id = ask.push(run, "north")["north"]
        run.grid._pushed[message_id] = type(run.grid._pushed[message_id])(run.node_ids["north"], time.time() - 1)
        assert "time" in ask.pull(run, message_id).error.reason


def test_an_answer_to_a_run_that_has_ended_does_not_disturb_the_site(federation, ask):
    late = federation.folder / "late"
    site = federation.start_site("north", f"until:{late}")
    with federation.link() as link:
        with link.open_run("first", ["north"]) as run:
            ask.push(run, "north")
            site.says("asked")
        before = site.said().count("connected")  # more than one on a machine that has much else to do
        late.touch()
        site.says("no longer waits")
        with link.open_run("second", ["north"]) as run:
            assert not ask.pull(run, ask.push(run, "north")["north"]).has_error()
    assert site.said().count("connected") == before


def test_a_message_that_is_lost_on_its_way_to_the_site_is_not_awaited_for_ever(federation, ask, monkeypatch):
    serve, lost, lines, stop = node._serve, [], [], threading.Event()

    def lossy(connection, *others):
        def receive():
            received = connection.receive()
            if received is not None and not lost:
                lost.append(received)
                raise LinkError("the link was lost")
            return received

        serve(replace(connection, receive=receive), *others)

    monkeypatch.setattr(node, "_serve", lossy)
    words = federation.site("north"), lambda message: Message(ask.content(), reply_to=message)
    thread = threading.Thread(target=node.run_node, args=words, kwargs={"stop": stop, "on_state": lines.append})
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        thread.start()
        try:
            assert ask.pull(run, ask.push(run, "north")["north"]).error.code == ErrorCode.MESSAGE_UNAVAILABLE
            assert not ask.pull(run, ask.push(run, "north")["north"]).has_error()
        finally:
            stop.set()
            thread.join()
    assert sum("connected" in line for line in lines) == 2


@pytest.mark.slow
def test_a_site_stays_online_while_it_trains_for_longer_than_its_heartbeat(federation, ask):
    federation.start_site("north", "short:32")
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        message_id = ask.push(run, "north")["north"]
        end = time.monotonic() + 30
        while time.monotonic() < end:
            assert link.sites()[0].online
            time.sleep(0.5)
        assert not ask.pull(run, message_id).has_error()


def test_a_port_in_use_is_told_in_one_line(federation):
    with socket.socket() as taken:
        host, _, port = federation.address.rpartition(":")
        taken.bind((host, int(port)))
        taken.listen()
        with pytest.raises(LinkError, match="port is in use") as problem, federation.link():
            pass
    assert "\n" not in str(problem.value)


def test_an_address_of_another_machine_is_told_in_one_line(federation):
    with (
        pytest.raises(LinkError, match="address of this machine"),
        open_link(federation.coordinator, federation.database, listen="192.0.2.1:9092"),
    ):
        pass


def test_a_damaged_database_is_told_in_one_line(federation):
    federation.database.write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="damaged") as problem, federation.link():
        pass
    assert "\n" not in str(problem.value)


def test_a_full_disk_fails_the_run_in_one_line_and_not_the_link(federation, ask):
    federation.start_site("north")
    with federation.link() as link:
        with link.open_run("full", ["north"]) as run:
            ask.wait_until(lambda: link.sites()[0].online)
            pages = sqlite3.connect(federation.database).execute("PRAGMA page_count").fetchone()[0]
            with link._state.object_store.session() as session:
                session.connection().exec_driver_sql(f"PRAGMA max_page_count = {pages + 10}")
            big = np.random.default_rng(0).normal(size=100_000)
            with pytest.raises(RunError, match="disk") as problem:
                # Often enough to meet the one of the pool's connections that has the limit.
                [ask.push(run, "north", arrays=(big + number,)) for number in range(20)]
            assert "\n" not in str(problem.value)
        link._state.object_store._engine.dispose()
        with link.open_run("next", ["north"]) as run:
            assert not ask.pull(run, ask.push(run, "north")["north"]).has_error()


def test_checking_a_sites_admission_gives_its_node(federation):
    with federation.link() as link:
        assert node.check_admission(federation.site("north")) == link.node_ids()["north"]


def test_flower_says_nothing_of_its_own(federation, ask, capfd, caplog):
    with caplog.at_level(logging.INFO), federation.link() as link, link.open_run("run", ["north"]) as run:
        site = federation.start_site("north")
        ask.pull(run, ask.push(run, "north")["north"])
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert all(record.name.startswith("wardround") for record in caplog.records)
    assert all(line.startswith(("connected", "asked", "train")) for line in site.said().splitlines())
