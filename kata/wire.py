"""The control and stream protocol between verbs, shims and a sandbox's proxy.

One unix stream socket per connection, frames both ways, version 1::

    u32 length of the payload | u8 type | u8 flags | u16 zero | payload     (big-endian)

=========  ======================================================================
type       payload
=========  ======================================================================
REQUEST    JSON ``{"v": 1, "op": NAME, ...}``; answered by one REPLY or ERROR
REPLY      JSON object
ERROR      JSON ``{"op", "kind", "text", "hint", "code"}``: the request's op, a :class:`KataError`
DATA       u64 offset of the first byte since the stream began, then the bytes;
           flags: stream number (0, 1, 2), ``EOF`` added on the last frame
ACK        u64: bytes below this offset are safe; flags: stream number
EXIT       JSON ``{"status": 0..255}``, after the last DATA of a process
FDS        file descriptors as SCM_RIGHTS, payload: their number as u32; they
           belong to the REQUEST that follows
=========  ======================================================================

Hot verbs and shims import this, so it takes sockets from ``_socket``: the
:mod:`socket` module wraps them in enumerations, which takes as long as a third
of an interpreter's start.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from kata.errors import BY_KIND, GuestError, HostError, KataError, ProxyGone
from kata.jsontext import dumps, loads

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

VERSION = 1
MAX_PAYLOAD = 4 << 20
FDS_PER_FRAME = 200

HEADER = struct.Struct("!IBBH")
OFFSET = struct.Struct("!Q")
COUNT = struct.Struct("!I")

REQUEST, REPLY, ERROR, DATA, ACK, EXIT, FDS = range(1, 8)
STDIN, STDOUT, STDERR = range(3)
EOF = 0x80
STREAM_MASK = 0x03


class ProtocolError(KataError):
    kind = "protocol"


def pack(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a frame of {len(payload)} bytes exceeds the limit of {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), kind, flags, 0) + payload


def pack_json(kind: int, value: dict[str, Any]) -> bytes:
    return pack(kind, dumps(value).encode())


def data_head(stream: int, offset: int, size: int, eof: bool = False) -> bytes:
    """What precedes the ``size`` bytes of a DATA frame."""
    return HEADER.pack(8 + size, DATA, stream | (EOF if eof else 0), 0) + OFFSET.pack(offset)


def pack_data(stream: int, offset: int, data: bytes, eof: bool = False) -> bytes:
    return data_head(stream, offset, len(data), eof) + data


def pack_ack(stream: int, offset: int) -> bytes:
    return pack(ACK, OFFSET.pack(offset), stream)


def pack_error(error: KataError, op: str = "") -> bytes:
    value = {"op": op, "kind": error.kind, "text": error.text, "hint": error.hint, "code": getattr(error, "code", 2)}
    return pack_json(ERROR, value)


def unpack_data(payload: bytes) -> tuple[int, memoryview]:
    if len(payload) < 8:
        raise ProtocolError("a data frame lacks its offset")
    return OFFSET.unpack_from(payload)[0], memoryview(payload)[8:]


def unpack_error(payload: bytes) -> KataError:
    value = loads(payload)
    kind = value["kind"]
    if kind == GuestError.kind:
        return GuestError(value["text"], value["hint"], code=value["code"])
    return BY_KIND.get(kind, KataError)(value["text"], value["hint"], kind=kind)


class Decoder:
    """Bytes in, frames out, whatever their boundaries."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield ``(type, flags, payload)`` of every frame that is complete.

        :raise ProtocolError: a length above :data:`MAX_PAYLOAD` or an unknown type.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER.size:
                length, kind, flags, _ = HEADER.unpack_from(buffer, start)
                if length > MAX_PAYLOAD + 8 or not REQUEST <= kind <= FDS:
                    raise ProtocolError(f"not a frame: type {kind}, length {length}")
                end = start + HEADER.size + length
                if len(buffer) < end:
                    break
                payload = bytes(memoryview(buffer)[start + HEADER.size : end])
                start = end
                yield kind, flags, payload
        finally:
            del buffer[:start]


def send_fds(sock: _socket.socket, fds: Sequence[int]) -> None:
    """Send ``fds`` ahead of a request."""
    for i in range(0, len(fds), FDS_PER_FRAME):
        batch = fds[i : i + FDS_PER_FRAME]
        frame = pack(FDS, COUNT.pack(len(batch)))
        sent = sock.sendmsg([frame], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(batch)}i", *batch))])
        if sent < len(frame):
            sock.sendall(frame[sent:])


def take_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """File descriptors out of what ``recvmsg`` returned."""
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += struct.unpack_from(f"{len(data) // 4}i", data)
    return fds


class Client:
    """A verb's connection to a proxy: one request, one answer, at a time.

    :raise ProxyGone: there is nobody at ``path``, or the peer went away.
    :raise HostError: somebody is there, but takes no connection in time.
    """

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        self.sock = UnixSocket()
        try:
            self.sock.dial(path, timeout)
        except BlockingIOError as e:
            self.sock.close()
            raise HostError(f"the sandbox's proxy at {path} took no connection within {timeout:g} s",
                            "see proxy.log of the sandbox") from e
        except OSError as e:
            self.sock.close()
            raise ProxyGone(f"cannot reach the sandbox's proxy at {path}: {e.strerror}") from e
        self._decoder = Decoder()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def request(self, op: str, *, fds: Sequence[int] = (), timeout: float = 30.0, **params: Any) -> dict[str, Any]:
        """Ask for ``op`` and wait at most ``timeout`` seconds for the answer.

        :raise KataError: of the kind that the proxy answered with.
        :raise HostError: no answer in time.
        """
        deadline = time.monotonic() + timeout
        try:
            send_fds(self.sock, fds)
            self.sock.sendall(pack_json(REQUEST, {"v": VERSION, "op": op, **params}))
            while True:
                self.sock.settimeout(max(0.001, deadline - time.monotonic()))
                data = self.sock.recv(1 << 16)
                if not data:
                    raise ProxyGone(f"the sandbox's proxy went away while it was asked to {op}")
                for kind, _flags, payload in self._decoder.feed(data):
                    if kind == ERROR:
                        raise unpack_error(payload)
                    if kind != REPLY:
                        raise ProtocolError(f"expected the reply to {op}, got a frame of type {kind}")
                    reply: dict[str, Any] = loads(payload)
                    return reply
        except TimeoutError as e:
            raise HostError(f"the sandbox's proxy did not answer '{op}' within {timeout:g} s",
                            "see proxy.log of the sandbox") from e
        except OSError as e:
            raise ProxyGone(f"the sandbox's proxy went away while it was asked to {op}: {e.strerror}") from e


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class UnixSocket(_socket.socket):
    """A stream socket, closed on exec; what runs an event loop makes a ``socket.socket`` of its descriptor."""

    def __init__(self) -> None:
        super().__init__(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)

    def dial(self, path: str, timeout: float) -> None:
        """Connect, if need be when those who wait already are through.

        :raise BlockingIOError: they are not in time.
        :raise OSError: nobody listens.
        """
        # With settimeout() the socket does not block, and a full queue is an error at once: connect(2), EAGAIN.
        whole, part = divmod(timeout, 1)
        self.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, struct.pack("ll", int(whole), int(part * 1e6)))
        self.connect(path)
        self.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, bytes(struct.calcsize("ll")))  # a shim goes on with it
        self.settimeout(timeout)

    def __enter__(self) -> UnixSocket:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def listening_socket(path: str) -> UnixSocket:
    """A unix socket bound to ``path`` with mode 0600, listening.

    :raise HostError: the path cannot be bound.
    """
    sock = UnixSocket()
    try:
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(64)
    except OSError as e:
        sock.close()
        raise HostError(f"cannot listen on {path}: {e.strerror}") from e
    return sock
