"""The agent's end of the channel: a virtio-serial port, or a unix socket.

Both carry the same bytes: the RESET handshake of
:mod:`kata_agent.protocol.ttrpc`, then frames.  The host may come and go; what
had not been written when it went is dropped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from itertools import islice

from kata_agent import log
from kata_agent.linux.light import deque, socket
from kata_agent.loop import EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, Loop
from kata_agent.protocol import ttrpc

_READS = 64  # before the other descriptors have their turn
_LARGEST_WRITE = 32 << 10  # bytes that the driver of a port takes at once; a vector is written piece by piece
_PIECES = 64  # of one write


class Channel:
    """Frames in, frames out, over one non-blocking descriptor."""

    def __init__(self, loop: Loop, token: bytes, tells: bool = False) -> None:
        self._loop = loop
        self._token = token
        self._tells = tells  # the token, to a host that asks for it
        self._decoder = ttrpc.GuestDecoder(token, tells)
        #: called with each frame of the present host end
        self.on_frame: Callable[[ttrpc.Frame], None] = _ignore
        #: called when a new host end has greeted: requests of the old one must not be answered any more
        self.on_reset: Callable[[], None] = _nothing
        self._out: deque[bytes | memoryview] = deque()
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
            self._decoder = ttrpc.GuestDecoder(self._token, self._tells)
            self._out.clear()
            self._attach(connection.detach())

        self._loop.add(listener.fileno(), EPOLLIN, accept)

    def send(self, frame: Sequence[bytes | memoryview]) -> None:
        """Queue a frame, given in pieces, and write what the channel takes."""
        if self._fd < 0:
            return
        for piece in frame:
            if len(piece) <= _LARGEST_WRITE:
                self._out.append(piece)
            else:
                view = memoryview(piece)
                self._out.extend(view[at : at + _LARGEST_WRITE] for at in range(0, len(view), _LARGEST_WRITE))
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
        for _ in range(_READS):
            if self._fd != fd or fd < 0:
                return
            try:
                count = os.readv(fd, self._decoder.pages())
            except BlockingIOError:
                return
            except OSError as error:
                log.warning(f"channel: {error.strerror}")
                return
            if count == 0:
                return  # no host end is there
            self._take(self._decoder.received(count))
        self._loop.soon(self._readable)

    def _take(self, frames: list[ttrpc.Frame]) -> None:
        for frame in frames:
            if frame.type == ttrpc.RESET:
                self._out.clear()
                self.on_reset()
                self.send((ttrpc.reset_frame(bytes(frame.payload)),))
            elif frame.type == ttrpc.HELLO and self._tells:
                self.send((ttrpc.encode(0, ttrpc.HELLO, self._token),))
            else:
                self.on_frame(frame)

    def _writable(self) -> None:
        out = self._out
        while out and self._fd >= 0:
            try:
                written = os.writev(self._fd, list(islice(out, _PIECES)))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    log.warning(f"channel: {error.strerror}")
                out.clear()
                return
            while out and written >= len(out[0]):
                written -= len(out.popleft())
            if written:
                out[0] = memoryview(out[0])[written:]


def _ignore(_frame: ttrpc.Frame) -> None:
    """Before there is a server."""


def _nothing() -> None:
    """Before there is a server."""
