"""Frames, the reset handshake, and the generated protocol."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.protocol import agent_pb2, guest_pb2, health_pb2, oci_pb2, ttrpc, types_pb2
from kata_agent.protocol.ttrpc import REQUEST, RESET, Decoder, Frame, FrameError, GuestDecoder, HostHandshake, encode
from kata_agent.server import snake_case

TOKEN = bytes(range(100, 132))
NONCE = b"0123456789abcdef"
AGENT = Path(ttrpc.__file__).resolve().parents[2]


def texts(frames: list[Frame]) -> list[bytes]:
    return [b"RESET" if f.type == RESET else f.payload for f in frames]


def feed(decoder: GuestDecoder, data: bytes, sizes: list[int]) -> list[bytes]:
    """Feed ``data`` in pieces of the sizes given, again and again."""
    got: list[bytes] = []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        turn += 1
        frames = texts(decoder.feed(data[at : at + size]))
        got += frames
        at += size
    return got


def test_frame_layout() -> None:
    assert encode(7, REQUEST, b"ab", 3) == b"\0\0\0\2\0\0\0\7\1\3ab"


def test_frames_are_bounded() -> None:
    with pytest.raises(FrameError):
        encode(1, REQUEST, bytes(ttrpc.MAX_PAYLOAD + 1))
    with pytest.raises(FrameError):
        Decoder().feed(b"\0\x40\0\1\0\0\0\1\1\0")


@given(st.lists(st.binary(max_size=60), max_size=6), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_frames_survive_any_cut(payloads: list[bytes], sizes: list[int]) -> None:
    data = b"".join(encode(i, REQUEST, p) for i, p in enumerate(payloads))
    decoder = Decoder()
    got = []
    at = turn = 0
    while at < len(data):
        got += decoder.feed(data[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    assert [f.payload for f in got] == payloads
    assert decoder.pending == 0


@given(st.binary(max_size=200), st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_a_reset_is_found_behind_anything(garbage: bytes, sizes: list[int]) -> None:
    """Whatever came before, and however it is cut: one RESET, then the frames behind it."""
    greeting = HostHandshake(TOKEN, NONCE).greeting
    decoder = GuestDecoder(TOKEN)
    got = feed(decoder, greeting + encode(1, REQUEST, b"old") + garbage + greeting + encode(3, REQUEST, b"new"), sizes)
    assert got[0] == b"RESET"
    assert got[-2:] == [b"RESET", b"new"]


def test_half_a_frame_before_a_reset() -> None:
    decoder = GuestDecoder(TOKEN)
    greeting = HostHandshake(TOKEN, NONCE).greeting
    decoder.feed(greeting)
    half = encode(1, REQUEST, bytes(100))[:50]
    for cut in range(1, len(greeting)):
        assert decoder.feed(half + greeting[:cut]) == [], cut
        assert texts(decoder.feed(greeting[cut:])) == [b"RESET"], cut


def test_a_frame_that_ends_like_a_token_is_not_held_back() -> None:
    decoder = GuestDecoder(TOKEN)
    decoder.feed(HostHandshake(TOKEN, NONCE).greeting)
    for size in range(1, 8):
        assert texts(decoder.feed(encode(1, REQUEST, b"x" + TOKEN[:size]))) == [b"x" + TOKEN[:size]]


def test_a_token_without_a_reset_is_data() -> None:
    decoder = GuestDecoder(TOKEN)
    decoder.feed(HostHandshake(TOKEN, NONCE).greeting)
    payload = b"a" + TOKEN + b"b" * 40
    assert texts(decoder.feed(encode(1, REQUEST, payload) + encode(3, REQUEST, b"c"))) == [payload, b"c"]


def test_nothing_before_the_first_reset() -> None:
    decoder = GuestDecoder(TOKEN)
    assert decoder.feed(encode(1, REQUEST, b"x")) == []


@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_probe_is_answered_before_the_first_reset(garbage: bytes, size: int) -> None:
    """In any pieces and behind anything; afterwards its bytes are somebody's data."""
    decoder = GuestDecoder(TOKEN, tells=True)
    greeting = HostHandshake(TOKEN, NONCE).greeting
    frames = decoder.feed(garbage[:size]) + decoder.feed(garbage[size:] + ttrpc.PROBE[:5])
    frames += decoder.feed(ttrpc.PROBE[5:])
    assert [(f.type, f.payload) for f in frames][-1:] == [(ttrpc.HELLO, TOKEN)]
    assert texts(decoder.feed(greeting + encode(1, REQUEST, ttrpc.PROBE))) == [b"RESET", ttrpc.PROBE]
    assert GuestDecoder(TOKEN).feed(ttrpc.PROBE) == []


def test_broken_frames_wait_for_a_reset() -> None:
    decoder = GuestDecoder(TOKEN)
    greeting = HostHandshake(TOKEN, NONCE).greeting
    decoder.feed(greeting)
    assert decoder.feed(b"\xff" * 20) == []
    assert decoder.feed(encode(1, REQUEST, b"x")) == []
    assert texts(decoder.feed(greeting + encode(3, REQUEST, b"y"))) == [b"RESET", b"y"]


@given(st.binary(max_size=100), st.integers(1, 50))
def test_the_host_discards_what_came_before_the_answer(garbage: bytes, size: int) -> None:
    handshake = HostHandshake(TOKEN, NONCE)
    data = garbage + ttrpc.reset_frame(NONCE) + b"rest"
    got = b"".join(handshake.feed(data[i : i + size]) for i in range(0, len(data), size))
    assert handshake.done
    assert got == b"rest"


def test_every_rpc_has_a_handler() -> None:
    from kata_agent.services import agent, guest, health

    table = ttrpc.method_table([agent_pb2.DESCRIPTOR, guest_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR])
    classes = {agent.SERVICE: agent.AgentService, guest.SERVICE: guest.Guest, health.SERVICE: health.Health}
    assert {service for service, _ in table} == set(classes)
    for service, name in table:
        assert callable(getattr(classes[service], snake_case(name), None)), f"{service}/{name}"
    assert len([1 for service, _ in table if service == "grpc.AgentService"]) == 32


@pytest.mark.parametrize(("name", "snake"), [
    ("OnlineCPUMem", "online_cpu_mem"), ("GetOOMEvent", "get_oom_event"), ("AddARPNeighbors", "add_arp_neighbors"),
    ("Check", "check"), ("TtyWinResize", "tty_win_resize"), ("MemHotplugByProbe", "mem_hotplug_by_probe")])
def test_snake_case(name: str, snake: str) -> None:
    assert snake_case(name) == snake


def test_generated_files_are_those_of_the_sources(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    import sys

    sys.path.insert(0, str(AGENT))
    try:
        from protocol_gen import NAMES, generate
    finally:
        sys.path.remove(str(AGENT))
    generate(tmp_path)
    here, there = AGENT / "kata_agent/protocol", tmp_path / "kata_agent/protocol"
    names = [f"{name}_pb2.{end}" for name in NAMES for end in ("py", "pyi")]
    same, different, errors = filecmp.cmpfiles(here, there, names, shallow=False)
    assert (different, errors) == ([], [])
    assert len(same) == len(names)


#: A sample of Kata 1.12's wire contract: (message, field) -> (number, repeated, type).
CONTRACT = {
    (agent_pb2.CreateContainerRequest, "OCI"): (6, False, "grpc.Spec"),
    (agent_pb2.CreateContainerRequest, "agent_pidns"): (8, False, "bool"),
    (agent_pb2.StatsContainerResponse, "network_stats"): (2, True, "grpc.NetworkStats"),
    (agent_pb2.ReseedRandomDevRequest, "data"): (2, False, "bytes"),
    (agent_pb2.MemHotplugByProbeRequest, "memHotplugProbeAddr"): (1, True, "uint64"),
    (agent_pb2.Interfaces, "Interfaces"): (1, True, "types.Interface"),
    (agent_pb2.CopyFileRequest, "offset"): (7, False, "int64"),
    (oci_pb2.Spec, "Linux"): (8, False, "grpc.Linux"),
    (oci_pb2.LinuxMemory, "Swappiness"): (6, False, "uint64"),
    (oci_pb2.LinuxSeccompArg, "ValueTwo"): (3, False, "uint64"),
    (types_pb2.Interface, "raw_flags"): (8, False, "uint32"),
    (types_pb2.ARPNeighbor, "state"): (4, False, "int32"),
    (health_pb2.HealthCheckResponse, "status"): (1, False, "grpc.HealthCheckResponse.ServingStatus"),
}
KINDS = {8: "bool", 12: "bytes", 4: "uint64", 3: "int64", 13: "uint32", 5: "int32", 9: "string"}


@pytest.mark.parametrize("key", CONTRACT, ids=lambda key: f"{key[0].__name__}.{key[1]}")
def test_contract(key: tuple[type, str]) -> None:
    message, name = key
    field = message.DESCRIPTOR.fields_by_name[name]  # type: ignore[attr-defined]
    inner = field.message_type or field.enum_type
    assert (field.number, field.is_repeated, inner.full_name if inner else KINDS[field.type]) == CONTRACT[key]
