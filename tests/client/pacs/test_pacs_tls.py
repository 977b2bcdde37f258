"""TLS where the PACS has it: nobody is spoken to who can't show a trusted certificate, and this side shows its own."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import threading

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hospital_pacs import PASSWORD, USER, Orthanc

from certs.authority import create_authority, issue_server, issue_site
from certs.pem import new_key
from client.pacs.address import Peer, Secret, Tls, read_peer
from client.pacs.dicomweb import WebPacs
from client.pacs.dimse import DimsePacs, Own
from client.pacs.fetch import import_from_pacs
from client.pacs.query import Query, find_series
from client.pacs.receiver import receiving
from client.pacs.store import open_store
from common.errors import LinkError


def pem(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An authority's certificate; a server's and a client's, each with its key; and another authority's."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = create_authority("hospital"), create_authority("elsewhere")
    for name, issue in {
        "pacs": lambda key: issue_server(authority, key, ["localhost", "127.0.0.1"]),
        "site": lambda key: issue_site(authority, "site", key),
    }.items():
        key = new_key()
        certificate = issue(key.public_key()).public_bytes(Encoding.PEM)
        (folder / f"{name}.crt").write_bytes(certificate)
        (folder / f"{name}.key").write_bytes(pem(key))
    (folder / "ca.crt").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    (folder / "other.crt").write_bytes(other.certificate.public_bytes(Encoding.PEM))
    return folder


@pytest.fixture(scope="module")
def secure(orthanc_program, files, small, tmp_path_factory):
    """An Orthanc with TLS for both protocols, which wants certificates of those who speak DIMSE."""
    settings = {
        "DicomTlsEnabled": True, "DicomTlsCertificate": str(files / "pacs.crt"),
        "DicomTlsPrivateKey": str(files / "pacs.key"), "DicomTlsTrustedCertificates": str(files / "ca.crt"),
    }  # fmt: skip
    pacs = Orthanc(tmp_path_factory.mktemp("secure") / "orthanc", settings).start()
    try:
        subprocess.run(
            ["storescu", "+tls", str(files / "site.key"), str(files / "site.crt"), "+cf", str(files / "ca.crt"), "-aet",
             "WARDROUND", "-aec", "HOSPITAL", "localhost", str(pacs.dicom), str(small[-1])], check=True, timeout=60,
        )  # fmt: skip
        yield pacs
    finally:
        pacs.stop()


@pytest.fixture(scope="module")
def https(secure, files):
    """The URL of the same PACS' DICOMweb over TLS: a server before it ends the TLS, as in most hospitals."""
    context = Tls(None, files / "pacs.crt", files / "pacs.key").to_listen()

    class Front(socketserver.BaseRequestHandler):
        def handle(self):
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as outer,
                socket.create_connection(("127.0.0.1", secure.http)) as inner,
            ):
                back = threading.Thread(target=pump, args=(inner, outer), daemon=True)
                back.start()
                pump(outer, inner)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Front) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_address[1]}/dicom-web"
        server.shutdown()


def pump(source, target) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_studies_come_over_tls(kit, dcmtk, secure, https, files):
    tls = Tls(files / "ca.crt", files / "site.crt", files / "site.key")
    with DimsePacs(read_peer(secure.peer), Own("WARDROUND", tls)) as pacs:
        fetched, _ = import_from_pacs(kit, "dimse", pacs, Query(("CT",)))
    assert fetched.received == 1
    with WebPacs(https, Tls(files / "ca.crt"), Secret(USER, PASSWORD)) as pacs:
        fetched, _ = import_from_pacs(kit, "web", pacs, Query(("CT",)))
    assert fetched.received == 1


@pytest.mark.parametrize("authority", [None, "other.crt"])
def test_a_certificate_that_is_not_trusted_ends_it_before_anything_is_asked(
    kit, dcmtk, secure, https, files, authority
):
    tls = Tls(files / authority if authority else None, files / "site.crt", files / "site.key")
    for pacs in (
        DimsePacs(read_peer(secure.peer), Own("WARDROUND", tls)), WebPacs(https, tls, Secret(USER, PASSWORD)),
    ):  # fmt: skip
        with pytest.raises(LinkError, match="its certificate is not trusted") as refusal, pacs:
            import_from_pacs(kit, "brain", pacs, Query(("CT",)))
        assert "--ca" in str(refusal.value)


def test_a_pacs_by_another_name_than_its_certificates_is_not_spoken_to(secure, files):
    tls = Tls(files / "ca.crt", files / "site.crt", files / "site.key")
    with (
        pytest.raises(LinkError, match="not trusted"),
        DimsePacs(Peer("HOSPITAL", "127.0.0.2", secure.dicom), Own("WARDROUND", tls)) as pacs,
    ):
        list(find_series(pacs.find, Query(("CT",))))


def test_without_its_own_certificate_or_without_tls_it_is_told_what_is_missing(secure, files):
    for tls, words in ((Tls(files / "ca.crt"), "--certificate"), (None, "--tls")):
        with pytest.raises(LinkError, match=words), DimsePacs(read_peer(secure.peer), Own("WARDROUND", tls)) as pacs:
            list(find_series(pacs.find, Query(("CT",))))


def test_tls_where_there_is_none_is_one_line(dcmtk_archive, files):
    peer, _ = dcmtk_archive
    with (
        pytest.raises(LinkError, match="no TLS there"),
        DimsePacs(peer, Own("WARDROUND", Tls(files / "ca.crt"))) as pacs,
    ):
        pacs.echo()


def test_a_receiver_with_an_authority_lets_in_only_whom_it_signed(kit, dcmtk, files, small):
    tls = Tls(files / "ca.crt", files / "pacs.crt", files / "pacs.key")
    send = ["storescu", "+tls", str(files / "site.key"), str(files / "site.crt"), "+cf", str(files / "ca.crt")]
    anonymous = ["storescu", "+tla", "-ic"]
    with (
        open_store(kit, "brain") as store,
        receiving(
            "WARDROUND", "127.0.0.1", 0, lambda content, uid: store.put(content, uid) and None, tls=tls.to_listen()
        ) as (_, port),
    ):
        for line, took in ((anonymous, False), (send, True)):
            whole = [*line, "-aec", "WARDROUND", "localhost", str(port), str(small[-1])]
            done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode == 0, store.is_empty()) == (took, not took), done.stderr
