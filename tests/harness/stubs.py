"""A gRPC client of an agent with nothing but the protocol's definitions, as a Kata 1.x runtime has them."""

from __future__ import annotations

from typing import Any

import grpc

from kata_agent.protocol import agent_pb2, health_pb2
from kata_agent.protocol.ttrpc import method_table

METHODS = method_table([agent_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])


class Stubs:
    """``stubs.Name(field=value, ...)`` for every rpc of AgentService and Health."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._calls = {
            name: (channel.unary_unary(f"/{service}/{name}", request_serializer=method.request.SerializeToString,
                                       response_deserializer=method.response.FromString), method.request)
            for (service, name), method in METHODS.items()}

    def start(self, name: str, message: Any = None, timeout: float = 30, **fields: Any) -> Any:
        """The call's future."""
        call, request = self._calls[name]
        return call.future(request(**fields) if message is None else message, timeout=timeout, wait_for_ready=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._calls:
            raise AttributeError(name)

        def ask(message: Any = None, timeout: float = 30, **fields: Any) -> Any:
            return self.start(name, message, timeout, **fields).result()

        return ask


def read_all(read: Any, **ids: str) -> bytes:
    """As Kata 1.x's shim: until an error says that the stream has ended."""
    data = b""
    while True:
        try:
            got = read(len=32768, **ids).data
        except grpc.RpcError as e:
            assert "EOF" in str(e.details()), e
            return data
        if not got:
            return data
        data += got
