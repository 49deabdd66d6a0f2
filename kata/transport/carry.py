"""Connections of a unix socket, each carried byte for byte to a far end of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from kata.errors import KataError
from kata.wire import listening_socket

READ = 64 << 10  #: bytes


class End(Protocol):
    """One end of a connection; a :class:`~kata.transport.yamux.Stream` is one."""

    async def read(self) -> bytes:
        """The next bytes, b"" at the end."""

    async def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class SocketEnd:
    """An end that is a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(READ)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


class Carrier:
    """Listens on ``path`` from its creation until :meth:`close`.

    :param far: makes the far end of a connection; it may wait.
    :param report: gets a line when a connection failed.
    :raise HostError: the path cannot be listened on.
    """

    def __init__(self, path: str, far: Callable[[], Awaitable[End]], report: Callable[[str], None]) -> None:
        self.path = path
        self._far = far
        self._report = report
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(fileno=listening_socket(path).detach())
        self._listener.setblocking(False)
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        task = asyncio.ensure_future(self._carry(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket) -> None:
        client.setblocking(False)
        ends: list[End] = [SocketEnd(*await asyncio.open_unix_connection(sock=client))]
        copies: set[asyncio.Task[None]] = set()
        try:
            ends.append(await self._far())
            copies = {asyncio.ensure_future(_copy(*ends)), asyncio.ensure_future(_copy(*reversed(ends)))}
            # When one end is gone, so is the connection.
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, KataError) as e:
            self._report(f"{os.path.basename(self.path)}: {e}")
        finally:
            for task in copies:
                task.cancel()
            for end in ends:
                end.close()
            await asyncio.gather(*copies, return_exceptions=True)

    def close(self) -> None:
        """Listen no more and end every connection."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        with suppress(FileNotFoundError):
            os.unlink(self.path)


async def _copy(source: End, target: End) -> None:
    with suppress(ConnectionError):
        while data := await source.read():
            await target.write(data)
