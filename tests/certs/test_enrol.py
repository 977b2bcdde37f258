"""At the hospital: a key that is made there, is never overwritten, and fits the certificate that comes back."""

import argparse
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from certs.checks import check_kit, kit_warnings, require_usable
from certs.enrol import accept, enrol, next_key
from certs.kits import admit, create_kits, renew, revoke
from certs.pem import public_key_bytes, read_certificate, read_private_key
from common.errors import KitError, WardroundError
from common.kit import read_kit


def names(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def failing(kit, **options):
    return {finding.what: finding.detail for finding in check_kit(kit, **options) if not finding.ok}


def test_the_private_key_is_made_at_the_site_for_its_owner_alone(give, kits):
    kit = give("north")
    kit.folder.chmod(0o755)
    request = enrol(kit)
    assert names(kit.folder) == {"kit.toml", "ca.crt", "site.key", "north.request.pem"}
    assert stat.S_IMODE(kit.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(kit.folder.stat().st_mode) == 0o700
    certificate = admit(kits, request)
    for outside in [request, certificate, *kits.rglob("*")]:
        assert outside.is_dir() or b"OPENSSH" not in outside.read_bytes()


def test_flowers_own_loader_takes_the_sites_key(north):
    loader = pytest.importorskip("flwr.supernode.cli.flower_supernode")
    arguments = argparse.Namespace(auth_supernode_private_key=str(north.key), auth_supernode_public_key=None)
    private, public = loader._try_setup_client_authentication(arguments)
    flower = pytest.importorskip("flwr.supercore.primitives.asymmetric")
    assert flower.uses_nist_ec_curve(public)
    assert flower.public_key_to_bytes(public) == public_key_bytes(read_certificate(north.certificate))
    assert private.private_numbers() == read_private_key(north.key).private_numbers()


def test_ssh_keygen_takes_the_sites_key(north, tool):
    told = subprocess.run([tool("ssh-keygen"), "-l", "-f", north.key], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("384 ")


def test_enrolling_again_overwrites_nothing(give, everything):
    kit = give("north")
    enrol(kit)
    before = everything(kit.folder)
    with pytest.raises(KitError, match=r"site.key: the key is there already and is never overwritten: send north"):
        enrol(kit)
    assert everything(kit.folder) == before


def test_a_lost_request_is_made_again_for_the_same_key(give, kits):
    kit = give("north")
    enrol(kit).unlink()
    key = kit.key.read_bytes()
    accept(kit, admit(kits, enrol(kit)))
    assert kit.key.read_bytes() == key
    require_usable(kit)


@pytest.mark.parametrize("room", [0, 400])
def test_a_full_disk_leaves_no_key_and_no_request(give, everything, full_disk, room):
    kit = give("north")
    before = everything(kit.folder)
    with full_disk(room), pytest.raises(WardroundError, match="can't be written"):
        enrol(kit)
    assert everything(kit.folder) == before


def test_a_kit_with_the_authority_of_another_is_refused(give, kits, federation, tmp_path):
    kit = give("north")
    other = create_kits(federation, tmp_path / "other")
    (kit.folder / "ca.crt").write_bytes((other / "authority" / "ca.crt").read_bytes())
    with pytest.raises(KitError, match="two kits were mixed"):
        enrol(kit)
    assert not kit.key.exists()


def test_installing_a_certificate_twice_is_the_same_as_once(north, everything):
    before = everything(north.folder)
    assert accept(north, north.folder / "north.crt") == north.certificate
    assert everything(north.folder) == before


def test_a_certificate_that_is_not_for_this_site_is_not_installed(give, kits, north, federation, tmp_path, everything):
    south = give("south")
    theirs = admit(kits, enrol(south))
    other = create_kits(federation, tmp_path / "other")
    stranger = admit(other, enrol(read_kit(other / "sites" / "north", "site")))
    before = everything(north.folder)
    for certificate, says in [
        (theirs, 'for "south" in "chest-study", but the kit .* is for "north"'),
        (stranger, "not issued by this federation's authority"),
        (kits / "coordinator" / "server.crt", "not one for a site"),
        (north.folder / "north.request.pem", "this is a certificate request, not a certificate"),
        (north.key, "this holds a private key, not a certificate"),
        (tmp_path / "nowhere.crt", "no such file"),
    ]:
        with pytest.raises(KitError, match=says) as caught:
            accept(north, certificate)
        assert "\n" not in str(caught.value)
    assert everything(north.folder) == before


def test_a_certificate_for_a_key_that_is_not_here_is_not_installed(give, kits):
    kit = give("north")
    certificate = admit(kits, enrol(kit))
    kit.key.unlink()
    with pytest.raises(KitError, match="there is no key here yet"):
        accept(kit, certificate)
    (kit.folder / "north.request.pem").unlink()
    enrol(kit)
    with pytest.raises(KitError, match="for another key"):
        accept(kit, certificate)


@pytest.mark.parametrize(("age", "says"), [(-3, "begins only on .* set the clock right"), (3, "ended on")])
def test_a_certificate_that_is_not_in_force_is_not_installed(give, kits, age, says):
    kit = give("north")
    certificate = admit(kits, enrol(kit), days_valid=1, now=datetime.now(UTC) - timedelta(days=age))
    with pytest.raises(KitError, match=says):
        accept(kit, certificate)
    assert not kit.certificate.exists()


def test_an_older_certificate_does_not_take_the_place_of_a_newer(north, kits):
    first = (north.folder / "north.crt").read_bytes()
    accept(north, renew(kits, "north", days_valid=500))
    (north.folder / "first.crt").write_bytes(first)
    with pytest.raises(KitError, match="it is an older one"):
        accept(north, north.folder / "first.crt")
    assert len(list((north.folder / "replaced").iterdir())) == 1


def test_a_new_key_takes_over_only_with_its_certificate(north, kits):
    old = north.key.read_bytes()
    request = enrol(north, new_key=True)
    assert north.key.read_bytes() == old
    require_usable(north)
    with pytest.raises(KitError, match=r"site.next.key: the key is there already"):
        enrol(north, new_key=True)
    accept(north, renew(kits, "north", request))
    assert north.key.read_bytes() != old
    assert not next_key(north).exists()
    require_usable(north)


def test_a_change_of_key_that_was_cut_off_is_ended_by_installing_again(north, kits):
    certificate = renew(kits, "north", enrol(north, new_key=True))
    north.certificate.write_bytes(certificate.read_bytes())  # the power failed after the certificate, before the key
    assert "install the certificate that belongs to it" in failing(north)["key"]
    accept(north, certificate)
    require_usable(north)
    assert not next_key(north).exists()


def test_a_full_disk_installs_nothing(north, kits, everything, full_disk):
    renewed = renew(kits, "north", enrol(north, new_key=True))
    before = everything(north.folder)
    with full_disk(0), pytest.raises(WardroundError, match="can't be written"):
        accept(north, renewed)
    assert everything(north.folder) == before


def test_a_revoked_site_comes_back_with_a_new_key(north, kits):
    revoke(kits, "north")
    accept(north, admit(kits, enrol(north, new_key=True)))
    require_usable(north)


def test_a_good_kit_passes_every_check(north, kits):
    assert [(one.what, one.ok, one.remedy) for one in check_kit(north)] == [
        ("authority", True, ""),
        ("certificate", True, ""),
        ("key", True, ""),
        ("permissions", True, ""),
    ]
    require_usable(read_kit(kits / "coordinator", "coordinator"))
    assert kit_warnings(north) == []


def test_a_certificate_near_its_end_passes_with_what_to_do(north):
    end = read_certificate(north.certificate).not_valid_after_utc
    soon = end - timedelta(days=7)
    assert failing(north, now=soon) == {}
    assert "wardround kits renew north" in check_kit(north, now=soon)[1].remedy
    (warning,) = kit_warnings(north, now=soon)
    assert warning.startswith("north's certificate ends in 7 days")


def test_an_ended_certificate_stops_a_service_with_what_to_do(north, kits):
    coordinator = read_kit(kits / "coordinator", "coordinator")
    late = datetime.now(UTC) + timedelta(days=366)
    with pytest.raises(KitError, match=r"site.crt: this certificate ended on .*wardround kits renew north"):
        require_usable(north, now=late)
    with pytest.raises(KitError, match=r"server.crt: .* ended on .*wardround kits renew coordinator"):
        require_usable(coordinator, now=late)
    assert set(failing(north, now=datetime.now(UTC) + timedelta(days=4000))) == {"authority", "certificate"}
    assert "set the clock right" in failing(north, now=datetime.now(UTC) - timedelta(days=2))["certificate"]


def test_each_thing_wrong_with_a_kit_is_its_own_finding(north):
    north.key.chmod(0o644)
    assert set(failing(north)) == {"key", "permissions"}
    assert f"chmod 600 {north.key}" in failing(north)["permissions"]
    north.key.chmod(0o600)
    north.folder.chmod(0o755)
    assert failing(north) == {
        "permissions": f"{north.folder}: other users of this machine can look into the kit: chmod 700 {north.folder}"
    }
    north.folder.chmod(0o700)
    north.certificate.unlink()
    assert set(failing(north)) == {"certificate", "key"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no private key, or it is damaged"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "damaged"),
        (b"x" * 100_000, "too large"),
    ],
)
def test_what_is_no_key_is_refused_in_words(north, content, says):
    north.key.write_bytes(content)
    with pytest.raises(KitError, match=says):
        read_private_key(north.key)


def test_a_key_with_a_passphrase_and_a_key_of_another_kind_are_refused(north, tool):
    for extra, says in [
        (("-t", "ecdsa", "-b", "384", "-N", "secret"), "passphrase"),
        (("-t", "ed25519", "-N", ""), "P-384"),
    ]:
        north.key.unlink()
        subprocess.run([tool("ssh-keygen"), "-q", "-f", north.key, *extra], check=True, timeout=120)
        with pytest.raises(KitError, match=says):
            read_private_key(north.key)
