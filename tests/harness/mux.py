"""yamux once more, written from its specification for the tests: threads and blocking sockets, nothing of ours.

https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from typing import NamedTuple

WINDOW = 262144


class Frame(NamedTuple):
    """One frame as it is on the wire."""

    type: int
    flags: int
    stream: int
    length: int
    data: bytes = b""

    def encode(self) -> bytes:
        return struct.pack("!BBHLL", 0, self.type, self.flags, self.stream, self.length) + self.data


def read_frame(sock: socket.socket) -> Frame | None:
    """The next frame; None at the end."""
    head = read_exactly(sock, 12)
    if len(head) < 12:
        return None
    version, type, flags, stream, length = struct.unpack("!BBHLL", head)
    assert version == 0, head
    return Frame(type, flags, stream, length, read_exactly(sock, length) if type == 0 else b"")


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            more = sock.recv(count - len(data))
        except OSError:
            return data
        if not more:
            return data
        data += more
    return data


class Stream:
    """A stream with blocking calls."""

    def __init__(self, mux: Mux, number: int) -> None:
        self.mux = mux
        self.number = number
        self.allowed = WINDOW
        self.promised = WINDOW
        self.lock = threading.Condition()
        self.incoming = b""
        self.ended = False
        self.reset = False

    def recv(self, most: int = 65536) -> bytes:
        with self.lock:
            self.lock.wait_for(lambda: self.incoming or self.ended or self.reset)
            data, self.incoming = self.incoming[:most], self.incoming[most:]
            self.promised += len(data)
        if data:
            self.mux.send(Frame(1, 0, self.number, len(data)))
        return data

    def sendall(self, data: bytes) -> None:
        while data:
            with self.lock:
                self.lock.wait_for(lambda: self.allowed or self.reset)
                if self.reset:
                    raise ConnectionResetError
                part, data = data[: self.allowed], data[self.allowed:]
                self.allowed -= len(part)
            self.mux.send(Frame(0, 0, self.number, len(part), part))

    def close(self) -> None:
        self.mux.send(Frame(1, 4, self.number, 0))


class Mux:
    """One end of a session.

    :ivar seen: every frame that came, in order.
    :ivar wrong: what the other end did against the specification.
    """

    def __init__(self, sock: socket.socket, client: bool) -> None:
        self.sock = sock
        self.next = 1 if client else 2
        self.client = client
        self.streams: dict[int, Stream] = {}
        self.opened: queue.Queue[Stream | None] = queue.Queue()
        self.pongs: queue.Queue[int] = queue.Queue()
        self.seen: list[Frame] = []
        self.wrong: list[str] = []
        self.writing = threading.Lock()
        threading.Thread(target=self.run, daemon=True).start()

    def send(self, frame: Frame) -> None:
        with self.writing:
            try:
                self.sock.sendall(frame.encode())
            except OSError:
                pass

    def open(self) -> Stream:
        stream = self.streams[self.next] = Stream(self, self.next)
        self.next += 2
        self.send(Frame(1, 1, stream.number, 0))
        return stream

    def ping(self, number: int) -> int:
        self.send(Frame(2, 1, 0, number))
        return self.pongs.get(timeout=20)

    def run(self) -> None:
        try:
            while (frame := read_frame(self.sock)) is not None:
                self.seen.append(frame)
                self.take(frame)
        except Exception as e:
            self.wrong.append(repr(e))
        for stream in list(self.streams.values()):
            with stream.lock:
                stream.reset = True
                stream.lock.notify_all()
        self.opened.put(None)

    def take(self, frame: Frame) -> None:
        if frame.type == 2:
            if frame.flags & 1:
                self.send(Frame(2, 2, 0, frame.length))
            else:
                self.pongs.put(frame.length)
            return
        if frame.type == 3:
            return
        if frame.type not in (0, 1):
            self.wrong.append(f"type {frame.type}")
            return
        if frame.flags & 1:
            if (frame.stream % 2 == 1) == self.client or frame.stream in self.streams:
                self.wrong.append(f"SYN of stream {frame.stream}")
            self.streams[frame.stream] = Stream(self, frame.stream)
            self.send(Frame(1, 2, frame.stream, 0))
            self.opened.put(self.streams[frame.stream])
        stream = self.streams.get(frame.stream)
        if stream is None:
            self.wrong.append(f"stream {frame.stream} is not open")
            return
        with stream.lock:
            if frame.type == 1:
                stream.allowed += frame.length
            else:
                stream.promised -= frame.length
                if stream.promised < 0:
                    self.wrong.append(f"stream {frame.stream} exceeds its window")
                stream.incoming += frame.data
            stream.ended = stream.ended or bool(frame.flags & 4)
            stream.reset = stream.reset or bool(frame.flags & 8)
            stream.lock.notify_all()

    def close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


def splice(stream: Stream, sock: socket.socket) -> None:
    """Carry bytes between a stream and a socket until either ends."""

    def inward() -> None:
        try:
            while data := stream.recv():
                sock.sendall(data)
        except OSError:
            pass
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    threading.Thread(target=inward, daemon=True).start()
    try:
        while data := sock.recv(65536):
            stream.sendall(data)
    except OSError:
        pass
    stream.close()
    sock.close()
