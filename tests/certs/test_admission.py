"""Admitting, renewing and revoking one site leaves every other byte as it is; a bad request gets nobody in."""

import os
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from certs.enrol import accept, enrol
from certs.kits import admit, create_kits, read_roster, renew, revoke
from certs.pem import (
    certificate_bytes,
    public_key_bytes,
    read_certificate,
    read_request,
    request_bytes,
)
from common.errors import KitError, WardroundError
from common.kit import read_kit


def others(found, *changed):
    return {name: content for name, content in found.items() if not any(part in name for part in changed)}


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
