"""The certificates are what they say: checked with OpenSSL, with real TLS handshakes, and against Flower's own code."""

import contextlib
import socket
import ssl
import subprocess
import threading
from concurrent import futures
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from certs.authority import (
    check_issued,
    create_authority,
    days_left,
    expiry_warning,
    issue_server,
    issue_site,
    read_authority,
)
from certs.pem import certificate_bytes, new_key, pkcs8_bytes, read_certificate
from common.errors import KitError

SITE_KEY = new_key()
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority():
    return create_authority("chest-study")


def write_server(folder, authority, hosts=("127.0.0.1",), **dates):
    key = new_key()
    folder.mkdir()
    certificate = issue_server(authority, key.public_key(), hosts, **dates)
    (folder / "server.crt").write_bytes(certificate_bytes(certificate))
    (folder / "server.key").write_bytes(pkcs8_bytes(key))
    (folder / "ca.crt").write_bytes(certificate_bytes(authority.certificate))
    return folder


def handshake(server, trusted, host="127.0.0.1"):
    """Shake hands over a real socket with the server's certificate. Returns the TLS version, or raises."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server / "server.crt", server / "server.key")
    asking = ssl.create_default_context(cafile=str(trusted))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):  # the client may turn the certificate down
                serving.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            plain = socket.create_connection(listener.getsockname(), timeout=60)
            with asking.wrap_socket(plain, server_hostname=host) as secured:
                return secured.version()
        finally:
            thread.join(10)


def test_a_site_that_has_the_authority_shakes_hands_with_the_coordinator(kits):
    assert handshake(kits / "coordinator", kits / "sites" / "north" / "ca.crt") in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "wardround.example.org", "192.0.2.10"])
def test_the_coordinator_is_who_the_federation_says_by_every_name_listed(kits, host):
    assert handshake(kits / "coordinator", kits / "authority" / "ca.crt", host)


def test_a_name_that_is_not_listed_is_refused(kits):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(kits / "coordinator", kits / "authority" / "ca.crt", "elsewhere.example.org")


def test_an_authority_of_the_same_name_is_still_another_authority(kits, tmp_path):
    other = tmp_path / "other.crt"
    other.write_bytes(certificate_bytes(create_authority("chest-study").certificate))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(kits / "coordinator", other)


def test_an_expired_server_certificate_is_refused(authority, tmp_path):
    server = write_server(tmp_path / "s", authority, days_valid=1, now=datetime.now(UTC) - timedelta(days=3))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(server, server / "ca.crt")


def test_a_sites_certificate_does_not_make_a_server(authority, tmp_path):
    server = write_server(tmp_path / "s", authority)
    key = new_key()
    (server / "server.crt").write_bytes(certificate_bytes(issue_site(authority, "north", key.public_key())))
    (server / "server.key").write_bytes(pkcs8_bytes(key))
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, server / "ca.crt")


def grpc_answers(server, trusted, seconds) -> bool:
    """Whether gRPC itself, which brings its own TLS library, reaches a server with the kit's certificate."""
    grpc = pytest.importorskip("grpc")
    pair = ((server / "server.key").read_bytes(), (server / "server.crt").read_bytes())
    service = grpc.server(futures.ThreadPoolExecutor(1))
    port = service.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    service.start()
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(trusted.read_bytes())) as channel:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        return True
    except grpc.FutureTimeoutError:
        return False
    finally:
        service.stop(None).wait()


def test_grpc_takes_the_coordinators_certificate(kits):
    assert grpc_answers(kits / "coordinator", kits / "sites" / "south" / "ca.crt", 120)


def test_grpc_refuses_another_federations_authority(kits, tmp_path):
    (tmp_path / "other.crt").write_bytes(certificate_bytes(create_authority("chest-study").certificate))
    assert not grpc_answers(kits / "coordinator", tmp_path / "other.crt", 3)


@pytest.fixture
def openssl(tool):
    command = tool("openssl")

    def run(*arguments):
        return subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)

    return run


def test_openssl_verifies_the_certificates_for_their_purpose_and_no_other(kits, north, openssl):
    files = {"sslserver": kits / "coordinator" / "server.crt", "sslclient": north.certificate}
    for purpose in files:
        for made_for, file in files.items():
            told = openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", north.authority_certificate, file)
            assert (told.returncode == 0) == (purpose == made_for), told.stdout + told.stderr


def test_openssl_reads_what_the_certificates_say(kits, north, openssl):
    told = openssl("x509", "-in", north.certificate, "-noout", "-text").stdout
    assert "Subject: O = chest-study, CN = north" in told
    assert "secp384r1" in told
    assert "ecdsa-with-SHA384" in told
    assert "TLS Web Client Authentication" in told
    authority = openssl("x509", "-in", kits / "authority" / "ca.crt", "-noout", "-text").stdout
    assert "CA:TRUE, pathlen:0" in authority
    assert "Certificate Sign, CRL Sign" in authority


def test_openssl_verifies_the_request_that_a_site_makes(give, openssl):
    from certs.enrol import enrol

    told = openssl("req", "-in", enrol(give("north")), "-noout", "-verify", "-subject")
    assert told.returncode == 0
    assert "CN = north" in told.stdout


@given(st.integers(min_value=1, max_value=20_000))
def test_no_certificate_outlives_its_authority(authority, days):
    certificate = issue_site(authority, "north", SITE_KEY.public_key(), days_valid=days)
    assert certificate.not_valid_after_utc <= authority.certificate.not_valid_after_utc


@given(position=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_certificate_changed_in_any_byte_of_what_it_says_is_refused(authority, tmp_path_factory, position, flip):
    certificate = issue_site(authority, "north", SITE_KEY.public_key())
    content, says = bytearray(certificate.public_bytes(Encoding.DER)), certificate.tbs_certificate_bytes
    content[content.index(says) + position % len(says)] ^= flip
    path = tmp_path_factory.getbasetemp() / "changed.crt"
    path.write_text(ssl.DER_cert_to_PEM_cert(bytes(content)))
    with pytest.raises(KitError):
        check_issued(read_certificate(path), authority.certificate, "site", path)


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (timedelta(days=31), None),
        (timedelta(days=30), None),
        (timedelta(days=29, hours=23), "north's certificate ends in 29 days, 2026-03-31: renew it"),
        (timedelta(hours=1), "north's certificate ends in 0 days, 2026-03-31: renew it"),
        (-timedelta(hours=1), "north's certificate ended on 2026-03-31: renew it"),
    ],
)
def test_a_warning_comes_a_month_before_the_end_and_stays(authority, left, says):
    certificate = issue_site(authority, "north", SITE_KEY.public_key(), days_valid=30, now=NOW)
    moment = certificate.not_valid_after_utc - left
    assert expiry_warning(certificate, "north's certificate", "renew it", now=moment) == says
    assert days_left(certificate, moment) == left // timedelta(days=1)


def test_a_certificate_of_no_days_is_refused(authority):
    with pytest.raises(KitError, match="0 days"):
        issue_site(authority, "north", SITE_KEY.public_key(), days_valid=0)


def test_a_certificate_is_told_apart_by_issuer_and_purpose(authority):
    key = SITE_KEY.public_key()
    check_issued(issue_site(authority, "north", key), authority.certificate, "site", "here")
    with pytest.raises(KitError, match=r"^here: .*not one for the coordinator's server"):
        check_issued(issue_site(authority, "north", key), authority.certificate, "server", "here")
    with pytest.raises(KitError, match=r"^here: .*not issued by this federation's authority"):
        check_issued(issue_site(create_authority("chest-study"), "n", key), authority.certificate, "site", "here")


def test_the_authority_is_read_back_only_when_its_key_is_its_own_and_nobody_elses_to_read(kits):
    folder = kits / "authority"
    assert read_authority(folder).federation == "chest-study"
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(KitError, match=r"ca.key: other users .* chmod 600"):
        read_authority(folder)
    (folder / "ca.key").write_bytes(pkcs8_bytes(new_key()))
    (folder / "ca.key").chmod(0o600)
    with pytest.raises(KitError, match="not the key of"):
        read_authority(folder)


def test_an_authority_that_ended_issues_nothing(tmp_path):
    old = create_authority("chest-study", days_valid=1, now=datetime.now(UTC) - timedelta(days=3))
    (tmp_path / "ca.crt").write_bytes(certificate_bytes(old.certificate))
    (tmp_path / "ca.key").write_bytes(pkcs8_bytes(old.key))
    (tmp_path / "ca.key").chmod(0o600)
    with pytest.raises(KitError, match="the authority itself ended"):
        read_authority(tmp_path)


def test_every_certificate_has_a_serial_number_and_names_of_its_own(kits, north):
    found = [read_certificate(path) for path in [kits / "authority" / "ca.crt", north.certificate]]
    assert len({certificate.serial_number for certificate in found}) == 2
    names = read_certificate(kits / "coordinator" / "server.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert set(names.value.get_values_for_type(x509.DNSName)) == {"wardround.example.org", "localhost"}
    assert {str(one) for one in names.value.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "192.0.2.10", "::1"}
