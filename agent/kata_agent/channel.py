"""The agent's end of the channel: a virtio-serial port, or a unix socket.

Both carry the same bytes: the RESET handshake of
:mod:`kata_agent.protocol.ttrpc`, then frames.  The host may come and go; what
had not been written when it went is dropped.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable

from kata_agent import log
from kata_agent.loop import EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, Loop
from kata_agent.protocol import ttrpc

_CHUNK = 1 << 18  # bytes read at once
_READS = 64  # chunks before the other descriptors have their turn


class Channel:
    """Frames in, frames out, over one non-blocking descriptor."""

    def __init__(self, loop: Loop, token: bytes) -> None:
        self._loop = loop
        self._token = token
        self._decoder = ttrpc.GuestDecoder(token)
        #: called with each frame of the present host end
        self.on_frame: Callable[[ttrpc.Frame], None] = _ignore
        #: called when a new host end has greeted: requests of the old one must not be answered any more
        self.on_reset: Callable[[], None] = _nothing
        self._out: deque[memoryview] = deque()
        self._fd = -1

    def open_port(self, path: str) -> None:
        """Serve the virtio-serial port ``path``.

        Edge-triggered: the port reports a hang-up for as long as no host end
        is there, and an edge comes when one appears.
        """
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._attach(fd)
        self._loop.soon(self._readable)

    def listen(self, path: str) -> None:
        """Serve one host end at a time on a unix socket; a new one replaces the old."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(4)

        def accept(_events: int) -> None:
            connection, _address = listener.accept()
            self._detach()
            connection.setblocking(False)
            self._decoder = ttrpc.GuestDecoder(self._token)
            self._out.clear()
            self._attach(connection.detach())

        self._loop.add(listener.fileno(), EPOLLIN, accept)

    def send(self, data: bytes) -> None:
        """Queue a frame, and write what the channel takes."""
        if self._fd < 0:
            return
        self._out.append(memoryview(data))
        self._writable()

    # --- plumbing ------------------------------------------------------------------

    def _attach(self, fd: int) -> None:
        self._fd = fd
        self._loop.add(fd, EPOLLIN | EPOLLOUT | EPOLLHUP | EPOLLET, self._ready)

    def _detach(self) -> None:
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ready(self, events: int) -> None:
        if events & (EPOLLIN | EPOLLHUP):
            self._readable()
        if events & EPOLLOUT:
            self._writable()

    def _readable(self) -> None:
        fd = self._fd
        if fd < 0:
            return
        # A port gives 4 KiB at a time: what follows costs more per piece than per byte.
        pieces: list[bytes] = []
        more = True
        while more and len(pieces) < _READS:
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                data = b""
            except OSError as error:
                log.warning(f"channel: {error.strerror}")
                data = b""
            # Nothing: for now, or because no host end is there.
            more = bool(data)
            pieces.append(data)
        self._take(b"".join(pieces))
        if more and self._fd == fd:
            self._loop.soon(self._readable)

    def _take(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.type == ttrpc.RESET:
                self._out.clear()
                self.on_reset()
                self.send(ttrpc.reset_frame(frame.payload))
            else:
                self.on_frame(frame)

    def _writable(self) -> None:
        out = self._out
        while out and self._fd >= 0:
            try:
                written = os.write(self._fd, out[0])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    log.warning(f"channel: {error.strerror}")
                out.clear()
                return
            if written == len(out[0]):
                out.popleft()
            else:
                out[0] = out[0][written:]


def _ignore(_frame: ttrpc.Frame) -> None:
    """Before there is a server."""


def _nothing() -> None:
    """Before there is a server."""
