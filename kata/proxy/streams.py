"""Carry one process's stdio and exit between its shim and the agent.

Both ends count bytes from the start of each stream and keep what the other has
not acknowledged, so this task may be torn down and begun anew at any point:
the shim names the offsets it has reached when it attaches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from kata import wire
from kata.agent_client import Agent
from kata_agent.protocol import guest_pb2

WINDOW = 2 << 20  #: bytes on their way to a shim that it has not acknowledged
CHUNK = 1 << 20  #: bytes of one request: large, since each costs an emulated guest a millisecond
FRAME = 128 << 10  #: bytes of one frame to a shim, which is to stay small
WRITES = 2  #: requests on their way to the guest with standard input; what comes meanwhile goes by the next, together
DISCARD = (1 << 64) - 1  #: a shim's acknowledgement when nobody reads its output any more


class Link(Protocol):
    """The shim's connection."""

    def send(self, *frame: bytes | memoryview) -> None: ...

    async def drain(self) -> None: ...


class Attachment:
    """A shim attached to a process of a container."""

    def __init__(self, agent: Agent, container: str, exec_id: str, link: Link,
                 offsets: tuple[int, int, int], terminal: bool, ended: asyncio.Future[int]) -> None:
        self.agent = agent
        self.container = container
        self.exec_id = exec_id
        self.link = link
        self.offsets = list(offsets)  #: per stream: bytes the shim has taken (0: given)
        self.acked = list(offsets)
        self.terminal = terminal
        self.ended = ended  #: the process's exit status, once it is settled
        self._room = asyncio.Event()
        self._moved = [asyncio.Event() for _ in offsets]
        self._closing: asyncio.Future[Any] | None = None
        self._stdin: list[bytes | memoryview] = []
        self._stdin_offset = offsets[0]  # of the first byte in _stdin
        self._stdin_eof = False
        self._more = asyncio.Event()  # of standard input

    # --- from the shim ------------------------------------------------------------

    def on_ack(self, stream: int, offset: int) -> None:
        self.acked[stream] = max(self.acked[stream], offset)
        self._room.set()
        if offset == DISCARD:
            # The pump may be waiting for more; the guest must know now, so
            # that the process gets its SIGPIPE.
            self._closing = asyncio.ensure_future(self._read(stream, no_wait=True))

    def on_stdin(self, offset: int, data: bytes | memoryview, eof: bool) -> None:
        if not self._stdin:
            self._stdin_offset = offset
        if data:
            self._stdin.append(data)
        self._stdin_eof = self._stdin_eof or eof
        self._more.set()

    # --- tasks ----------------------------------------------------------------------

    async def run(self, released: Callable[[], None]) -> int:
        """Pump until the process has ended and its output is with the shim; its exit status.

        ``released`` is called when the shim has all of it.
        """
        stdin = asyncio.ensure_future(self._pump_stdin())
        outputs = [asyncio.ensure_future(self._pump_output(wire.STDOUT))]
        if not self.terminal:
            outputs.append(asyncio.ensure_future(self._pump_output(wire.STDERR)))
        try:
            status = await asyncio.shield(self.ended)
            # What the process wrote before it ended goes ahead of its exit; a
            # child of its own may hold an output open for longer.
            for stream, output in enumerate(outputs, wire.STDOUT):
                await self._drain(stream, output)
            self.link.send(wire.pack_json(wire.EXIT, {"status": status}))
            await asyncio.gather(*outputs)
            released()
            return status
        finally:
            for task in (stdin, *outputs):
                task.cancel()
            # Their failures too: input for a process that has ended, say.
            await asyncio.gather(stdin, *outputs, return_exceptions=True)

    async def _drain(self, stream: int, pump: asyncio.Task[None]) -> None:
        """Wait until everything that is in the stream now has been sent."""
        while not pump.done():
            moved = self._moved[stream]
            reply = await self._read(stream, no_wait=True)
            if not reply.data and not reply.eof:
                return
            waiting = asyncio.ensure_future(moved.wait())
            await asyncio.wait({waiting, pump}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()

    async def _read(self, stream: int, no_wait: bool = False) -> Any:
        return await self.agent.guest("ReadStream", guest_pb2.ReadRequest(
            container_id=self.container, exec_id=self.exec_id, stream=stream, no_wait=no_wait,
            offset=self.offsets[stream], max_len=CHUNK, ack=min(self.acked[stream], self.offsets[stream]),
            close=self.acked[stream] == DISCARD), timeout=None)

    async def _pump_output(self, stream: int) -> None:
        while True:
            while self.offsets[stream] - self.acked[stream] >= WINDOW:
                self._room.clear()
                await self._room.wait()
            reply = await self._read(stream)
            start, data = self.offsets[stream], reply.data
            if reply.offset != start or len(data) > CHUNK:
                raise wire.ProtocolError(f"the agent answered bytes at {reply.offset}, {start} was asked for")
            self.offsets[stream] += len(data)
            self._moved[stream].set()
            self._moved[stream] = asyncio.Event()
            view = memoryview(data)
            for at in range(0, len(data), FRAME) or (range(1) if reply.eof else ()):
                part = view[at : at + FRAME]
                last = reply.eof and at + len(part) == len(data)
                self.link.send(wire.data_head(stream, start + at, len(part), last), part)
            await self.link.drain()
            if reply.eof:
                return

    async def _pump_stdin(self) -> None:
        """Carry standard input, at most :data:`WRITES` requests at a time, in order."""
        writes: set[asyncio.Task[None]] = set()
        try:
            while True:
                while not self._stdin and not self._stdin_eof:
                    self._more.clear()
                    await self._more.wait()
                size = count = 0
                for piece in self._stdin:
                    if size + len(piece) > CHUNK and count:
                        break
                    size += len(piece)
                    count += 1
                data, self._stdin = b"".join(self._stdin[:count]), self._stdin[count:]
                eof = self._stdin_eof and not self._stdin
                writes.add(asyncio.ensure_future(self._write(self._stdin_offset, data, eof)))
                self._stdin_offset += len(data)
                if eof or len(writes) == WRITES:
                    done, writes = await asyncio.wait(
                        writes, return_when=asyncio.ALL_COMPLETED if eof else asyncio.FIRST_COMPLETED)
                    for write in done:
                        write.result()
                if eof:
                    return
        finally:
            for write in writes:
                write.cancel()

    async def _write(self, offset: int, data: bytes, eof: bool) -> None:
        reply = await self.agent.guest("WriteStream", guest_pb2.WriteRequest(
            container_id=self.container, exec_id=self.exec_id, offset=offset, data=data, eof=eof), timeout=None)
        self.link.send(wire.pack_ack(wire.STDIN, offset + len(data) if reply.closed else reply.received))
