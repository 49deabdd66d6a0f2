"""The host's end of the agent channel: ttRPC requests over one byte stream.

Many requests may be outstanding; each answer finds its own.  Everything that
arrives was written by a guest and is checked: lengths, types, stream numbers.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError, Message

from kata.errors import GuestError, VmError
from kata_agent.protocol import agent_pb2, guest_pb2, health_pb2, ttrpc_pb2
from kata_agent.protocol import ttrpc as frames

METHODS = frames.method_table([agent_pb2.DESCRIPTOR, guest_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])

#: The deadline of an ordinary request, seconds.  Emulated guests are slow; verbs wait longer, so that
#: they can say who did not answer.
TIMEOUT = 30.0


def printable(text: str, limit: int = 4096) -> str:
    """A guest's words as a terminal or a log may have them, at most ``limit`` characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text[:limit])


class NoAnswer(VmError):
    """The agent did not answer in time."""


class ChannelClosed(VmError):
    """The channel to the guest broke; the request's fate is unknown."""


class AgentClient:
    """A connection to the agent.

    The channel is a byte pipe that outlives its host end, so a new end first
    resynchronises: a token that only host and agent know, then a RESET frame
    with a nonce; whatever arrives before the agent's RESET with the same nonce
    belonged to an earlier end and is dropped.
    """

    def __init__(self, path: str, token: str) -> None:
        self.path = path
        self._token = bytes.fromhex(token)
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._next_stream = 1
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    async def connect(self) -> None:
        """Connect and resynchronise; waits for the agent as long as the caller lets it.

        :raise ChannelClosed: the machine's end is gone.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(self.path)
            sock.setblocking(False)
            reader, self._writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        except OSError as e:
            sock.close()
            raise ChannelClosed(f"cannot connect to the agent channel {self.path}: {e.strerror}") from e
        handshake = frames.HostHandshake(self._token, secrets.token_bytes(frames.NONCE_SIZE))
        rest = b""
        try:
            self._writer.write(handshake.greeting)
            await self._writer.drain()
            while not handshake.done:
                data = await reader.read(1 << 16)
                if not data:
                    raise ConnectionResetError
                rest = handshake.feed(data)
        except ConnectionError as e:
            raise ChannelClosed("the guest's end of the agent channel closed before the agent answered") from e
        self._reader_task = asyncio.ensure_future(self._read(reader, rest))

    async def _read(self, reader: asyncio.StreamReader, data: bytes) -> None:
        decoder = frames.Decoder()
        reason = "the agent channel closed"
        try:
            while True:
                for frame in decoder.feed(data):
                    if frame.type != frames.RESPONSE:
                        continue
                    future = self._pending.pop(frame.stream_id, None)
                    # An answer nobody waits for: its request was given up.
                    if future is not None and not future.done():
                        future.set_result(frame.payload)
                data = await reader.read(1 << 18)
                if not data:
                    return
        except frames.FrameError as e:
            reason = f"the guest broke the protocol of the agent channel: {e}"
        except OSError as e:
            reason = f"the agent channel broke: {e.strerror}"
        finally:
            self.closed.set()
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(ChannelClosed(reason))
            self._pending.clear()

    async def call_raw(self, service: str, method: str, payload: bytes, timeout: float | None = TIMEOUT) -> bytes:
        """One request and its reply, both serialized.

        :param timeout: seconds; None for requests that wait for an event.
        :raise GuestError: the agent refused.
        :raise ChannelClosed: the channel broke.
        :raise NoAnswer: not in time.
        """
        if self._writer is None or self.closed.is_set():
            raise ChannelClosed("the agent channel is closed")
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        if self._next_stream > 0xFFFFFFF0:
            self._next_stream = 1
        envelope = ttrpc_pb2.Request(service=service, method=method, payload=payload)
        if timeout is not None:
            envelope.timeout_nano = int(timeout * 1e9)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending[stream] = future
        self._writer.write(frames.encode(stream, frames.REQUEST, envelope.SerializeToString()))
        try:
            # A guest that reads nothing must not hold up more than one that answers nothing.
            async with asyncio.timeout(timeout):
                await self._writer.drain()
                answer = await future
        except TimeoutError as e:
            raise NoAnswer(f"the agent did not answer {method} within {timeout:g} s") from e
        except ConnectionError as e:
            raise ChannelClosed(f"the agent channel broke during {method}") from e
        finally:
            self._pending.pop(stream, None)
        try:
            response = ttrpc_pb2.Response.FromString(answer)
        except DecodeError as e:
            raise VmError(f"the agent's answer to {method} cannot be read") from e
        if response.status.code:
            raise GuestError(printable(response.status.message) or f"{method} failed", code=response.status.code)
        return response.payload

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

    async def close(self) -> None:
        if self._reader_task is not None:
            self._reader_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader_task
        if self._writer is not None:
            # Not close(), which waits until a guest has read what was sent.
            self._writer.transport.abort()
