"""The control protocol: frames survive any fragmentation, and limits hold."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import wire
from kata.errors import GuestError, HostError, NotFound, ProxyGone
from kata.proxy.control import Connection
from kata.revive import _answers


@given(st.lists(st.tuples(st.sampled_from([wire.DATA, wire.ACK, wire.EXIT]), st.integers(0, 255),
                          st.binary(max_size=300)), max_size=8),
       st.lists(st.integers(1, 50), min_size=1, max_size=50))
def test_frames_survive_fragmentation(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    data = b"".join(wire.pack(kind, payload, flags) for kind, flags, payload in frames)
    decoder, found, at, turn = wire.Decoder(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += list(decoder.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    assert found == frames


@pytest.mark.parametrize("head", [
    wire.HEADER.pack(wire.MAX_PAYLOAD + 9, wire.DATA, 0, 0),
    wire.HEADER.pack(4, 0, 0, 0),
    wire.HEADER.pack(4, 99, 0, 0),
])
def test_what_is_no_frame_is_refused(head: bytes) -> None:
    with pytest.raises(wire.ProtocolError, match="not a frame"):
        list(wire.Decoder().feed(head))


def test_errors_keep_kind_text_hint_and_code() -> None:
    for error in (NotFound("no x", "make it"), GuestError("refused", code=9), ProxyGone("gone")):
        (_kind, _flags, payload), = wire.Decoder().feed(wire.pack_error(error))
        back = wire.unpack_error(payload)
        assert (type(back), back.kind, back.text, back.hint) == (type(error), error.kind, error.text, error.hint)
        assert getattr(back, "code", None) == getattr(error, "code", None)


def test_descriptors_arrive_before_their_request() -> None:
    near, far = socket.socketpair()
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(wire.FDS_PER_FRAME + 3)]
    sender = threading.Thread(target=wire.send_fds, args=(near, files))
    sender.start()
    got: list[int] = []
    decoder, announced = wire.Decoder(), 0
    while announced < len(files):
        data, ancillary, _, _ = far.recvmsg(65536, socket.CMSG_SPACE(4 * wire.FDS_PER_FRAME))
        got += wire.take_fds(ancillary)
        announced += sum(wire.COUNT.unpack(p)[0] for k, _f, p in decoder.feed(data) if k == wire.FDS)
    sender.join()
    assert len(got) == len(files)
    assert {os.fstat(fd).st_rdev for fd in got} == {os.stat("/dev/null").st_rdev}
    wire.close_all([*files, *got])
    near.close()
    far.close()


def test_nobody_there_is_named(tmp_path: object) -> None:
    with pytest.raises(ProxyGone, match="cannot reach the sandbox's proxy at"):
        wire.Client(f"{tmp_path}/proxy.sock")


def test_who_has_much_to_do_is_there(tmp_path: Path) -> None:
    """A queue of connections that is full is waited for: it is no reason to start another proxy."""
    path = f"{tmp_path}/proxy.sock"
    with wire.listening_socket(path) as listener, ExitStack() as waiting:
        with pytest.raises(BlockingIOError):
            while True:
                other = waiting.enter_context(wire.UnixSocket())
                other.setblocking(False)
                other.connect(path)
        assert _answers(path)
        with pytest.raises(HostError, match=r"took no connection within 0\.02 s") as e:
            wire.Client(path, 0.02)
        assert not isinstance(e.value, ProxyGone)
        accepting = threading.Thread(target=lambda: os.close(listener._accept()[0]))
        accepting.start()
        wire.Client(path, 20).sock.close()
        accepting.join()


def test_frames_right_behind_the_request_they_depend_on_are_kept() -> None:
    """A shim attaches and sends its standard input at once; the proxy may read both in one go."""
    near, far = socket.socketpair()
    taken: list[tuple[int, int, bytes]] = []

    async def handler(connection: Connection, _request: object, _fds: list[int]) -> dict[str, object]:
        await asyncio.sleep(0)  # as an attach that has to look something up
        connection.take_frames(lambda *frame: taken.append(frame))
        return {}

    async def talk() -> None:
        connection = Connection(far, handler)
        near.sendall(wire.pack_json(wire.REQUEST, {"v": wire.VERSION, "op": "attach"})
                     + wire.pack_data(wire.STDIN, 0, b"first") + wire.pack_data(wire.STDIN, 5, b"", eof=True))
        reply = await asyncio.to_thread(near.recv, 1000)
        assert next(wire.Decoder().feed(reply))[0] == wire.REPLY
        connection.close()

    asyncio.run(talk())
    assert [wire.unpack_data(payload) for _k, _f, payload in taken] == [(0, b"first"), (5, b"")]
    near.close()
