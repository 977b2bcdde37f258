"""The link's security, over real sockets: what is refused, what each side says about it, and what a listener sees."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from cryptography import x509
from flwr.client.grpc_rere_client import node_auth_client_interceptor
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.message_pb2 import Message as Wired
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from certs.authority import issue_server, read_authority
from certs.pem import certificate_bytes, new_key, openssh_bytes, pkcs8_bytes, read_certificate, read_private_key
from client import node
from common.errors import LinkError
from common.kit import Kit

PATTERN = np.frombuffer(b"the pixel pattern that must never be seen on the wire", dtype=np.uint8)


class Wire(threading.Thread):
    """A proxy between sites and coordinator that keeps every byte that passes, both ways."""

    def __init__(self, target: str) -> None:
        super().__init__(daemon=True)
        host, _, port = target.rpartition(":")
        self.target, self.seen = (host, int(port)), {"up": bytearray(), "down": bytearray()}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self.listener.accept()[0], socket.create_connection(self.target)
                for source, sink, way in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(target=self._copy, args=(source, sink, self.seen[way]), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, seen: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def tls_server(certificate: x509.Certificate, key, folder) -> Iterator[str]:
    """A TLS server with this certificate, and nothing behind it."""
    (folder / "chain.pem").write_bytes(certificate_bytes(certificate) + pkcs8_bytes(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True):
                pass

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def at(kit: Kit, address: str) -> Kit:
    return dataclasses.replace(kit, address=address)


def handshake(address: str, authority, **limits) -> ssl.SSLSocket:
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(limits.pop("alpn", ["h2"]))
    for name, value in limits.items():
        setattr(context, name, value)
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=60), server_hostname=host)


def test_the_link_is_tls_1_3_or_1_2_with_http2_and_the_federations_certificate(federation):
    kit = federation.site("north")
    with federation.link():
        report = node.probe(kit)
        assert (report.tls, report.alpn) == ("TLSv1.3", "h2")
        certificate = read_certificate(federation.coordinator.certificate)
        assert ssl.cert_time_to_seconds(report.server_certificate_ends) == certificate.not_valid_after_utc.timestamp()
        with handshake(federation.address, kit.authority_certificate, maximum_version=ssl.TLSVersion.TLSv1_2) as link:
            assert link.version() == "TLSv1.2"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_1_is_refused(federation):
    old = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1}
    with federation.link(), pytest.raises((ssl.SSLError, OSError)):
        handshake(federation.address, federation.site("north").authority_certificate, **old)


def test_a_client_that_speaks_plaintext_gets_nothing(federation):
    with federation.link(), grpc.insecure_channel(federation.address) as channel:
        with pytest.raises(grpc.RpcError) as problem:
            FleetStub(channel).PullMessages(PullMessagesRequest(node=Node(node_id=1)), timeout=60)
        assert problem.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_call_that_no_key_has_signed_is_refused(federation):
    with federation.link() as link:
        trust = grpc.ssl_channel_credentials(federation.coordinator.authority_certificate.read_bytes())
        with grpc.secure_channel(federation.address, trust) as channel:
            with pytest.raises(grpc.RpcError) as problem:
                FleetStub(channel).PullMessages(PullMessagesRequest(node=Node(node_id=link.node_ids()["north"])))
            assert problem.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_site_tells_a_server_that_speaks_plaintext(federation):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(LinkError, match="does not speak TLS"):
            node.probe(at(federation.site("north"), address))


def test_a_site_tells_a_coordinator_that_is_not_there(federation):
    site = federation.start_site("north")
    site.says("can't be reached (connection refused)")
    with federation.link():
        site.says("connected to")  # and comes in as soon as it is


def test_a_site_tells_a_coordinator_of_another_federation(federation, other_federation):
    other = other_federation(federation.address)
    with federation.link() as link:
        site = other.start_site("north")
        site.says("another authority signed its certificate")
        assert "connected" not in site.said()
        assert not any(state.online for state in link.sites())


def test_a_site_tells_a_certificate_for_another_name(federation, tmp_path):
    authority, key = read_authority(federation.kits / "authority"), new_key()
    certificate = issue_server(authority, key.public_key(), ["elsewhere.example.org"])
    with tls_server(certificate, key, tmp_path) as address, pytest.raises(LinkError, match="for another name"):
        node.probe(at(federation.site("north"), address))


def test_a_site_tells_an_expired_certificate(federation, tmp_path):
    authority, key = read_authority(federation.kits / "authority"), new_key()
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=10)
    certificate = issue_server(authority, key.public_key(), ["127.0.0.1"], days_valid=5, now=long_ago)
    with tls_server(certificate, key, tmp_path) as address, pytest.raises(LinkError, match="has ended"):
        node.probe(at(federation.site("north"), address))


def test_a_site_whose_key_is_not_admitted_is_refused_and_told(federation):
    kit = federation.site("north")
    kit.key.write_bytes(openssh_bytes(new_key()))
    with federation.link() as link:
        site = federation.start_site("north")
        site.says("does not know this site's key")
        assert not link.sites()[0].online
        assert site.popen.poll() is None  # and goes on trying


def test_a_site_that_is_revoked_is_shut_out_at_once_and_told_and_the_other_goes_on(federation, ask):
    north, south = federation.start_site("north"), federation.start_site("south")
    with federation.link() as link, link.open_run("run", ["north", "south"]) as run:
        for site in (north, south):
            site.says("connected")
        federation.revoke("north")
        link.reconcile(federation.roster)
        north.says("does not know this site's key")
        assert not ask.pull(run, ask.push(run, "south")["south"]).has_error()
        assert "asked" not in north.said()
        with pytest.raises(LinkError, match="revoked"):
            node.check_admission(federation.site("north"))


def test_a_site_whose_clock_is_wrong_is_refused_and_told(federation, monkeypatch):
    ahead = lambda: datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=2)  # noqa: E731
    monkeypatch.setattr(node_auth_client_interceptor, "now", ahead)
    with federation.link(), pytest.raises(LinkError, match="clock"):
        node.check_admission(federation.site("north"))


def test_a_site_cannot_activate_another_nor_answer_for_it(federation, ask):
    key, other = (read_private_key(federation.site(name).key) for name in ("north", "south"))
    with federation.link() as link:
        trust = grpc.ssl_channel_credentials(federation.coordinator.authority_certificate.read_bytes())
        with grpc.secure_channel(federation.address, trust) as plain:
            channel = grpc.intercept_channel(plain, NodeAuthClientInterceptor(key, key.public_key()))
            stub, ids = FleetStub(channel), link.node_ids()
            forged = Wired(metadata=Metadata(src_node_id=ids["south"]))
            for call in (
                lambda: stub.ActivateNode(
                    ActivateNodeRequest(public_key=public_key_to_bytes(other.public_key()), heartbeat_interval=30)
                ),
                lambda: stub.PullMessages(PullMessagesRequest(node=Node(node_id=ids["south"]))),
                lambda: stub.PushMessages(PushMessagesRequest(node=Node(node_id=ids["north"]), messages_list=[forged])),
            ):
                with pytest.raises(grpc.RpcError) as problem:
                    call()
                assert problem.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert not any(site.online for site in link.sites())


def test_no_clear_byte_of_a_model_or_an_update_is_on_the_wire(federation, ask):
    wire = Wire(federation.address)
    wire.start()
    kit = federation.site("north").folder / "kit.toml"
    kit.write_text(kit.read_text().replace(federation.address, wire.address))
    model = np.tile(PATTERN, 2000)
    with federation.link() as link, link.open_run("run", ["north"]) as run:
        federation.start_site("north", "add:1")
        reply = ask.pull(run, ask.push(run, "north", arrays=(model,))["north"])
        np.testing.assert_array_equal(ask.numbers(reply)[0], model + 1)
    for way, pattern in (("down", PATTERN), ("up", PATTERN + 1)):
        assert len(wire.seen[way]) > model.nbytes
        assert pattern.tobytes() not in wire.seen[way]
        assert b"PullMessages" not in wire.seen[way]
