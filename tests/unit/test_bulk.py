"""Large fields of messages, apart from the rest; frames cut where they were received."""

from __future__ import annotations

import os

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.protocol import bulk, guest_pb2, ttrpc, ttrpc_pb2
from kata_agent.protocol.guest_pb2 import ReadResponse, WriteRequest

DATA = WriteRequest.DATA_FIELD_NUMBER
TOKEN = bytes(range(100, 132))


@given(st.binary(max_size=300), st.integers(0, (1 << 64) - 1), st.booleans(), st.text(max_size=200))
def test_a_field_cut_out(data: bytes, offset: int, eof: bool, name: str) -> None:
    request = WriteRequest(container_id=name, exec_id="x", offset=offset, data=data, eof=eof)
    rest, found = bulk.cut_out(memoryview(request.SerializeToString()), DATA)
    assert bytes(found) == data
    assert WriteRequest.FromString(rest) == WriteRequest(container_id=name, exec_id="x", offset=offset, eof=eof)


@given(st.binary(max_size=300), st.integers(0, 1 << 40))
def test_a_field_written_last(data: bytes, offset: int) -> None:
    message = ReadResponse(offset=offset, eof=True).SerializeToString()
    written = message + bulk.head(ReadResponse.DATA_FIELD_NUMBER, len(data)) + data
    assert ReadResponse.FromString(written) == ReadResponse(offset=offset, eof=True, data=data)


@given(st.binary(max_size=80))
def test_garbage(data: bytes) -> None:
    """What protobuf takes, we take, and find the same field in it; nothing else is raised."""
    try:
        rest, found = bulk.cut_out(memoryview(data), DATA)
        request = WriteRequest.FromString(rest)
    except (bulk.WireError, DecodeError):
        return
    assert WriteRequest.FromString(data).data == bytes(found)
    assert not request.data


@pytest.mark.parametrize("data", [b"\x22", b"\x22\x05abc", b"\x22" + b"\xff" * 10 + b"\x01", b"\x80" * 20, b"\x20\x01",
                                  b"\x23", b"\x09abc"])
def test_not_a_message(data: bytes) -> None:
    with pytest.raises(bulk.WireError):
        bulk.cut_out(memoryview(data), DATA)


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000, (1 << 20) + 7, 3 << 20])
def test_large_frames_by_pages(size: int) -> None:
    """readv(2) into pages, as the agent receives: payloads whole, whatever their size; small ones between them."""
    decoder = ttrpc.GuestDecoder(TOKEN)
    greeting = ttrpc.HostHandshake(TOKEN, bytes(16)).greeting
    payloads = [os.urandom(size), b"small", os.urandom(size), b""]
    data = memoryview(greeting + b"".join(ttrpc.encode(1, ttrpc.REQUEST, payload) for payload in payloads))
    got = []
    while data:
        pages = decoder.pages()
        assert pages
        received = 0
        for page in pages:
            part = data[: len(page)]
            page[: len(part)] = part
            data = data[len(part) :]
            received += len(part)
        got += [bytes(frame.payload) for frame in decoder.received(received) if frame.type != ttrpc.RESET]
    assert got == payloads
    assert decoder.pending == 0


def test_the_agent_parses_what_the_proxy_sends() -> None:
    """An envelope with its payload cut out, and that payload's data."""
    inner = WriteRequest(container_id="c" * 64, data=bytes(10_000), offset=5)
    envelope = ttrpc_pb2.Request(service="kata.v1.Guest", method="WriteStream", payload=inner.SerializeToString())
    head, payload = bulk.cut_out(memoryview(envelope.SerializeToString()), ttrpc_pb2.Request.PAYLOAD_FIELD_NUMBER)
    assert ttrpc_pb2.Request.FromString(head).method == "WriteStream"
    rest, data = bulk.cut_out(payload, DATA)
    assert len(data) == 10_000 and guest_pb2.WriteRequest.FromString(rest).offset == 5
