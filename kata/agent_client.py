"""The host's end of the agent channel: ttRPC requests over one byte stream.

Many requests may be outstanding; each answer finds its own.  Everything that
arrives was written by a guest and is checked: lengths, types, stream numbers.
"""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from typing import Any

from google.protobuf.message import DecodeError, Message

from kata.errors import GuestError, VmError
from kata.greeting import TIMEOUT, Greeting, request_frame
from kata_agent.protocol import agent_pb2, guest_pb2, health_pb2, ttrpc_pb2
from kata_agent.protocol import ttrpc as frames

METHODS = frames.method_table([agent_pb2.DESCRIPTOR, guest_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])


def printable(text: str, limit: int = 4096) -> str:
    """A guest's words as a terminal or a log may have them, at most ``limit`` characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text[:limit])


class NoAnswer(VmError):
    """The agent did not answer in time."""


class ChannelClosed(VmError):
    """The channel to the guest broke; the request's fate is unknown."""


class _Channel(asyncio.BufferedProtocol):
    """The stream: the handshake, then answers, each given to whoever waits for it."""

    def __init__(self, handshake: frames.HostHandshake, greeted: bool) -> None:
        """:param greeted: the greeting was sent."""
        self._handshake = handshake
        self._words = b"" if greeted else handshake.greeting
        self._decoder = frames.Decoder()
        self._room = asyncio.Event()
        self._room.set()
        self.transport: asyncio.Transport | None = None
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.pending: dict[int, asyncio.Future[bytes]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._words)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.space()

    def buffer_updated(self, nbytes: int) -> None:
        assert self.transport is not None
        try:
            if self._handshake.done:
                answers = self._decoder.received(nbytes)
            else:
                # What comes before the guest's greeting is no frame.
                rest = self._handshake.feed(bytes(self._decoder.space()[:nbytes]))
                if not self._handshake.done:
                    return
                if not self.greeted.done():  # the caller has given up, perhaps
                    self.greeted.set_result(None)
                answers = self._decoder.feed(rest)
        except frames.FrameError as e:
            self._end(f"the guest broke the protocol of the agent channel: {e}")
            self.transport.abort()
            return
        for frame in answers:
            if frame.type != frames.RESPONSE:
                continue
            future = self.pending.pop(frame.stream_id, None)
            # An answer nobody waits for: its request was given up.
            if future is not None and not future.done():
                future.set_result(bytes(frame.payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the agent channel broke: {exc}" if exc else "the agent channel closed")

    def _end(self, reason: str) -> None:
        self.closed.set()
        self._room.set()
        if not self.greeted.done():
            self.greeted.set_result(None)
        for future in self.pending.values():
            if not future.done():
                future.set_exception(ChannelClosed(reason))
        self.pending.clear()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def expect(self, stream: int) -> asyncio.Future[bytes]:
        """What will come as the answer on a stream."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.pending[stream] = future
        return future

    async def drain(self) -> None:
        """Wait until the next frame has room."""
        await self._room.wait()


def _payload(answer: bytes, method: str) -> bytes:
    """What a response of ttRPC holds.

    :raise GuestError: it says that the agent has refused.
    :raise VmError: it is none.
    """
    try:
        response = ttrpc_pb2.Response.FromString(answer)
    except DecodeError as e:
        raise VmError(f"the agent's answer to {method} cannot be read") from e
    if response.status.code:
        raise GuestError(printable(response.status.message) or f"{method} failed", code=response.status.code)
    return response.payload


class Agent(ABC):
    """An agent, whatever carries requests to it."""

    @abstractmethod
    async def connect(self) -> None:
        """Wait for the agent as long as the caller lets it.

        :raise ChannelClosed: the machine's end is gone.
        """

    @abstractmethod
    async def call_raw(self, service: str, method: str, payload: bytes, timeout: float | None = TIMEOUT) -> bytes:
        """One request and its reply, both serialized.

        :param timeout: seconds; None for requests that wait for an event.
        :raise GuestError: the agent refused.
        :raise ChannelClosed: the channel broke.
        :raise NoAnswer: not in time.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the connection; the machine's end stays."""

    async def call(self, service: str, method: str, request: Message, timeout: float | None = TIMEOUT) -> Any:
        """:meth:`call_raw` with messages; the reply is of the class that the service names."""
        payload = await self.call_raw(service, method, request.SerializeToString(), timeout)
        try:
            return METHODS[service, method].response.FromString(payload)
        except DecodeError as e:
            raise VmError(f"the agent's answer to {method} cannot be read") from e

    async def agent(self, method: str, request: Message, timeout: float | None = TIMEOUT) -> Any:
        """An rpc of ``grpc.AgentService``."""
        return await self.call("grpc.AgentService", method, request, timeout)

    async def guest(self, method: str, request: Message, timeout: float | None = TIMEOUT) -> Any:
        """An rpc of ``kata.v1.Guest``."""
        return await self.call("kata.v1.Guest", method, request, timeout)

    async def check(self, timeout: float = TIMEOUT) -> None:
        """``grpc.Health.Check``.

        :raise VmError: the agent is not serving.
        """
        reply = await self.call("grpc.Health", "Check", health_pb2.CheckRequest(), timeout)
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise VmError("the agent in the guest is not serving")


class AgentClient(Agent):
    """A connection to our agent: ttRPC.

    The channel is a byte pipe that outlives its host end, so a new end first
    resynchronises: a token that only host and agent know, then a RESET frame
    with a nonce; whatever arrives before the agent's RESET with the same nonce
    belonged to an earlier end and is dropped.
    """

    def __init__(self, path: str, token: str, greeting: Greeting | None = None) -> None:
        """:param greeting: a connection to go on with."""
        self.path = path
        self._token = bytes.fromhex(token)
        self._next_stream = 1
        self._channel: _Channel | None = None
        self._greeting = greeting
        self._said: dict[str, tuple[int, asyncio.Future[bytes]]] = {}  #: what the greeting has asked: stream, answer

    async def connect(self) -> None:
        """Connect and resynchronise."""
        greeting, self._greeting = self._greeting, None
        sock = self._dial() if greeting is None else socket.socket(fileno=greeting.sock.detach())
        sock.setblocking(False)
        handshake = (greeting.handshake if greeting is not None
                     else frames.HostHandshake(self._token, os.urandom(frames.NONCE_SIZE)))
        channel = _Channel(handshake, greeting is not None)
        for method, stream in greeting.streams.items() if greeting is not None else ():
            self._said[method] = stream, channel.expect(stream)
            self._said[method][1].add_done_callback(lambda answer: answer.cancelled() or answer.exception())
            self._next_stream = stream + 2
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=sock)
        self._channel = channel
        await channel.greeted
        if channel.closed.is_set():
            raise ChannelClosed("the guest's end of the agent channel closed before the agent answered")

    def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(self.path)
        except OSError as e:
            sock.close()
            raise ChannelClosed(f"cannot connect to the agent channel {self.path}: {e.strerror}") from e
        return sock

    async def answer(self, method: str, timeout: float = TIMEOUT) -> None:
        """Wait for the answer to what the greeting has asked.

        :raise VmError: as of :meth:`call_raw`.
        """
        assert self._channel is not None
        stream, future = self._said.pop(method)
        try:
            async with asyncio.timeout(timeout):
                answer = await future
        except TimeoutError as e:
            raise NoAnswer(f"the agent did not answer {method} within {timeout:g} s") from e
        finally:
            self._channel.pending.pop(stream, None)
        _payload(answer, method)

    async def call_raw(self, service: str, method: str, payload: bytes, timeout: float | None = TIMEOUT) -> bytes:
        channel = self._channel
        if channel is None or channel.transport is None or channel.closed.is_set():
            raise ChannelClosed("the agent channel is closed")
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        if self._next_stream > 0xFFFFFFF0:
            self._next_stream = 1
        future = channel.expect(stream)
        channel.transport.write(request_frame(stream, service, method, payload, timeout))
        try:
            # A guest that reads nothing must not hold up more than one that answers nothing.
            async with asyncio.timeout(timeout):
                await channel.drain()
                answer = await future
        except TimeoutError as e:
            raise NoAnswer(f"the agent did not answer {method} within {timeout:g} s") from e
        finally:
            channel.pending.pop(stream, None)
        return _payload(answer, method)

    async def wait_closed(self) -> None:
        """Wait until the channel has broken."""
        if self._channel is not None:
            await self._channel.closed.wait()

    async def close(self) -> None:
        if self._channel is not None and self._channel.transport is not None:
            # Not close(), which waits until a guest has read what was sent.
            self._channel.transport.abort()
