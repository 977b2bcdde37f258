"""The door that sites knock on: Flower's Fleet API over TLS gRPC, every call signed by the node's key.

Only this API is served. The stock SuperLink's other doors (its HTTP APIs for submitting code and for running it) do not
exist here. Two holes of the stock API are closed: a node can be activated only by the holder of its key, and
a reply is taken only from the node that it says it is from.
"""

from __future__ import annotations

import errno
import socket
import threading
from datetime import UTC, datetime
from typing import Any

import grpc
from flwr.common.constant import PUBLIC_KEY_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.grpc import GRPC_MAX_MESSAGE_LENGTH, generic_create_grpc_server
from flwr.supercore.interceptors import (
    RpcErrorTranslationServerInterceptor,
    create_fleet_runtime_version_server_interceptor,
)
from flwr.supercore.object_store import ObjectStoreFactory

from common.errors import LinkError
from common.kit import Kit

CALLS_AT_ONCE, HANDLED_AT_ONCE = 512, 1
"""Calls taken in at once (more are turned away, and tried again by the site), and how many of them are worked on.

A call from a slow line takes long to come in and must not keep others out; but the database has one writer, and who
waits for it asleep waits longer.
"""
GRACE_SECONDS = 1.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Door(FleetServicer):
    """Flower's Fleet API; `activated` says when each node last introduced itself (UTC), in this process' life."""

    def __init__(self, states: LinkStateFactory, objects: ObjectStoreFactory) -> None:
        super().__init__(state_factory=states, objectstore_factory=objects, enable_supernode_auth=True)
        self.activated: dict[int, datetime] = {}

    def ActivateNode(  # noqa: N802 - gRPC's name
        self, request: ActivateNodeRequest, context: grpc.ServicerContext
    ) -> ActivateNodeResponse:
        """Let a node in.

        A node that Flower still thinks to be here is let in anew: its process was killed, and is back with its key.
        """
        keys = [value for name, value in context.invocation_metadata() if name == PUBLIC_KEY_HEADER]
        if keys != [request.public_key]:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid public key")
        state = self.state_factory.state()
        node_id = state.get_node_id_by_public_key(request.public_key)
        if node_id is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Unknown public key")
        else:
            state.deactivate_node(node_id)
        response = super().ActivateNode(request, context)
        self.activated[response.node_id] = datetime.now(UTC)
        return response

    def PushMessages(  # noqa: N802 - gRPC's name
        self, request: PushMessagesRequest, context: grpc.ServicerContext
    ) -> PushMessagesResponse:
        """Take a node's reply, if it is that node's own."""
        if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid node ID")
        return super().PushMessages(request, context)


class Turnstile(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets through as many calls at a time as the database can stand."""

    def __init__(self, places: int) -> None:
        self._places = threading.BoundedSemaphore(places)

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """Make a call wait for a place once it has come in whole."""
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        def unary_unary(request: Any, context: grpc.ServicerContext) -> Any:
            with self._places:
                return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            unary_unary, handler.request_deserializer, handler.response_serializer
        )


def open_door(door: Door, kit: Kit, address: str) -> grpc.Server:
    """Start serving at `address` ("host:port") with the kit's certificate, TLS 1.2 or later.

    Raises
    ------
    LinkError
        The port is in use, or the address is not this machine's.
    """
    _check_port(address)
    interceptors: list[Any] = [
        Turnstile(HANDLED_AT_ONCE),
        RpcErrorTranslationServerInterceptor(),
        NodeAuthServerInterceptor(door.state_factory),
        create_fleet_runtime_version_server_interceptor(),
    ]
    server: grpc.Server = generic_create_grpc_server(
        servicer_and_add_fn=(door, add_FleetServicer_to_server),
        server_address=address,
        max_concurrent_workers=CALLS_AT_ONCE,
        max_message_length=GRPC_MAX_MESSAGE_LENGTH,
        certificates=(kit.authority_certificate.read_bytes(), kit.certificate.read_bytes(), kit.key.read_bytes()),
        interceptors=interceptors,
    )
    server.start()
    return server


def close_door(server: grpc.Server) -> None:
    """End serving: calls under way have a moment to finish."""
    server.stop(grace=GRACE_SECONDS).wait()


def listening_address(address: str) -> str:
    """Return where to listen for sites that connect to `address`: a loopback address stays, else every interface."""
    host, _, port = address.rpartition(":")
    if host in LOOPBACK:
        return address
    return f"[::]:{port}" if host.startswith("[") else f"0.0.0.0:{port}"


def _check_port(address: str) -> None:
    """Find out before gRPC does, which ends the process, or shares the port with another coordinator."""
    host, _, port = address.rpartition(":")
    try:
        family, *_, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except ValueError as error:
        raise LinkError(f'can\'t listen on "{address}": it is not "host:port"') from error
    except OSError as error:
        reason = "the port is in use: is the coordinator running already?"
        if error.errno != errno.EADDRINUSE:
            reason = f"{error.strerror or error}: give an address of this machine with --listen"
        raise LinkError(f"can't listen on {address}: {reason}") from error
