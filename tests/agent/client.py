"""A small blocking ttRPC client, for tests of the agent."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from kata_agent.protocol import agent_pb2, codes, guest_pb2, health_pb2, ttrpc
from kata_agent.protocol.ttrpc_pb2 import Request, Response

METHODS = ttrpc.method_table([agent_pb2.DESCRIPTOR, guest_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])
SERVICES = {name: service for service, name in METHODS if service != "kata.v1.Guest"}


class RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{codes.name(code)}: {message}")
        self.code = code
        self.message = message


class Pending:
    """A request that was sent."""

    def __init__(self, client: Client, stream_id: int, method: ttrpc.Method) -> None:
        self._client = client
        self.stream_id = stream_id
        self._method = method

    def result(self, timeout: float = 30.0) -> Any:
        response = self._client.response(self.stream_id, timeout)
        if response.status.code:
            raise RpcError(response.status.code, response.status.message)
        return self._method.response.FromString(response.payload)

    def ready(self, timeout: float = 0.2) -> bool:
        """Whether the answer comes within ``timeout`` seconds."""
        try:
            self._client.responses[self.stream_id] = self._client.response(self.stream_id, timeout)
        except TimeoutError:
            return False
        return True


class Client:
    """The host's end of a channel.  Attributes are rpcs: ``client.Check()``, ``client.guest.ReadStream(...)``."""

    def __init__(self, sock: socket.socket, token: bytes, timeout: float = 30.0) -> None:
        self._sock = sock
        self._decoder = ttrpc.Decoder()
        self.responses: dict[int, Response] = {}
        self._next = 1
        handshake = ttrpc.HostHandshake(token, os.urandom(ttrpc.NONCE_SIZE))
        sock.sendall(handshake.greeting)
        sock.settimeout(timeout)
        while not handshake.done:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("the agent has closed the channel")
            self._feed(handshake.feed(data))
        self.guest = _Service(self, "kata.v1.Guest")

    def close(self) -> None:
        self._sock.close()

    def _feed(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            assert frame.type == ttrpc.RESPONSE, frame
            self.responses[frame.stream_id] = Response.FromString(frame.payload)

    def response(self, stream_id: int, timeout: float) -> Response:
        deadline = time.monotonic() + timeout
        while stream_id not in self.responses:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            data = self._sock.recv(1 << 20)
            if not data:
                raise ConnectionError("the agent has closed the channel")
            self._feed(data)
        return self.responses.pop(stream_id)

    def start(self, service: str, name: str, request: Message | None = None, **fields: Any) -> Pending:
        method = METHODS[service, name]
        message = request if request is not None else method.request(**fields)
        stream_id = self._next
        self._next += 2
        payload = Request(service=service, method=name, payload=message.SerializeToString()).SerializeToString()
        self._sock.settimeout(30)
        self._sock.sendall(ttrpc.encode(stream_id, ttrpc.REQUEST, payload))
        return Pending(self, stream_id, method)

    def receive_some(self) -> None:
        """Take a piece of what comes, for tests that go away in the middle of an answer."""
        self._sock.settimeout(5)
        self._sock.recv(1000)

    def send_raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def __getattr__(self, name: str) -> Any:
        if name not in SERVICES:
            raise AttributeError(name)
        return getattr(_Service(self, SERVICES[name]), name)


class _Service:
    def __init__(self, client: Client, service: str) -> None:
        self._client = client
        self._service = service

    def __getattr__(self, name: str) -> Any:
        def call(request: Message | None = None, **fields: Any) -> Any:
            return self._client.start(self._service, name, request, **fields).result()

        call.start = lambda request=None, **fields: self._client.start(  # type: ignore[attr-defined]
            self._service, name, request, **fields)
        return call


def read_all(client: Client, container: str, exec_id: str = "", stream: int = 1) -> bytes:
    """A stream to its end, by Guest.ReadStream."""
    data = b""
    while True:
        answer = client.guest.ReadStream(container_id=container, exec_id=exec_id, stream=stream, offset=len(data),
                                         ack=len(data), max_len=1 << 20)
        assert answer.offset == len(data)
        data += answer.data
        if answer.eof:
            return data


def read_through_restarts(connect: Callable[[], Client], container: str, seed: int) -> bytes:
    """stdout to its end while the host end is replaced again and again, also in the middle of answers."""
    rng = random.Random(seed)
    data = b""
    client = connect()
    try:
        while True:
            pending = client.guest.ReadStream.start(container_id=container, stream=1, offset=len(data),
                                                    ack=max(0, len(data) - rng.randrange(100_000)), max_len=1 << 18)
            if rng.random() < 0.3:
                if rng.random() < 0.5:
                    client.receive_some()
                client.send_raw(rng.randbytes(rng.randrange(30)))
                client.close()
                client = connect()
                continue
            answer = pending.result()
            assert answer.offset == len(data)
            data += answer.data
            if answer.eof:
                return data
    finally:
        client.close()
