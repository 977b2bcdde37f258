"""Kits are made whole or not at all; admitting, renewing and revoking one site leaves every other byte as it is."""

import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from certs.enrol import accept, enrol
from certs.kits import add_site, admit, create_kits, list_standings, read_roster, renew, revoke
from certs.pem import (
    certificate_bytes,
    new_key,
    pkcs8_bytes,
    public_key_bytes,
    read_certificate,
    read_request,
    request_bytes,
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
        limit = time.monotonic() + 30
        while not list(tmp_path.glob(".kits.*/sites/site0")) and time.monotonic() < limit:
            time.sleep(0.01)
        assert list(tmp_path.glob(".kits.*/sites/site0"))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["federation.toml"]


def test_an_admitted_site_is_on_the_roster_with_the_key_that_flower_will_see(kits, north):
    flower = pytest.importorskip("flwr.supercore.primitives.asymmetric")
    (found,) = read_roster(kits / "coordinator" / "roster").values()
    certificate = read_certificate(north.certificate)
    assert found.name == "north"
    assert found.public_key == flower.public_key_to_bytes(load_pem_public_key(found.public_key))
    assert found.public_key == flower.public_key_to_bytes(certificate.public_key())
    assert (found.serial, found.not_after) == (certificate.serial_number, certificate.not_valid_after_utc)
    assert not found.expired


def test_admitting_a_site_touches_that_site_only(kits, north, give, everything):
    before = everything(kits)
    admit(kits, enrol(give("south")))
    after = everything(kits)
    assert others(after, "roster/south.crt") == before
    assert set(read_roster(kits / "coordinator" / "roster")) == {"north", "south"}


def test_a_site_is_not_admitted_twice(kits, north, everything):
    before = everything(kits)
    with pytest.raises(KitError, match=r"north is admitted already, until .*kits renew north"):
        admit(kits, north.folder / "north.request.pem")
    assert everything(kits) == before


def test_a_request_of_another_federation_is_refused_though_the_names_agree(kits, federation, tmp_path, everything):
    elsewhere = create_kits(federation, tmp_path / "elsewhere")
    before = everything(kits)
    with pytest.raises(KitError, match="a kit of another federation"):
        admit(kits, enrol(read_kit(elsewhere / "sites" / "north", "site")))
    assert everything(kits) == before


def test_a_site_that_is_not_in_the_federation_is_refused_with_the_nearest_name(kits, give):
    kit = give("north")
    (kit.folder / "kit.toml").write_text(
        (kit.folder / "kit.toml").read_text().replace('name = "north"', 'name = "nort"')
    )
    with pytest.raises(KitError, match=r'no site "nort" .*did you mean "north"\?'):
        admit(kits, enrol(read_kit(kit.folder, "site")))


def test_a_key_belongs_to_one_site(kits, north, give):
    kit = give("south")
    kit.key.write_bytes(north.key.read_bytes())
    kit.key.chmod(0o600)
    with pytest.raises(KitError, match="this key is that of the site north"):
        admit(kits, enrol(kit))


def test_a_full_disk_admits_nobody(kits, give, everything, full_disk):
    kit = give("north")
    request = enrol(kit)
    before = everything(kits), everything(kit.folder)
    with full_disk(0), pytest.raises(WardroundError, match="can't be written"):
        admit(kits, request)
    assert (everything(kits), everything(kit.folder)) == before


def test_renewing_a_site_with_its_key_changes_its_certificate_only(kits, north, everything):
    before = everything(kits)
    renewed = renew(kits, "north", days_valid=700)
    after = everything(kits)
    assert others(after, "north") == others(before, "north")
    assert after["sites/north/north.crt"] == after["coordinator/roster/north.crt"] == renewed.read_bytes()
    assert before["coordinator/roster/north.crt"] in [after[name] for name in after if "replaced/north-" in name]
    assert public_key_bytes(read_certificate(renewed)) == public_key_bytes(read_certificate(north.certificate))
    accept(north, renewed)
    assert north.certificate.read_bytes() == renewed.read_bytes()


def test_renewing_again_and_again_loses_no_certificate(kits, north):
    for _ in range(3):
        renew(kits, "north")
    assert len(list((kits / "coordinator" / "roster" / "replaced").iterdir())) == 3
    assert len(list((kits / "sites" / "north").glob("north*.crt"))) == 3


def test_renewing_a_site_with_a_new_key_puts_the_old_key_out(kits, north):
    old = read_roster(kits / "coordinator" / "roster")["north"]
    certificate = renew(kits, "north", enrol(north, new_key=True))
    assert read_roster(kits / "coordinator" / "roster")["north"].public_key != old.public_key
    assert certificate == north.folder / "north.crt"
    accept(north, certificate)
    assert public_key_bytes(read_certificate(north.certificate)) != old.public_key


def test_a_site_is_not_renewed_with_anothers_request(kits, north, give, everything):
    request, before = enrol(give("south")), everything(kits)
    with pytest.raises(KitError, match='the request of "south", not of "north"'):
        renew(kits, "north", request)
    assert everything(kits) == before


def test_renewing_the_coordinator_keeps_its_key_and_takes_its_names_from_the_federation(kits, everything):
    described = kits / "authority" / "federation.toml"
    described.write_text(described.read_text().replace("wardround.example.org", "new.example.org"))
    before = everything(kits)
    path = renew(kits, "coordinator", days_valid=10)
    after = everything(kits)
    assert path == kits / "coordinator" / "server.crt"
    assert others(after, "server.crt", "replaced") == others(before, "server.crt")
    assert before["coordinator/server.crt"] in [after[name] for name in after if "replaced/server-" in name]
    assert b"new.example.org" in read_certificate(path).public_bytes(Encoding.DER)
    with pytest.raises(KitError, match="renew it without a request"):
        renew(kits, "coordinator", path)


def test_a_site_that_is_not_on_the_roster_can_be_neither_renewed_nor_revoked(kits, north):
    for attempt in (renew, revoke):
        with pytest.raises(KitError, match=r'"south" is not on the roster'):
            attempt(kits, "south")
        with pytest.raises(KitError, match=r'did you mean "north"\?'):
            attempt(kits, "norht")
        with pytest.raises(KitError, match="not on the roster"):
            attempt(kits, "../../authority/ca")


def test_the_coordinator_can_not_be_revoked(kits):
    with pytest.raises(KitError, match="create a new federation"):
        revoke(kits, "coordinator")


def test_revoking_a_site_leaves_the_others_byte_for_byte(kits, north, give, everything):
    south = give("south")
    accept(south, admit(kits, enrol(south)))
    before, at_south = everything(kits), everything(south.folder)
    kept = revoke(kits, "north")
    after = everything(kits)
    assert others(after, "north") == others(before, "north")
    assert kept.read_bytes() == before["coordinator/roster/north.crt"]
    assert everything(south.folder) == at_south
    assert set(read_roster(kits / "coordinator" / "roster")) == {"south"}


def test_a_revoked_key_is_never_admitted_again_but_a_new_one_is(kits, north):
    revoke(kits, "north")
    with pytest.raises(KitError, match="revoked and is never admitted again"):
        admit(kits, north.folder / "north.request.pem")
    certificate = admit(kits, enrol(north, new_key=True))
    accept(north, certificate)
    assert "north" in read_roster(kits / "coordinator" / "roster")


def test_a_revoked_key_does_not_come_back_by_renewal(kits, north):
    old_request = (north.folder / "north.request.pem").read_bytes()
    revoke(kits, "north")
    accept(north, admit(kits, enrol(north, new_key=True)))
    (north.folder / "north.request.pem").write_bytes(old_request)
    with pytest.raises(KitError, match="revoked and is never admitted again"):
        renew(kits, "north", north.folder / "north.request.pem")


def test_a_damaged_entry_of_one_site_does_not_keep_another_from_being_revoked(kits, north):
    (kits / "coordinator" / "roster" / "south.crt").write_text("nothing")
    revoke(kits, "north")
    assert not (kits / "coordinator" / "roster" / "north.crt").exists()


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


def test_what_is_no_request_is_refused_in_words(kits, north, tmp_path):
    cases = {
        "missing": (None, "there is no such file"),
        "empty": (b"", "no PEM file, not a certificate request"),
        "image": (os.urandom(200_000), "too large"),
        "certificate": (north.certificate.read_bytes(), "this is a certificate, not a certificate request"),
        "key": (north.key.read_bytes(), "private key.*must never leave"),
        "damaged": (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "damaged"),
    }
    for name, (content, says) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(KitError, match=says) as caught:
            admit(kits, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(KitError, match="can't be read: Is a directory"):
        admit(kits, tmp_path)


def test_a_request_that_its_own_key_did_not_sign_is_refused(kits, give):
    request = enrol(give("north"))
    content = bytearray(ssl.PEM_cert_to_DER_cert(request.read_text().replace("CERTIFICATE REQUEST", "CERTIFICATE")))
    content[-1] ^= 1
    text = ssl.DER_cert_to_PEM_cert(bytes(content)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    request.write_text(text)
    with pytest.raises(KitError, match="not signed by its own key"):
        admit(kits, request)


def test_a_request_on_another_curve_is_refused(kits, give):
    kit = give("north")
    subject = read_request(enrol(kit)).subject
    weak = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(weak, hashes.SHA256())
    (kit.folder / "weak.pem").write_bytes(request_bytes(request))
    with pytest.raises(KitError, match="not one on the curve P-384"):
        admit(kits, kit.folder / "weak.pem")


def test_a_certificate_that_would_be_lost_stops_the_hand_out(kits, north, give):
    request = enrol(give("south"))
    (request.parent / "south.crt").write_bytes(certificate_bytes(read_certificate(north.certificate)))
    with pytest.raises(KitError, match=r'"north" and would be lost: move it away'):
        admit(kits, request)


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
