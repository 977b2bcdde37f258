"""Kits are made whole or not at all; sites are added one by one; the list says how each stands."""

import os
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.enrol import enrol
from certs.kits import add_site, admit, create_kits, list_standings, read_roster, revoke
from certs.pem import (
    new_key,
    pkcs8_bytes,
    read_certificate,
)
from common.errors import KitError, UsageError, WardroundError
from common.federation import read_federation
from common.kit import read_kit

PROJECT = Path(__file__).resolve().parents[2]


def others(found, *changed):
    return {name: content for name, content in found.items() if not any(part in name for part in changed)}


def test_the_kits_hold_what_each_machine_needs_and_no_more(kits):
    found = sorted(str(path.relative_to(kits)) for path in kits.rglob("*"))
    assert found == [
        "authority",
        "authority/ca.crt",
        "authority/ca.key",
        "authority/federation.toml",
        "coordinator",
        "coordinator/ca.crt",
        "coordinator/kit.toml",
        "coordinator/roster",
        "coordinator/server.crt",
        "coordinator/server.key",
        "sites",
        "sites/north",
        "sites/north/ca.crt",
        "sites/north/kit.toml",
        "sites/south",
        "sites/south/ca.crt",
        "sites/south/kit.toml",
    ]


def test_keys_and_their_folders_are_the_owners_alone(made):
    for path in [made, *made.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600 if path.suffix == ".key" else 0o644), path


def test_every_kit_reads_back_as_what_it_is(kits, federation):
    coordinator, site = read_kit(kits / "coordinator", "coordinator"), read_kit(kits / "sites" / "south", "site")
    assert (coordinator.name, site.name) == ("coordinator", "south")
    assert coordinator.federation_id == site.federation_id
    assert site.address == federation.coordinator.address
    assert read_federation(kits / "authority" / "federation.toml") == federation


def test_kits_are_never_made_over_something(kits, federation, everything):
    before = everything(kits)
    with pytest.raises(KitError, match="exists already and is never overwritten"):
        create_kits(federation, kits)
    assert everything(kits) == before


def test_kits_may_be_made_in_an_empty_folder_but_not_in_a_missing_one(federation, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (create_kits(federation, tmp_path / "empty") / "authority" / "ca.key").exists()
    with pytest.raises(KitError, match="no such folder"):
        create_kits(federation, tmp_path / "missing" / "kits")


@pytest.mark.parametrize("room", [0, 500])
def test_a_full_disk_leaves_no_half_made_kits(federation, tmp_path, full_disk, room):
    with full_disk(room), pytest.raises(WardroundError, match="can't be written"):
        create_kits(federation, tmp_path / "kits")
    assert list(tmp_path.iterdir()) == []


def test_creation_that_is_interrupted_leaves_no_half_made_kits(tmp_path):
    (tmp_path / "federation.toml").write_text(
        'name = "many"\n[coordinator]\naddress = "localhost:9092"\n'
        + "".join(f'[[sites]]\nname = "site{number}"\n' for number in range(2000))
    )
    command = [sys.executable, "-c", "from common.cli import main; main()", "kits", "create", "federation.toml"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=-1)
    try:
        limit = time.monotonic() + 300
        while not list(tmp_path.glob(".kits.*/sites/site0")) and time.monotonic() < limit:
            time.sleep(0.01)
        assert list(tmp_path.glob(".kits.*/sites/site0"))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(120) != 0
    finally:
        process.kill()
        process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["federation.toml"]


def test_a_site_added_later_enrols_like_any_other(kits, north, everything, tmp_path):
    before = everything(kits)
    folder = add_site(kits, "west", title="West Hospital")
    after = everything(kits)
    assert others(after, "sites/west", "federation.toml") == others(before, "federation.toml")
    assert read_federation(kits / "authority" / "federation.toml").site_names == ("north", "south", "west")
    admit(kits, enrol(read_kit(folder, "site")))
    assert "west" in read_roster(kits / "coordinator" / "roster")


@pytest.mark.parametrize("name", ["north", "North", "coordinator", "../west", ""])
def test_a_site_whose_name_does_not_do_is_not_added(kits, name, everything):
    before = everything(kits)
    with pytest.raises(UsageError, match="site"):
        add_site(kits, name)
    assert everything(kits) == before


def test_a_full_disk_adds_no_site(kits, everything, full_disk):
    before = everything(kits)
    with full_disk(300), pytest.raises(WardroundError, match="can't be written"):
        add_site(kits, "west")
    assert everything(kits) == before
    assert not (kits / "sites" / "west").exists()


def test_the_list_says_how_each_stands_and_warns_a_month_before_the_end(kits, north):
    end = read_certificate(north.certificate).not_valid_after_utc
    quiet = list_standings(kits)
    assert [(one.role, one.name, one.status) for one in quiet] == [
        ("authority", "chest-study", "valid"),
        ("coordinator", "coordinator", "valid"),
        ("site", "north", "valid"),
        ("site", "south", "not admitted"),
    ]
    assert not any(one.warning for one in quiet)
    soon = {one.name: one for one in list_standings(kits, now=end - timedelta(days=20))}
    assert "wardround kits renew north" in soon["north"].warning
    assert soon["chest-study"].warning is None
    late = {one.name: one.status for one in list_standings(kits, now=end + timedelta(days=1))}
    assert (late["north"], late["chest-study"]) == ("expired", "valid")
    revoke(kits, "north")
    assert {one.name: one.status for one in list_standings(kits)}["north"] == "revoked"


def test_an_expired_site_is_on_the_roster_and_says_so(kits, give):
    admit(kits, enrol(give("north")), days_valid=1, now=datetime.now(UTC) - timedelta(days=2))
    assert read_roster(kits / "coordinator" / "roster")["north"].expired


def test_the_roster_takes_only_what_the_authority_issued_under_its_own_name(kits, north, federation, tmp_path):
    roster = kits / "coordinator" / "roster"
    (roster / "south.crt").write_bytes((roster / "north.crt").read_bytes())
    with pytest.raises(KitError, match=r'south.crt: this is the certificate of "north"'):
        read_roster(roster)
    (roster / "south.crt").write_text("nothing")
    with pytest.raises(KitError, match=r"south.crt: this is no PEM file, not a certificate"):
        read_roster(roster)
    elsewhere = create_kits(federation, tmp_path / "elsewhere")
    stranger = admit(elsewhere, enrol(read_kit(elsewhere / "sites" / "south", "site")))
    (roster / "south.crt").write_bytes(stranger.read_bytes())
    with pytest.raises(KitError, match=r"south.crt: .*not issued by this federation's authority"):
        read_roster(roster)
    with pytest.raises(KitError, match="roster can't be read"):
        read_roster(kits / "coordinator" / "nowhere")


def test_a_folder_that_holds_no_kits_is_refused(tmp_path, kits):
    with pytest.raises(KitError, match=r"no kits here .*--kits"):
        list_standings(tmp_path)
    (kits / "coordinator" / "roster").rmdir()
    with pytest.raises(KitError, match="must be beside the authority"):
        list_standings(kits)


def test_nobody_is_admitted_with_a_key_of_the_authority_that_others_can_read(kits, give):
    request = enrol(give("north"))
    (kits / "authority" / "ca.key").chmod(0o644)
    with pytest.raises(KitError, match="chmod 600"):
        admit(kits, request)
    (kits / "authority" / "ca.key").chmod(0o600)
    (kits / "authority" / "ca.key").write_bytes(pkcs8_bytes(new_key()))
    with pytest.raises(KitError, match="not the key of"):
        admit(kits, request)
