"""The control socket: verbs and shims connect here."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any

from kata import wire
from kata.errors import HostError, KataError
from kata.proxy.log import log

Handler = Callable[["Connection", Mapping[str, Any], list[int]], Awaitable[dict[str, Any]]]

RECEIVE = 1 << 18
MAX_FDS = 4096
PIECES = 64  #: sent at once
MAX_EARLY = 2 << 20  #: bytes; a shim sends no more before it hears from us


class Connection:
    """One verb or shim.

    Requests are answered in the order in which they end; a verb sends one at a
    time.  What is not a request, the stream frames of a shim, goes to the taker
    given to :meth:`take_frames`; those that arrive before it are kept for it.
    """

    def __init__(self, sock: socket.socket, handler: Handler) -> None:
        self.sock = sock
        self._frames: Callable[[int, int, bytes], None] | None = None
        self._early: list[tuple[int, int, bytes]] = []
        self._early_size = 0
        self.closed = asyncio.Event()
        self._handler = handler
        self._decoder = wire.Decoder()
        self._fds: list[int] = []
        self._out: deque[bytes | memoryview] = deque()
        self._drained = asyncio.Event()
        self._drained.set()
        self._tasks: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    # --- in -----------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data, ancillary, _flags, _addr = self.sock.recvmsg(RECEIVE, socket.CMSG_SPACE(4 * wire.FDS_PER_FRAME))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._fds += wire.take_fds(ancillary)
        if not data or len(self._fds) > MAX_FDS:
            self.close()
            return
        try:
            for kind, flags, payload in self._decoder.feed(data):
                if kind == wire.REQUEST:
                    fds, self._fds = self._fds, []
                    task = asyncio.ensure_future(self._answer(payload, fds))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                elif kind != wire.FDS:
                    self._frame(kind, flags, payload)
        except KataError as e:
            self.send(wire.pack_error(e))
            self.close()

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        if self._frames is not None:
            self._frames(kind, flags, payload)
        elif self._early_size + len(payload) <= MAX_EARLY:
            self._early.append((kind, flags, payload))
            self._early_size += len(payload)
        else:
            self.close()

    def take_frames(self, taker: Callable[[int, int, bytes], None]) -> None:
        """Give stream frames to ``taker``, first those that have arrived already."""
        self._frames = taker
        early, self._early = self._early, []
        for frame in early:
            taker(*frame)

    @property
    def attached(self) -> bool:
        """Whether somebody takes its stream frames."""
        return self._frames is not None

    async def _answer(self, payload: bytes, fds: list[int]) -> None:
        op = ""
        try:
            request = json.loads(payload)
            op = request.get("op", "")
            if request.get("v") != wire.VERSION:
                raise HostError(f"the proxy of this sandbox speaks version {wire.VERSION} of the control protocol, "
                                f"the caller version {request.get('v')}", "use the program that made the sandbox")
            self.send(wire.pack_json(wire.REPLY, await self._handler(self, request, fds)))
        except KataError as e:
            self.send(wire.pack_error(e, op))
        except OSError as e:
            self.send(wire.pack_error(HostError(f"the proxy failed: {e}"), op))
        except Exception as e:  # a bug: the caller must not wait for an answer that never comes
            traceback.print_exc()
            failure = HostError(f"the proxy failed: {type(e).__name__}", "see proxy.log of the sandbox")
            self.send(wire.pack_error(failure, op))
        finally:
            wire.close_all(fds)

    # --- out ------------------------------------------------------------------------

    def send(self, *frame: bytes | memoryview) -> None:
        """Send a frame, given in pieces."""
        if self.closed.is_set():
            return
        waiting = bool(self._out)
        self._out.extend(frame)
        if waiting:
            return
        self._writable()
        if self._out:
            self._loop.add_writer(self.sock, self._writable)
            self._drained.clear()

    def _writable(self) -> None:
        out = self._out
        try:
            sent = self.sock.sendmsg(list(islice(out, PIECES)))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        while out and sent >= len(out[0]):
            sent -= len(out.popleft())
        if sent:
            out[0] = memoryview(out[0])[sent:]
        if not out:
            self._loop.remove_writer(self.sock)
            self._drained.set()

    async def drain(self) -> None:
        """Wait until what was sent is with the kernel, or the peer is gone."""
        await self._drained.wait()

    def close(self) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        self._out.clear()
        self._drained.set()
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        self.sock.close()
        wire.close_all(self._fds)
        self._fds = []


class Server:
    """Accepts connections on a listening socket."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self.listener = listener
        self.connections: set[Connection] = set()
        self._handler = handler
        self._full = False  #: nobody is accepted until somebody leaves
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as e:  # no descriptor is left: whoever waits has one as soon as somebody goes
            log(f"{len(self.connections)} verbs and shims are connected, and no more can be: {e.strerror}")
            asyncio.get_running_loop().remove_reader(self.listener)
            self._full = True
            return
        connection = Connection(sock, self._handler)
        self.connections.add(connection)
        watcher = asyncio.ensure_future(connection.closed.wait())
        watcher.add_done_callback(lambda _t: self._left(connection))

    def _left(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self._full:
            self._full = False
            asyncio.get_running_loop().add_reader(self.listener, self._accept)

    def close(self, path: str) -> None:
        """Stop accepting; connections go on."""
        self._full = False
        asyncio.get_running_loop().remove_reader(self.listener)
        self.listener.close()
        if os.path.exists(path):
            os.unlink(path)
