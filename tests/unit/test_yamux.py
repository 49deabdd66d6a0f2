"""yamux against another implementation of its specification, and against a peer that keeps to none."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.mux import Frame, Mux, read_frame
from kata.transport import yamux
from kata.transport.yamux import Session, Stream, YamuxError


def meet(ours: Callable[[Session], Awaitable[None]], theirs: Callable[[socket.socket], Any], client: bool = True,
         accept: Callable[[Stream], None] | None = None) -> Any:
    """Run a session of ours, and ``theirs`` in a thread at the other end; what that returns."""
    near, far = socket.socketpair()
    far.settimeout(20)
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(theirs(far)), daemon=True)
    thread.start()

    async def main() -> None:
        near.setblocking(False)
        session = Session(client=client, accept=accept)
        await asyncio.get_running_loop().create_connection(lambda: session, sock=near)
        async with asyncio.timeout(20):
            await ours(session)
        session.close()

    asyncio.run(main())
    thread.join(20)
    far.close()
    assert result, "the peer failed"
    return result[0]


def echo(sock: socket.socket) -> Mux:
    """A server that sends back what comes on each stream, until the session ends."""
    mux = Mux(sock, client=False)

    def serve(stream: Any) -> None:
        while data := stream.recv():
            stream.sendall(data)
        stream.close()

    while (stream := mux.opened.get()) is not None:
        threading.Thread(target=serve, args=(stream,), daemon=True).start()
    return mux


def test_client_with_many_streams() -> None:
    """More than a window each way, streams side by side, and not one frame that the specification forbids."""
    async def one(session: Session) -> None:
        data = os.urandom(1 << 20)
        stream = session.open()

        async def send() -> None:
            await stream.write(data)

        sending = asyncio.ensure_future(send())
        got = b""
        while len(got) < len(data):
            got += await stream.read()
        await sending
        assert got == data
        stream.close()

    async def ours(session: Session) -> None:
        await asyncio.gather(*(one(session) for _ in range(5)))
        await session.ping()

    mux = meet(ours, echo)
    assert mux.wrong == []
    assert sorted(mux.streams) == [1, 3, 5, 7, 9]
    assert mux.seen[-1].type == 3 and mux.seen[-1].length == 0  # it takes its leave


def test_server() -> None:
    """The same the other way: the peer opens the streams."""
    tasks = []

    def accept(stream: Stream) -> None:
        async def serve() -> None:
            while data := await stream.read():
                await stream.write(data)
            stream.close()

        tasks.append(asyncio.ensure_future(serve()))

    done = threading.Event()

    def theirs(sock: socket.socket) -> Mux:
        mux = Mux(sock, client=True)
        assert mux.ping(77) == 77
        stream, data = mux.open(), os.urandom(700_000)
        threading.Thread(target=stream.sendall, args=(data,), daemon=True).start()
        got = b""
        while len(got) < len(data):
            got += stream.recv()
        assert got == data
        stream.close()
        assert stream.recv() == b""
        done.set()
        return mux

    async def ours(_session: Session) -> None:
        await asyncio.to_thread(done.wait, 20)

    mux = meet(ours, theirs, client=False, accept=accept)
    assert mux.wrong == []
    assert Frame(1, 2, 1, 0) in mux.seen


def test_flow_control_stops_a_writer() -> None:
    """What the peer has not made room for is not sent."""
    def theirs(sock: socket.socket) -> int:
        assert read_frame(sock) == Frame(1, 1, 1, 0)
        got = 0
        while got < yamux.WINDOW:
            frame = read_frame(sock)
            assert frame is not None
            got += frame.length
        sock.sendall(Frame(2, 1, 0, 5).encode())
        assert read_frame(sock) == Frame(2, 2, 0, 5)  # the answer, and no data before it
        sock.sendall(Frame(1, 0, 1, 10).encode())
        frame = read_frame(sock)
        assert frame is not None
        return got + frame.length

    async def ours(session: Session) -> None:
        stream = session.open()
        with pytest.raises(YamuxError, match="closed the connection"):
            writing = asyncio.ensure_future(stream.write(bytes(yamux.WINDOW + 20)))
            await asyncio.wait({writing, asyncio.ensure_future(session.closed.wait())},
                               return_when=asyncio.ALL_COMPLETED)
            writing.result()

    def then_close(sock: socket.socket) -> int:
        total = theirs(sock)
        sock.close()
        return total

    assert meet(ours, then_close) == yamux.WINDOW + 10


BROKEN = [
    (b"\x01" + bytes(11), "version 1"),
    (Frame(9, 0, 0, 0).encode(), "type 9"),
    (Frame(0, 0, 0, 4, b"abcd").encode(), "stream 0"),
    (struct.pack("!BBHLL", 0, 0, 0, 1, yamux.WINDOW + 1), "where 262144 were allowed"),
    (struct.pack("!BBHLL", 0, 0, 0, 7, yamux.WINDOW + 1), "more than any window"),
    (Frame(1, 0, 1, 0xFFFFFFFF).encode(), "beyond 4 GiB"),
    (Frame(1, 4, 1, 0).encode() + Frame(0, 0, 1, 1, b"x").encode(), "after its end"),
    (Frame(1, 1, 1, 0).encode(), "whose number is ours"),
    (Frame(3, 0, 0, 1).encode(), "went away, reason 1"),
]


@pytest.mark.parametrize(("data", "reason"), BROKEN)
def test_what_ends_the_session(data: bytes, reason: str) -> None:
    def theirs(sock: socket.socket) -> bool:
        sock.sendall(data)
        while read_frame(sock) is not None:
            pass
        return True

    async def ours(session: Session) -> None:
        stream = session.open()
        await session.closed.wait()
        assert reason in session.reason
        with pytest.raises(YamuxError):
            await stream.write(b"x")
        with pytest.raises(YamuxError):
            session.open()
        with pytest.raises(YamuxError):
            await session.ping()

    assert meet(ours, theirs)


def test_reset_ends_one_stream() -> None:
    def theirs(sock: socket.socket) -> bool:
        sock.sendall(Frame(1, 8, 1, 0).encode() + Frame(0, 2, 3, 2, b"ok").encode())
        # Refused, since a client was asked for; what came for it on its way is passed over.
        sock.sendall(Frame(1, 1, 2, 0).encode() + Frame(0, 0, 2, 3, b"abc").encode() + Frame(3, 0, 0, 0).encode())
        frames = []
        while (frame := read_frame(sock)) is not None:
            frames.append(frame)
        return Frame(1, 8, 2, 0) in frames

    async def ours(session: Session) -> None:
        broken, whole = session.open(), session.open()
        assert await whole.read() == b"ok"
        with pytest.raises(YamuxError, match="reset"):
            await broken.read()
        with pytest.raises(YamuxError, match="no new streams"):
            while True:
                session.open().close()
                await asyncio.sleep(0)

    assert meet(ours, theirs)


def test_a_flood_of_pings_that_reads_no_answer() -> None:
    def theirs(sock: socket.socket) -> bool:
        ping = Frame(2, 1, 0, 1).encode() * 1000
        try:
            while True:
                sock.sendall(ping)
        except OSError:
            return True

    async def ours(session: Session) -> None:
        await session.closed.wait()
        assert "reads none" in session.reason

    assert meet(ours, theirs)


def test_streams_are_bounded() -> None:
    async def ours(session: Session) -> None:
        for _ in range(yamux.MAX_STREAMS):
            session.open()
        with pytest.raises(YamuxError, match="256 streams"):
            session.open()

    meet(ours, echo)

    async def closes(session: Session) -> None:
        # The peer never closes its direction: those closed the longest are reset.
        for _ in range(1000):
            session.open().close()
        assert len(session._streams) <= yamux.MAX_LINGERING
        await session.ping()

    def deaf(sock: socket.socket) -> int:
        resets = 0
        while (frame := read_frame(sock)) is not None:
            resets += bool(frame.flags & 8)
            if frame.type == 2:
                sock.sendall(Frame(2, 2, 0, frame.length).encode())
        return resets

    assert meet(closes, deaf) == 1000 - yamux.MAX_LINGERING


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    data = draw(st.binary(max_size=40))
    length = draw(st.one_of(st.just(len(data)), st.integers(0, 0xFFFFFFFF)))
    return struct.pack("!BBHLL", draw(st.sampled_from([0, 0, 0, 0, 1])), draw(st.integers(0, 4)),
                       draw(st.integers(0, 15)), draw(st.integers(0, 8)), length) + data


class _Transport(asyncio.Transport):
    """Counts what is written, and never has room."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.over = False

    def write(self, data: Any) -> None:
        self.size += len(data)

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.over = True

    def close(self) -> None:
        self.over = True


@settings(deadline=None)
@given(pieces=st.lists(st.one_of(frames(), st.binary(max_size=64)), max_size=30), client=st.booleans(),
       cut=st.integers(1, 50))
def test_any_bytes_are_bounded(pieces: list[bytes], client: bool, cut: int) -> None:
    """Whatever comes, in whatever pieces: no exception, and what is held stays within the windows."""
    async def main() -> None:
        accepted: list[Stream] = []
        session = Session(client=client, accept=accepted.append)
        transport = _Transport()
        session.connection_made(transport)
        session.pause_writing()
        own = [session.open() for _ in range(3)]
        data = b"".join(pieces)
        for at in range(0, len(data), cut):
            if session.closed.is_set():
                break
            session.data_received(data[at : at + cut])
        assert transport.over == session.closed.is_set()
        for stream in (*own, *accepted):
            assert sum(map(len, stream._parts)) <= yamux.WINDOW
        assert len(session._streams) <= yamux.MAX_STREAMS
        assert transport.size <= 12 * (yamux.MAX_REPLIES + 4 + len(own))

    asyncio.run(main())
