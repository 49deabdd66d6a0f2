"""yamux: many streams over one connection, as HashiCorp's specification has it.

A frame is a 12-byte header (version u8 = 0, type u8, flags u16, stream id u32,
length u32, big-endian), and for DATA ``length`` bytes.  A stream may be sent
256 KiB before its receiver has said that it takes more.  The client's streams
have odd numbers.  Session numbers (PING, GO AWAY) travel in ``length``.

The other end may be a guest, and hostile: what it can make us hold is one window
per stream and :data:`MAX_REPLIES` replies.  What it may not send ends the session.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable

HEADER = struct.Struct(">BBHII")

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)  #: types
SYN, ACK, FIN, RST = 1, 2, 4, 8  #: flags
NORMAL, PROTOCOL_ERROR, INTERNAL_ERROR = range(3)  #: reasons to go away

WINDOW = 256 << 10  #: bytes of a new stream, both ways
MAX_STREAMS = 256
MAX_LINGERING = 64  #: streams that we have closed and the peer has not
MAX_REPLIES = 1024  #: frames for a peer that reads nothing
PIECE = 64 << 10  #: bytes of one frame of ours, so that streams take turns
#: How long a frame may wait for a peer that reads nothing, seconds.  Kata 1.x's proxy gives up after 1 s; an emulated
#: guest is slow.
WRITE_TIMEOUT = 30.0
HEARTBEAT = 1.0  #: seconds between pings of Kata 1.x's proxy


class YamuxError(ConnectionError):
    """The session, or one stream of it, cannot go on; the text says why."""


def pack(type: int, flags: int, stream_id: int, length: int) -> bytes:
    """A header."""
    return HEADER.pack(0, type, flags, stream_id, length)


class Stream:
    """One stream; both directions end by themselves."""

    __slots__ = ("_credit", "_done_reading", "_done_writing", "_error", "_moved", "_owed", "_parts", "_room",
                 "_session", "_window", "id")

    def __init__(self, session: Session, stream_id: int) -> None:
        self.id = stream_id
        self._session = session
        self._parts: deque[bytes] = deque()  # received, and not read
        self._window = WINDOW  # bytes that we may send
        self._credit = WINDOW  # bytes that the peer may send
        self._owed = 0  # bytes read that it has not been told of
        self._done_reading = False  # the peer sends no more
        self._done_writing = False
        self._error = ""
        self._moved = asyncio.Event()
        self._room = asyncio.Event()

    async def read(self) -> bytes:
        """The next bytes; b"" at the end.

        :raise YamuxError: the stream or its session broke.
        """
        while not self._parts:
            if self._error:
                raise YamuxError(self._error)
            if self._done_reading or self._done_writing:
                return b""
            self._moved.clear()
            await self._moved.wait()
        data = self._parts.popleft()
        self._owed += len(data)
        if self._owed >= WINDOW // 2 and not self._done_reading:
            self._session.reply(WINDOW_UPDATE, 0, self.id, self._owed)
            self._credit += self._owed
            self._owed = 0
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes, as far as the peer has room for them.

        :raise YamuxError: the stream or its session broke, or the peer reads nothing for :data:`WRITE_TIMEOUT`.
        """
        view = memoryview(data)
        while view:
            await self._session.drain()
            if self._error:
                raise YamuxError(self._error)
            if self._done_writing:
                raise YamuxError("the stream was closed")
            if not self._window:
                self._room.clear()
                await self._room.wait()
                continue
            part = view[: min(self._window, PIECE)]
            self._window -= len(part)
            self._session.send(DATA, 0, self.id, part)
            view = view[len(part):]

    def close(self) -> None:
        """No more is written, and what comes is discarded."""
        if self._done_writing or self._error:
            return
        self._done_writing = True
        self._parts.clear()
        self._moved.set()
        self._session.reply(WINDOW_UPDATE, FIN, self.id, 0)
        self._session.let_go(self)

    # --- for the session ---------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Both directions have ended."""
        return self._done_reading and self._done_writing

    def expect(self, length: int) -> None:
        """A frame of data begins."""
        if self._done_reading:
            raise YamuxError(f"stream {self.id} has data after its end")
        if length > self._credit:
            raise YamuxError(f"stream {self.id} has {length} bytes more where {self._credit} were allowed")
        self._credit -= length

    def received(self, data: bytes) -> None:
        if not self._done_writing:  # else nobody reads any more
            self._parts.append(data)
            self._moved.set()

    def ended(self) -> None:
        self._done_reading = True
        self._moved.set()

    def grow(self, more: int) -> None:
        if self._window + more > 0xFFFFFFFF:
            raise YamuxError(f"the window of stream {self.id} grows beyond 4 GiB")
        self._window += more
        if self._window:
            self._room.set()

    def fail(self, reason: str) -> None:
        self._error = self._error or reason
        self._moved.set()
        self._room.set()


class Session(asyncio.Protocol):
    """One end of a connection.

    :param client: we open the streams with odd numbers.
    :param accept: gets each stream that the peer opens; without it they are refused.
    """

    def __init__(self, client: bool, accept: Callable[[Stream], None] | None = None) -> None:
        self.closed = asyncio.Event()
        self.reason = ""  #: why it was closed
        self._client = client
        self._accept = accept
        self._next = 1 if client else 2
        self._streams: dict[int, Stream] = {}
        self._lingering: deque[Stream] = deque()
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._ping = 0
        self._going_away = False  # the peer takes no new streams
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._replies = 0  # frames sent while the peer reads nothing
        self._head = b""
        self._left = 0  # bytes of the present frame's payload
        self._target: Stream | None = None
        self._fin = False  # with the end of that payload

    # --- for its owner -------------------------------------------------------------------

    def open(self) -> Stream:
        """A new stream.

        :raise YamuxError: the session takes no more.
        """
        if self.closed.is_set():
            raise YamuxError(self.reason)
        if self._going_away:
            raise YamuxError("the peer takes no new streams")
        if len(self._streams) >= MAX_STREAMS:
            raise YamuxError(f"there are {MAX_STREAMS} streams already")
        if self._next > 0xFFFFFFFF:
            raise YamuxError("all stream numbers were used")
        stream = self._streams[self._next] = Stream(self, self._next)
        self._next += 2
        self.send(WINDOW_UPDATE, SYN, stream.id, 0)
        return stream

    async def ping(self) -> None:
        """Wait for the peer's answer to a ping, as long as the caller lets it.

        :raise YamuxError: the session broke.
        """
        if self.closed.is_set():
            raise YamuxError(self.reason)
        self._ping = (self._ping + 1) & 0xFFFFFFFF
        number = self._ping
        answer = self._pings[number] = asyncio.get_running_loop().create_future()
        self.reply(PING, SYN, 0, number)
        try:
            await answer
        finally:
            self._pings.pop(number, None)

    async def heartbeat(self) -> None:
        """Ping once a second, as Kata 1.x's proxy does, to the session's end; a peer that stands still is no error."""
        while not self.closed.is_set():
            await self.ping()
            await asyncio.sleep(HEARTBEAT)

    def close(self) -> None:
        """Say goodbye and end the connection; called again: nothing happens."""
        self._end("the session was closed", NORMAL)

    # --- for streams -----------------------------------------------------------------------

    def send(self, type: int, flags: int, stream_id: int, data: bytes | memoryview | int) -> None:
        if self._transport is None or self.closed.is_set():
            return
        if isinstance(data, int):
            self._transport.write(pack(type, flags, stream_id, data))
        else:
            self._transport.writelines((pack(type, flags, stream_id, len(data)), data))

    def reply(self, type: int, flags: int, stream_id: int, value: int) -> None:
        """Send a frame that the peer has caused: it may cause few while it reads nothing."""
        if not self._room.is_set():
            self._replies += 1
            if self._replies > MAX_REPLIES:
                self._end(f"the peer caused {MAX_REPLIES} replies and reads none", INTERNAL_ERROR)
                return
        self.send(type, flags, stream_id, value)

    async def drain(self) -> None:
        """Wait until the peer reads."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await self._room.wait()
        except TimeoutError:
            raise YamuxError(f"the peer reads nothing for {WRITE_TIMEOUT:g} s") from None

    def let_go(self, stream: Stream) -> None:
        """A stream was closed here: it stays until the peer closes it too."""
        if stream.over:
            self._streams.pop(stream.id, None)
            return
        self._lingering.append(stream)
        while len(self._lingering) > MAX_LINGERING:
            oldest = self._lingering.popleft()
            if self._streams.pop(oldest.id, None) is not None:
                self.reply(WINDOW_UPDATE, RST, oldest.id, 0)

    # --- the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and not self.closed.is_set():
                if self._left:
                    part = view[: self._left]
                    if self._target is not None:
                        self._target.received(bytes(part))
                    self._left -= len(part)
                    view = view[len(part):]
                    if not self._left:
                        self._payload_ended()
                    continue
                part = view[: HEADER.size - len(self._head)]
                self._head += part
                view = view[len(part):]
                if len(self._head) == HEADER.size:
                    version, type, flags, stream_id, length = HEADER.unpack(self._head)
                    self._head = b""
                    if version:
                        raise YamuxError(f"a frame of version {version}, not 0")
                    self._frame(type, flags, stream_id, length)
        except YamuxError as e:
            self._end(f"the peer broke the protocol: {e}", PROTOCOL_ERROR)

    def pause_writing(self) -> None:
        self._room.clear()
        self._replies = 0

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        # A peer that closes with something unread resets the connection: to us the same.
        closed = exc is None or isinstance(exc, ConnectionResetError | BrokenPipeError)
        self._end("the peer closed the connection" if closed else f"the connection broke: {exc}", None)

    def _end(self, reason: str, goodbye: int | None) -> None:
        if self.closed.is_set():
            return
        if self._transport is not None:
            if goodbye is not None:
                self.send(GO_AWAY, 0, 0, goodbye)
            # Not close() where something waits, which lasts until the peer has read it.
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()
        self.reason = reason
        self.closed.set()
        self._room.set()
        for stream in self._streams.values():
            stream.fail(reason)
        self._streams.clear()
        for answer in self._pings.values():
            if not answer.done():
                answer.set_exception(YamuxError(reason))
        self._pings.clear()

    # --- frames --------------------------------------------------------------------------------

    def _frame(self, type: int, flags: int, stream_id: int, length: int) -> None:
        if type == PING:
            if flags & SYN:
                self.reply(PING, ACK, 0, length)
            elif (answer := self._pings.get(length)) is not None and not answer.done():
                answer.set_result(None)
        elif type == GO_AWAY:
            self._going_away = True
            if length != NORMAL:
                self._end(f"the peer went away, reason {length}", None)
        elif type in (DATA, WINDOW_UPDATE):
            self._stream_frame(type, flags, stream_id, length)
        else:
            raise YamuxError(f"a frame of type {type}")

    def _stream_frame(self, type: int, flags: int, stream_id: int, length: int) -> None:
        if stream_id == 0:
            raise YamuxError("data for stream 0, which is the session")
        if flags & SYN:
            self._opened(stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None and flags & RST:
            stream.fail("the peer reset the stream")
            self._streams.pop(stream_id, None)
            stream = None
        if type == WINDOW_UPDATE:
            if stream is not None:
                stream.grow(length)
                if flags & FIN:
                    self._finished(stream)
            return
        # What comes for a stream that is gone is passed over: it was on its way.
        if stream is not None:
            stream.expect(length)
        elif length > WINDOW:
            raise YamuxError(f"{length} bytes at once, more than any window")
        self._left, self._target, self._fin = length, stream, bool(flags & FIN)
        if not length:
            self._payload_ended()

    def _payload_ended(self) -> None:
        stream, self._target = self._target, None
        if stream is not None and self._fin:
            self._finished(stream)

    def _finished(self, stream: Stream) -> None:
        stream.ended()
        if stream.over:
            self._streams.pop(stream.id, None)
            if stream in self._lingering:
                self._lingering.remove(stream)

    def _ours(self, stream_id: int) -> bool:
        return bool(stream_id & 1) == self._client

    def _opened(self, stream_id: int) -> None:
        """The peer opens a stream."""
        if self._ours(stream_id):
            raise YamuxError(f"it opens stream {stream_id}, whose number is ours to give")
        if stream_id in self._streams:
            raise YamuxError(f"it opens stream {stream_id} twice")
        if self._accept is None or len(self._streams) >= MAX_STREAMS:
            self.reply(WINDOW_UPDATE, RST, stream_id, 0)
            return
        stream = self._streams[stream_id] = Stream(self, stream_id)
        self.reply(WINDOW_UPDATE, ACK, stream_id, 0)
        self._accept(stream)


async def connect(path: str) -> Session:
    """A session, as its client, with whoever listens on the unix socket ``path``.

    :raise OSError: nobody does.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    session = Session(client=True)
    await asyncio.get_running_loop().create_connection(lambda: session, sock=sock)
    return session
