"""The streams of a process, counted in bytes from its start.

Output is kept until the host has acknowledged it; when 1 MiB is unacknowledged
the pipe is not read any more, so that the writer is held back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kata_agent.errors import AgentError
from kata_agent.loop import EPOLLIN, EPOLLOUT, Loop
from kata_agent.protocol import codes

LIMIT = 1 << 20  #: bytes of a stream that are kept
_CHUNK = 1 << 18  # bytes

#: Called with (offset, data, end of stream) when a read can be answered; False = nobody waits any more.
Sink = Callable[[int, bytes, bool], bool]


class OutStream:
    """stdout, stderr, or what a terminal shows."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fd = -1
        self._data = bytearray()
        self._base = 0  # offset of _data[0]
        self._cursor = 0  # where the next read without an offset starts
        self._waiters: list[tuple[int, int, Sink]] = []
        self._discarding = False
        self.eof = False

    @property
    def end(self) -> int:
        """Offset after the last byte that came."""
        return self._base + len(self._data)

    def open(self, fd: int) -> None:
        """Take over the reading end ``fd``."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop.add(fd, EPOLLIN, self._readable)

    def close(self) -> None:
        """Stop reading; what was read stays readable."""
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
        self.eof = True
        self._wake()

    def pull(self) -> None:
        """Take what is in the pipe now, as far as there is room."""
        while self._fd >= 0 and len(self._data) < LIMIT and self._take():
            pass

    def discard(self, terminal: bool) -> None:
        """Nobody reads any more: close the pipe, so that the writer gets its SIGPIPE.

        There is no such signal on a terminal: what comes there is read and forgotten.
        """
        self._discarding = True
        self._base = self.end
        self._data.clear()
        if terminal:
            self._resume()
            self.eof = True
            self._wake()
        else:
            self.close()

    def read(self, offset: int, max_len: int, sink: Sink, wait: bool = True) -> None:
        """Give at most ``max_len`` bytes from ``offset`` to ``sink``, as soon as there are some.

        :param wait: without it, what there is now is given, be it nothing.
        :raise AgentError: OUT_OF_RANGE, those bytes were acknowledged, or are beyond the next one.
        """
        if self._discarding:
            sink(offset, b"", True)
            return
        if offset < self._base:
            raise AgentError(codes.OUT_OF_RANGE, f"bytes before {self._base} were acknowledged, {offset} is asked for")
        if offset > self.end:
            raise AgentError(codes.OUT_OF_RANGE, f"the stream has {self.end} bytes, {offset} is asked for")
        if not wait and offset == self.end and not self.eof:
            sink(offset, b"", False)
            return
        self._waiters.append((offset, max_len, sink))
        self._wake()

    def read_next(self, max_len: int, sink: Sink) -> None:
        """Like :meth:`read`, where the last such read ended; acknowledges what that one got."""
        self.acknowledge(self._cursor)
        self._cursor = max(self._cursor, self._base)

        def advance(offset: int, data: bytes, eof: bool) -> bool:
            taken = sink(offset, data, eof)
            if taken:
                self._cursor = offset + len(data)
            return taken

        self.read(self._cursor, max_len, advance)

    def acknowledge(self, offset: int) -> None:
        """Forget bytes before ``offset``."""
        count = min(offset, self.end) - self._base
        if count > 0:
            del self._data[:count]
            self._base += count
            self._resume()

    def _resume(self) -> None:
        if self._fd >= 0 and len(self._data) < LIMIT and not self._loop.watches(self._fd):
            self._loop.add(self._fd, EPOLLIN, self._readable)

    def _readable(self, _events: int) -> None:
        if len(self._data) >= LIMIT:
            # Off the loop altogether: a hang-up would be reported again and again.
            self._loop.remove(self._fd)
        else:
            self._take()

    def _take(self) -> bool:
        """Read the pipe once; False when there was nothing."""
        try:
            data = os.read(self._fd, min(_CHUNK, LIMIT - len(self._data)))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the last holder of the terminal is gone
                raise
            data = b""
        if not data:
            self.close()
            return False
        if not self._discarding:
            self._data += data
            self._wake()
        return True

    def _wake(self) -> None:
        """Answer whoever can be answered."""
        if not self._waiters:
            return
        waiting, self._waiters = self._waiters, []
        for offset, max_len, sink in waiting:
            # Never negative: only bytes that are there can be acknowledged, and those have been handed out.
            start = offset - self._base
            if start >= len(self._data) and not self.eof:
                self._waiters.append((offset, max_len, sink))
                continue
            data = bytes(memoryview(self._data)[start : start + max_len])
            sink(offset, data, self.eof and start + len(data) >= len(self._data))


#: Called with (bytes received so far, the reader is gone).
Taken = Callable[[int, bool], None]


class InStream:
    """stdin of a process."""

    def __init__(self, loop: Loop, terminal: bool) -> None:
        self._loop = loop
        self._fd = -1
        self._terminal = terminal
        self._queue = bytearray()
        self._waiters: list[tuple[int, Taken]] = []
        self._ending = False
        self.received = 0  #: bytes taken from the host
        self.closed = False  #: no byte can be written any more
        self.broken = False  #: because nobody reads

    def open(self, fd: int) -> None:
        """Take over the writing end ``fd``."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._flush()

    def write(self, offset: int, data: bytes, eof: bool, taken: Taken) -> None:
        """Queue ``data``, which starts at ``offset``; ``taken`` is called when it is in the pipe.

        :raise AgentError: OUT_OF_RANGE, there would be a gap; RESOURCE_EXHAUSTED, too much is queued.
        """
        if offset > self.received:
            raise AgentError(codes.OUT_OF_RANGE, f"{self.received} bytes were received, these start at {offset}")
        fresh = data[self.received - offset :]
        if len(self._queue) + len(fresh) > 4 * LIMIT:
            raise AgentError(codes.RESOURCE_EXHAUSTED, f"{len(self._queue)} bytes of stdin are still queued")
        if fresh and self._ending:
            raise AgentError(codes.FAILED_PRECONDITION, "stdin was closed")
        self.received += len(fresh)
        self._ending = self._ending or eof
        if not self.closed:
            self._queue += fresh
        self._waiters.append((self.received, taken))
        self._flush()

    def end(self) -> None:
        """Close stdin after what is queued."""
        self._ending = True
        self._flush()

    def close(self) -> None:
        """Close at once and drop what is queued."""
        self.closed = True
        self._queue.clear()
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._wake()

    def _writable(self, _events: int) -> None:
        self._flush()

    def _flush(self) -> None:
        while self._queue and self._fd >= 0:
            try:
                written = os.write(self._fd, memoryview(self._queue)[:LIMIT])
            except BlockingIOError:
                if not self._loop.watches(self._fd):
                    self._loop.add(self._fd, EPOLLOUT, self._writable)
                self._wake()
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                self.broken = True
                self.close()
                return
            del self._queue[:written]
        if self._fd >= 0:
            self._loop.remove(self._fd)
            # A terminal has no end of file of its own: whoever is at it types ^D.
            if self._ending and not self._terminal:
                self.close()
                return
        self._wake()

    def _wake(self) -> None:
        if not self._waiters:
            return
        done = self.received - len(self._queue)
        waiting, self._waiters = self._waiters, []
        for target, taken in waiting:
            if self.closed or target <= done:
                taken(self.received, self.broken)
            else:
                self._waiters.append((target, taken))
