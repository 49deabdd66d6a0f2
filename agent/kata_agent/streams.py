"""The streams of a process, counted in bytes from its start.

Output is kept until the host has acknowledged it; when 4 MiB are unacknowledged
the pipe is not read any more, so that the writer is held back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from kata_agent.errors import AgentError
from kata_agent.linux.light import deque
from kata_agent.loop import EPOLLIN, EPOLLOUT, Loop
from kata_agent.protocol import codes

LIMIT = 4 << 20  #: bytes of a stream that are kept
MOST = 1 << 20  #: bytes given to one read, and taken by one write
_CHUNK = 1 << 20  # bytes
_SMALL = 1 << 12  # bytes; pieces of a stream are put together up to this size

#: Called with (offset, pieces of data, end of stream) when a read can be answered; False = nobody waits any more.
Sink = Callable[[int, Sequence[bytes | memoryview], bool], bool]


class OutStream:
    """stdout, stderr, or what a terminal shows."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fd = -1
        self._chunks: deque[bytes] = deque()  # as they were read: they go to the channel without a copy
        self._base = 0  # offset of the first chunk
        self._size = 0
        self._acknowledged = 0
        self._cursor = 0  # where the next read without an offset starts
        self._waiters: list[tuple[int, int, Sink]] = []
        self._discarding = False
        self.eof = False

    @property
    def end(self) -> int:
        """Offset after the last byte that came."""
        return self._base + self._size

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
        """Take what is in the pipe now, also beyond the limit: whoever asks wants to know whether that is all."""
        most = self._size + LIMIT
        while self._fd >= 0 and self._size < most and self._take(most):
            pass

    def discard(self, terminal: bool) -> None:
        """Nobody reads any more: close the pipe, so that the writer gets its SIGPIPE.

        There is no such signal on a terminal: what comes there is read and forgotten.
        """
        self._discarding = True
        self._base = self._acknowledged = self.end
        self._chunks.clear()
        self._size = 0
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
            sink(offset, (), True)
            return
        if offset < self._acknowledged:
            raise AgentError(codes.OUT_OF_RANGE,
                             f"bytes before {self._acknowledged} were acknowledged, {offset} is asked for")
        if offset > self.end:
            raise AgentError(codes.OUT_OF_RANGE, f"the stream has {self.end} bytes, {offset} is asked for")
        if not wait and offset == self.end and not self.eof:
            sink(offset, (), False)
            return
        self._waiters.append((offset, max_len, sink))
        self._wake()

    def read_next(self, max_len: int, sink: Sink) -> None:
        """Like :meth:`read`, where the last such read ended; acknowledges what that one got."""
        self.acknowledge(self._cursor)
        self._cursor = max(self._cursor, self._acknowledged)

        def advance(offset: int, data: Sequence[bytes | memoryview], eof: bool) -> bool:
            taken = sink(offset, data, eof)
            if taken:
                self._cursor = offset + sum(map(len, data))
            return taken

        self.read(self._cursor, max_len, advance)

    def acknowledge(self, offset: int) -> None:
        """Forget bytes before ``offset``."""
        self._acknowledged = max(self._acknowledged, min(offset, self.end))
        while self._chunks and self._base + len(self._chunks[0]) <= self._acknowledged:
            size = len(self._chunks.popleft())
            self._base += size
            self._size -= size
        self._resume()

    def _resume(self) -> None:
        if self._fd >= 0 and self._size < LIMIT and not self._loop.watches(self._fd):
            self._loop.add(self._fd, EPOLLIN, self._readable)

    def _readable(self, _events: int) -> None:
        if self._size >= LIMIT:
            # Off the loop altogether: a hang-up would be reported again and again.
            self._loop.remove(self._fd)
        else:
            self._take()

    def _take(self, most: int = LIMIT) -> bool:
        """Read the pipe once, to hold ``most`` bytes at most; False when there was nothing."""
        try:
            data = os.read(self._fd, min(_CHUNK, most - self._size))
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
            self._size += len(data)
            if self._chunks and len(self._chunks[-1]) + len(data) <= _SMALL:
                self._chunks[-1] += data  # an object each would take more memory than the bytes
            else:
                self._chunks.append(data)
            self._wake()
        return True

    def _wake(self) -> None:
        """Answer whoever can be answered."""
        if not self._waiters:
            return
        waiting, self._waiters = self._waiters, []
        for offset, max_len, sink in waiting:
            if offset >= self.end and not self.eof:
                self._waiters.append((offset, max_len, sink))
                continue
            data, size = self._pieces(offset, max_len)
            sink(offset, data, self.eof and offset + size >= self.end)

    def _pieces(self, offset: int, max_len: int) -> tuple[list[bytes | memoryview], int]:
        """What there is from ``offset``, at most ``max_len`` bytes of it; and how much that is."""
        pieces: list[bytes | memoryview] = []
        size = 0
        skip = offset - self._base
        for chunk in self._chunks:
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            if size == max_len:
                break
            piece = chunk if not skip and len(chunk) <= max_len - size else memoryview(chunk)[skip:][: max_len - size]
            pieces.append(piece)
            size += len(piece)
            skip = 0
        return pieces, size


#: Called with (offset after the bytes that were taken, the reader is gone).
Taken = Callable[[int, bool], None]


class InStream:
    """stdin of a process."""

    def __init__(self, loop: Loop, terminal: bool) -> None:
        self._loop = loop
        self._fd = -1
        self._terminal = terminal
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0  # bytes
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

    def write(self, offset: int, data: bytes | memoryview, eof: bool, taken: Taken) -> None:
        """Write ``data``, which starts at ``offset``; ``taken`` is called when it is in the pipe.

        What the pipe does not take at once is copied: ``data`` is the caller's again when this returns.

        :raise AgentError: OUT_OF_RANGE, there would be a gap; RESOURCE_EXHAUSTED, too much is queued.
        """
        if offset > self.received:
            raise AgentError(codes.OUT_OF_RANGE, f"{self.received} bytes were received, these start at {offset}")
        fresh = data[self.received - offset :]
        if self._queued + len(fresh) > 2 * LIMIT:
            raise AgentError(codes.RESOURCE_EXHAUSTED, f"{self._queued} bytes of stdin are still queued")
        if fresh and self._ending:
            raise AgentError(codes.FAILED_PRECONDITION, "stdin was closed")
        self.received += len(fresh)
        self._ending = self._ending or eof
        self._waiters.append((self.received, taken))
        if fresh and not self.closed:
            self._queue.append(fresh)
            self._queued += len(fresh)
        self._flush()
        if self._queue and self._queue[-1] is fresh:
            self._queue[-1] = bytes(fresh)

    def end(self) -> None:
        """Close stdin after what is queued."""
        self._ending = True
        self._flush()

    def close(self) -> None:
        """Close at once and drop what is queued."""
        self.closed = True
        self._queue.clear()
        self._queued = 0
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._wake()

    def _writable(self, _events: int) -> None:
        self._flush()

    def _flush(self) -> None:
        queue = self._queue
        while queue and self._fd >= 0:
            try:
                written = os.write(self._fd, queue[0])
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
            self._queued -= written
            if written == len(queue[0]):
                queue.popleft()
            else:
                queue[0] = bytes(queue[0][written:])
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
        done = self.received - self._queued
        waiting, self._waiters = self._waiters, []
        for target, taken in waiting:
            if self.closed or target <= done:
                taken(target, self.broken)
            else:
                self._waiters.append((target, taken))
