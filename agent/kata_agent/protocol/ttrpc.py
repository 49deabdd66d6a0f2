"""ttRPC frames and the reset handshake, without any I/O.

A frame is a 10-byte header (payload length u32, stream id u32, type u8,
flags u8, big-endian) and at most 4 MiB of payload.

A virtio-serial port has no notion of a connection: when the host's end is
restarted, the guest may be in the middle of a frame, and may not see an end of
file.  So a host end that connects sends TOKEN, a 32-byte secret that the guest
knows from its kernel command line, and a RESET frame with a nonce.  The guest
looks for the token in the raw bytes, forgets what came before, and answers with
the same RESET frame; the host discards everything before that answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

HEADER = struct.Struct(">IIBB")
MAX_PAYLOAD = 4 << 20  #: bytes

REQUEST = 1
RESPONSE = 2
DATA = 3
RESET = 0x7F  #: not of ttRPC: see above

TOKEN_SIZE = 32  #: bytes
NONCE_SIZE = 16  #: bytes
_RESET_HEADER = HEADER.pack(NONCE_SIZE, 0, RESET, 0)
_RESET_SIZE = len(_RESET_HEADER) + NONCE_SIZE
#: A chunk's end is held back when it may be the start of a token this long.
#: Shorter ones pass: the last byte of an ordinary frame may look like one.
_HOLD = 8


class FrameError(Exception):
    """The bytes are not a ttRPC frame; the connection cannot go on."""


class Frame:
    """One frame."""

    __slots__ = ("flags", "payload", "stream_id", "type")

    def __init__(self, stream_id: int, type: int, payload: bytes, flags: int = 0) -> None:
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
    """Cuts a stream of bytes into frames; never holds more than one frame's size."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def clear(self) -> None:
        """Forget an unfinished frame."""
        self._buffer.clear()

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """The frames that ``data`` completes.

        :raise FrameError: a header announces more than 4 MiB; the frames
            before it are lost, and so is the position in the stream.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        while len(buffer) >= HEADER.size:
            length, stream_id, type, flags = HEADER.unpack_from(buffer)
            if length > MAX_PAYLOAD:
                buffer.clear()
                raise FrameError(f"a frame announces {length} bytes, more than {MAX_PAYLOAD}")
            end = HEADER.size + length
            if len(buffer) < end:
                break
            frames.append(Frame(stream_id, type, bytes(memoryview(buffer)[HEADER.size : end]), flags))
            del buffer[:end]
        return frames


class GuestDecoder:
    """The guest's end: frames, and RESETs found anywhere in the bytes.

    Before the first RESET, and after bytes that are no frames, everything but
    a RESET is discarded.
    """

    __slots__ = ("_decoder", "_held", "_synced", "_tail", "_token")

    def __init__(self, token: bytes) -> None:
        if len(token) != TOKEN_SIZE:
            raise ValueError(f"the token has {TOKEN_SIZE} bytes, not {len(token)}")
        self._token = token
        self._decoder = Decoder()
        self._tail = b""  # the last bytes that were decoded: a token may have started in them
        self._held = b""  # bytes that look like a token's start, not decoded yet
        self._synced = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames in ``data``; whoever sees one of type RESET answers it with
        :func:`reset_frame` of its payload and drops all unanswered requests."""
        window = self._tail + self._held + data
        passed = len(self._tail)
        frames: list[Frame] = []
        search = 0
        while (found := window.find(self._token, search)) >= 0:
            header = found + TOKEN_SIZE
            end = header + _RESET_SIZE
            if not _RESET_HEADER.startswith(window[header : header + len(_RESET_HEADER)]):
                search = header  # the token, but no RESET: somebody's data
                continue
            if len(window) < end:
                stop = max(found, passed)
                frames += self._frames(window[passed:stop])
                self._tail, self._held = window[found:stop], window[stop:]
                return frames
            self._decoder.clear()
            self._synced = True
            # What was decoded before it came from the end that is gone.
            frames = [Frame(0, RESET, window[header + len(_RESET_HEADER) : end])]
            search = passed = end
        stop = len(window) - self._held_back(window, passed)
        frames += self._frames(window[passed:stop])
        self._tail, self._held = window[max(search, stop - TOKEN_SIZE + 1, 0) : stop], window[stop:]
        return frames

    def _held_back(self, data: bytes, start: int) -> int:
        token = self._token
        least = _HOLD if self._synced else 1
        for size in range(min(TOKEN_SIZE - 1, len(data) - start), least - 1, -1):
            if data.endswith(token[:size]):
                return size
        return 0

    def _frames(self, data: bytes) -> list[Frame]:
        if not self._synced or not data:
            return []
        try:
            return self._decoder.feed(data)
        except FrameError:
            self._synced = False
            return []


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
    """One rpc: full name of its service, its name, and the classes of its messages."""

    __slots__ = ("name", "request", "response", "service")

    def __init__(self, service: str, name: str, request: type[Message], response: type[Message]) -> None:
        self.service = service
        self.name = name
        self.request = request
        self.response = response


def method_table(files: Iterable[FileDescriptor]) -> dict[tuple[str, str], Method]:
    """Every rpc of the services in ``files``, by (service, method) name."""
    table = {}
    for file in files:
        for service in file.services_by_name.values():
            for rpc in service.methods:
                table[service.full_name, rpc.name] = Method(
                    service.full_name, rpc.name, GetMessageClass(rpc.input_type), GetMessageClass(rpc.output_type)
                )
    return table
