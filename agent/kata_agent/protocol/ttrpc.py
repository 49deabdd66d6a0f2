"""ttRPC frames and the reset handshake, without any I/O.

A frame is a 10-byte header (payload length u32, stream id u32, type u8,
flags u8, big-endian) and at most 4 MiB of payload.

A virtio-serial port has no notion of a connection: when the host's end is
restarted, the guest may be in the middle of a frame, and may not see an end of
file.  So a host end that connects sends TOKEN, a 32-byte secret that the guest
knows from its kernel command line, and a RESET frame with a nonce.  The guest
looks for the token in the raw bytes, forgets what came before, and answers with
the same RESET frame; the host discards everything before that answer.

A kernel command line that another runtime wrote has no token.  Then the agent
makes one and tells it: until the first RESET it answers PROBE with a HELLO
frame that holds the token.  PROBE is a PING of yamux, which an agent of
Kata 1.x answers too, so that a host can ask before it knows which of them it has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

HEADER = struct.Struct(">IIBB")
MAX_PAYLOAD = 4 << 20  #: bytes

REQUEST = 1
RESPONSE = 2
DATA = 3
RESET = 0x7F  #: not of ttRPC: see above

HELLO = 0x7E  #: the same
PROBE = b"\0\2\0\1" + bytes(4) + b"kata"  #: version 0, PING, SYN, session, a number

TOKEN_SIZE = 32  #: bytes
HELLO_HEADER = HEADER.pack(TOKEN_SIZE, 0, HELLO, 0)
NONCE_SIZE = 16  #: bytes
_RESET_HEADER = HEADER.pack(NONCE_SIZE, 0, RESET, 0)
_RESET_SIZE = len(_RESET_HEADER) + NONCE_SIZE
#: A chunk's end is held back when it may be the start of a token this long.
#: Shorter ones pass: the last byte of an ordinary frame may look like one.
_HOLD = 8
PAGE = 4096  #: bytes of one receive buffer of the guest's virtio-serial driver
_PAGES = 64  # of one read
_ROOM = 64 << 10  # bytes that can be received in any case
_CAPACITY = 128 << 10  # bytes, until there is a larger frame
_KEPT = 1 << 20  # bytes; a larger buffer is let go after its frame


class FrameError(Exception):
    """The bytes are not a ttRPC frame; the connection cannot go on."""


class Frame:
    """One frame.  A payload that is a view ends when its decoder is given the next bytes."""

    __slots__ = ("flags", "payload", "stream_id", "type")

    def __init__(self, stream_id: int, type: int, payload: bytes | memoryview, flags: int = 0) -> None:
        self.stream_id = stream_id
        self.type = type
        self.payload = payload
        self.flags = flags

    def __repr__(self) -> str:
        return f"Frame(stream_id={self.stream_id}, type={self.type}, {len(self.payload)} bytes, flags={self.flags})"


def encode(stream_id: int, type: int, payload: bytes, flags: int = 0) -> bytes:
    """The bytes of a frame.

    :raise FrameError: the payload is larger than 4 MiB.
    """
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"a payload of {len(payload)} bytes is larger than {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), stream_id, type, flags) + payload


def reset_frame(nonce: bytes) -> bytes:
    """The RESET frame; the guest's answer to the host's is equal to it.

    :raise FrameError: the nonce is not 16 bytes long.
    """
    if len(nonce) != NONCE_SIZE:
        raise FrameError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    return _RESET_HEADER + nonce


class Decoder:
    """Cuts a stream of bytes into frames where they were received, without a copy.

    :meth:`space` or :meth:`pages` say where the next bytes go, :meth:`received`
    which frames they complete.  It holds no more than one frame and 1 MiB.
    """

    __slots__ = ("_bytes", "_done", "_end", "_pages", "_phase", "_view")

    def __init__(self) -> None:
        self._pages: list[memoryview] = []
        self._phase = -1
        self._allocate(_CAPACITY)
        self._done = self._end = PAGE  # bytes before _done were cut into frames

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return self._end - self._done

    def space(self) -> memoryview:
        """Where the next bytes go."""
        self._make_room()
        return self._view[self._end :]

    def pages(self) -> list[memoryview]:
        """The same in pieces of a page, at most 256 KiB: for readv(2) on a virtio-serial port.

        One read takes one of the driver's buffers, which are pages, and a
        vector is read one piece after the other for as long as these are filled.
        """
        self._make_room()
        number, phase = divmod(self._end, PAGE)
        if phase != self._phase:
            starts = range(phase, len(self._view) - PAGE + 1, PAGE)
            self._pages = [self._view[start : start + PAGE] for start in starts]
            self._phase = phase
        return self._pages[number : number + _PAGES]

    def received(self, count: int) -> list[Frame]:
        """The frames that the next ``count`` bytes complete; their payloads are views.

        :raise FrameError: a header announces more than 4 MiB; the frames
            before it are lost, and so is the position in the stream.
        """
        self._end += count
        return self._cut(self._end)

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Like :meth:`received`, with bytes that are elsewhere; the payloads are bytes."""
        frames = []
        while data:
            space = self.space()
            part = data[: len(space)]
            space[: len(part)] = part
            data = data[len(part) :]
            for frame in self.received(len(part)):
                frame.payload = bytes(frame.payload)
                frames.append(frame)
        return frames

    def _cut(self, stop: int) -> list[Frame]:
        """The frames that are whole in the bytes before ``stop``."""
        frames = []
        start = self._done
        while stop - start >= HEADER.size:
            length, stream_id, type, flags = HEADER.unpack_from(self._bytes, start)
            if length > MAX_PAYLOAD:
                self._done = self._end
                raise FrameError(f"a frame announces {length} bytes, more than {MAX_PAYLOAD}")
            end = start + HEADER.size + length
            if end > stop:
                break
            frames.append(Frame(stream_id, type, self._view[start + HEADER.size : end], flags))
            start = self._done = end
        return frames

    def _kept(self) -> int:
        """Where the bytes begin that are still needed."""
        return self._done

    def _make_room(self) -> None:
        """See to it that the frame that has begun, and some more, fits behind what is there."""
        capacity, done, end = len(self._view), self._done, self._end
        missing = 1
        if end - done >= HEADER.size:
            length = HEADER.unpack_from(self._bytes, done)[0]
            if length <= MAX_PAYLOAD:  # else it is no header: a token may have begun
                missing = length + HEADER.size - (end - done)
        if done < end and end + max(missing, _ROOM) <= capacity:
            return
        kept = self._kept()
        size = end - kept
        target = size + -size % PAGE or PAGE  # pages of the buffer are the driver's pages
        old = self._view
        wanted = target + max(missing, _ROOM)
        if wanted > capacity or wanted <= _KEPT < capacity:
            self._allocate(max(wanted, _CAPACITY))
        self._view[target - size : target] = old[kept:end]
        self._moved(target - end)

    def _moved(self, by: int) -> None:
        self._done += by
        self._end += by

    def _allocate(self, capacity: int) -> None:
        self._bytes = bytearray(capacity)
        self._view = memoryview(self._bytes)
        self._phase = -1


class GuestDecoder(Decoder):
    """The guest's end: frames, and RESETs found anywhere in the bytes.

    Before the first RESET, and after bytes that are no frames, everything but
    a RESET is discarded.
    """

    __slots__ = ("_seen", "_synced", "_tells", "_token")

    def __init__(self, token: bytes, tells: bool = False) -> None:
        if len(token) != TOKEN_SIZE:
            raise ValueError(f"the token has {TOKEN_SIZE} bytes, not {len(token)}")
        super().__init__()
        self._token = token
        self._tells = tells  # a PROBE is answered
        self._seen = self._end  # no token begins before it; it may begin in bytes that were cut into frames
        self._synced = False

    def received(self, count: int) -> list[Frame]:
        """The frames; whoever sees one of type RESET answers it with :func:`reset_frame`
        of its payload and drops all unanswered requests, and one of type HELLO with the same."""
        self._end += count
        frames: list[Frame] = []
        if self._tells and not self._synced:
            token = self._bytes.find(self._token, self._seen, self._end)
            found = self._bytes.find(PROBE, self._seen, token if token >= 0 else self._end)
            if found >= 0:
                frames.append(Frame(0, HELLO, self._token))
                self._seen = found + len(PROBE)
        while (found := self._bytes.find(self._token, self._seen, self._end)) >= 0:
            header = found + TOKEN_SIZE
            after = header + _RESET_SIZE
            if not _RESET_HEADER.startswith(self._view[header : min(header + HEADER.size, self._end)].tobytes()):
                self._seen = header  # the token, but no RESET: somebody's data
                continue
            if self._end < after:
                self._seen = found
                return frames + self._cut(found)
            # What came before it is from the end that is gone.
            frames = [Frame(0, RESET, self._view[header + HEADER.size : after].tobytes())]
            self._synced = True
            self._seen = self._done = after
        frames += self._cut(self._end - self._held_back())
        self._seen = max(self._seen, self._end - TOKEN_SIZE + 1)
        return frames

    def _held_back(self) -> int:
        """Bytes at the end that look like the start of a token and are not cut into frames yet."""
        token, end = self._token, self._end
        first = token[: _HOLD if self._synced else 1]
        start = max(self._done, end - TOKEN_SIZE + 1)
        while (start := self._bytes.find(first, start, end)) >= 0:
            if token.startswith(self._view[start:end].tobytes()):
                return end - start
            start += 1
        return 0

    def _cut(self, stop: int) -> list[Frame]:
        if self._synced:
            try:
                return super()._cut(stop)
            except FrameError:
                self._synced = False
        self._done = max(self._done, stop)
        return []

    def _kept(self) -> int:
        return min(self._done, self._seen)

    def _moved(self, by: int) -> None:
        super()._moved(by)
        self._seen += by


class HostHandshake:
    """The host's end of a connection's start: send :attr:`greeting`, then feed
    what arrives until :meth:`feed` says that the guest has answered."""

    __slots__ = ("_answer", "_tail", "done", "greeting")

    def __init__(self, token: bytes, nonce: bytes) -> None:
        self._answer = reset_frame(nonce)
        self._tail = b""
        self.greeting = token + self._answer
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """The bytes after the guest's answer; b"" until :attr:`done`."""
        if self.done:
            return data
        data = self._tail + data
        found = data.find(self._answer)
        if found < 0:
            self._tail = data[-(_RESET_SIZE - 1) :]
            return b""
        self.done = True
        self._tail = b""
        return data[found + _RESET_SIZE :]


class Method:
    """One rpc: full name of its service, its name, and the classes of its messages, which are made when asked for."""

    __slots__ = ("_rpc", "name", "request", "response", "service")

    request: type[Message]
    response: type[Message]

    def __init__(self, rpc: MethodDescriptor) -> None:
        self._rpc = rpc
        self.service: str = rpc.containing_service.full_name
        self.name: str = rpc.name

    def __getattr__(self, attribute: str) -> type[Message]:
        """A class that nobody has asked for yet."""
        if attribute not in ("request", "response"):
            raise AttributeError(attribute)
        made = GetMessageClass(self._rpc.input_type if attribute == "request" else self._rpc.output_type)
        setattr(self, attribute, made)
        return made


def method_table(files: Iterable[FileDescriptor]) -> dict[tuple[str, str], Method]:
    """Every rpc of the services in ``files``, by (service, method) name."""
    methods = (Method(rpc) for file in files for service in file.services_by_name.values() for rpc in service.methods)
    return {(method.service, method.name): method for method in methods}
