"""The proxy's end of the control socket."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kata import wire
from kata.proxy.control import Connection, Server


class Listener:
    """A listening socket of a process that has no descriptors left, for as long as ``full``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.full = False
        self.tries = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def accept(self) -> Any:
        self.tries += 1
        if self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._sock.accept()


def test_whoever_finds_no_descriptor_left_is_served_when_somebody_goes(tmp_path: Path,
                                                                       capfd: pytest.CaptureFixture[str]) -> None:
    async def answer(_connection: Connection, _request: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        return {"served": True}

    async def ask(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(wire.pack_json(wire.REQUEST, {"v": wire.VERSION, "op": "x"}))
        return reader, writer

    async def main() -> None:
        path = f"{tmp_path}/s"
        with socket.socket(fileno=wire.listening_socket(path).detach()) as sock:
            listener: Any = Listener(sock)
            server = Server(listener, answer)
            reader, first = await ask(path)
            assert b"served" in await reader.read(1000)
            listener.full = True
            reader, second = await ask(path)
            for _ in range(20):
                await asyncio.sleep(0)
            assert listener.tries == 2, "it does not try again and again"
            listener.full = False
            first.close()
            assert b"served" in await asyncio.wait_for(reader.read(1000), 10)
            second.close()
            server.close(path)

    asyncio.run(main())
    assert "1 verbs and shims are connected, and no more can be: Too many open files" in capfd.readouterr().out
