"""Whatever comes over the channel: errors, never an end of the agent."""

from __future__ import annotations

import os
import random

import pytest

from kata_agent.protocol import agent_pb2, codes, ttrpc
from kata_agent.protocol.ttrpc_pb2 import Request
from tests.agent.client import RpcError, read_all, read_through_restarts
from tests.agent.conftest import TOKEN


def test_unknown_names(client):
    for service, method, code in (
        ("grpc.AgentService", "Nonesuch", codes.UNIMPLEMENTED), ("x.Y", "Check", codes.UNIMPLEMENTED),
        ("", "", codes.UNIMPLEMENTED), ("grpc.Health" * 1000, "x", codes.UNIMPLEMENTED),
    ):
        client.send_raw(ttrpc.encode(901, ttrpc.REQUEST, Request(service=service, method=method).SerializeToString()))
        assert client.response(901, 10).status.code == code


def test_payloads_that_are_no_messages(client):
    client.send_raw(ttrpc.encode(901, ttrpc.REQUEST, b"\xff\xff\xff"))
    assert client.response(901, 10).status.code == codes.INVALID_ARGUMENT
    request = Request(service="grpc.AgentService", method="CreateContainer", payload=b"\x0a\xff\xff")
    client.send_raw(ttrpc.encode(903, ttrpc.REQUEST, request.SerializeToString()))
    assert client.response(903, 10).status.code == codes.INVALID_ARGUMENT
    client.send_raw(ttrpc.encode(905, ttrpc.DATA, b"") + ttrpc.encode(905, 99, b"x"))
    assert client.Check().status == 1


def test_a_stream_id_in_use(client, box):
    b = box("sleep", "100").create().start()
    request = Request(service="kata.v1.Guest", method="WaitProcess")
    request.payload = b"\x0a" + bytes([len(b.id)]) + b.id.encode()
    client.send_raw(ttrpc.encode(901, ttrpc.REQUEST, request.SerializeToString()) * 2)
    assert "in use" in client.response(901, 10).status.message


def test_too_many_unanswered_requests(client, box):
    b = box("sleep", "100").create().start()
    calls = [client.guest.WaitProcess.start(container_id=b.id) for _ in range(4096)]
    with pytest.raises(RpcError) as info:
        client.Check()
    assert info.value.code == codes.RESOURCE_EXHAUSTED
    client.send_raw(TOKEN + ttrpc.reset_frame(b"n" * 16))
    # The answer to the reset is a frame of another type, which this client does not take.
    with pytest.raises(AssertionError):
        calls[0].result(10)
    assert client.Check().status == 1


def test_garbage_and_a_fresh_start(agent, client, box):
    b = box("sh", "-c", "echo one; read x; echo two $x").create().start()
    rng = random.Random(7)  # the same bytes each time
    for size in (1, 9, 10, 100, 5000, 100_000):
        client.send_raw(rng.randbytes(size))
        client.close()
        client = agent.connect()
        assert client.Check().status == 1
    assert client.guest.WriteStream(container_id=b.id, data=b"x\n", eof=True).received == 2
    assert read_all(client, b.id) == b"one\ntwo x\n"
    client.RemoveContainer(container_id=b.id)


def test_no_byte_is_lost_over_restarts(agent, client, box):
    b = box("seq", "1", "300000").create().start()
    expected = "".join(f"{n}\n" for n in range(1, 300001)).encode()
    assert read_through_restarts(agent.connect, b.id, 5) == expected
    again = agent.connect()
    assert again.guest.WaitProcess(container_id=b.id).status == 0
    again.close()


def test_a_client_without_the_token(agent):
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(agent.socket))
        sock.sendall(os.urandom(32) + ttrpc.reset_frame(b"n" * 16))
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_names_and_numbers_that_cannot_be(client, box):
    for container_id in ("", "..", "a/b", "x" * 5000):
        with pytest.raises(RpcError) as info:
            client.CreateContainer(container_id=container_id)
        assert info.value.code == codes.INVALID_ARGUMENT
    with pytest.raises(RpcError) as info:
        client.StartContainer(container_id="nonesuch")
    assert info.value.code == codes.NOT_FOUND
    b = box("sleep", "100").create().start()
    with pytest.raises(RpcError) as info:
        client.CreateContainer(container_id=b.id, OCI=b.spec)
    assert info.value.code == codes.ALREADY_EXISTS
    for number in (64 + 1, 1 << 31, (1 << 32) - 1):
        with pytest.raises(RpcError) as info:
            client.SignalProcess(container_id=b.id, exec_id=b.id, signal=number)
        assert info.value.code == codes.INVALID_ARGUMENT
    with pytest.raises(RpcError) as info:
        client.guest.ReadStream(container_id=b.id, stream=7)
    assert info.value.code == codes.INVALID_ARGUMENT
    with pytest.raises(RpcError) as info:
        client.guest.ReadStream(container_id=b.id, stream=1, offset=1 << 60)
    assert info.value.code == codes.OUT_OF_RANGE
    with pytest.raises(RpcError) as info:
        client.guest.WaitProcess(container_id=b.id, exec_id="nonesuch")
    assert info.value.code == codes.NOT_FOUND
    with pytest.raises(RpcError) as info:
        client.guest.ReleaseProcess(container_id=b.id)
    assert info.value.code == codes.FAILED_PRECONDITION
    with pytest.raises(RpcError) as info:
        client.guest.PrepareProcess(container_id=b.id, exec_id="x", cgroup="../up")
    assert info.value.code == codes.INVALID_ARGUMENT


@pytest.mark.parametrize("change", [
    lambda s: setattr(s.Root, "Path", "relative"),
    lambda s: setattr(s.Root, "Path", "/nonesuch"),
    lambda s: s.ClearField("Process"),
    lambda s: s.Hooks.Prestart.add(Path="/bin/true"),
    lambda s: s.Mounts.add(destination="relative", type="tmpfs"),
    lambda s: s.Mounts.add(destination="/x", type="nonesuchfs", source="x"),
    lambda s: s.Linux.MaskedPaths.append("relative"),
    lambda s: s.Linux.Namespaces.add(Type="nonesuch"),
    lambda s: s.Linux.Devices.add(Path="/dev/x", Type="z"),
    lambda s: s.Linux.Devices.add(Path="dev/x", Type="c"),
    lambda s: s.Linux.Devices.add(Path="/dev/x", Type="c", Major=-5),
    lambda s: s.Linux.Namespaces.add(Type="user"),
])
def test_specifications_that_are_refused(box, change):
    b = box("true")
    change(b.spec)
    with pytest.raises(RpcError) as info:
        b.create()
    assert "Traceback" not in info.value.message
    assert not b.client.guest.ListAll().containers


def test_nothing_is_left_of_containers(agent, client, box, tmp_path):
    """Descriptors, mounts, processes and memory of the agent after many containers are what they were before."""

    def state() -> tuple[int, int, list[str]]:
        pid = agent.pid
        fds = len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/mountinfo") as file:
            # Others come and go on this machine.
            mounts = len([line for line in file if str(tmp_path) in line or str(agent.folder) in line])
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = file.read().split()
        return fds, mounts, children

    def one(number: int) -> None:
        b = box("sh", "-c", "sleep 100 & cat")
        b.spec.Process.Terminal = number % 3 == 0
        b.extras.start_container_hooks.add(path="/bin/true")
        b.create(storages=[agent_pb2.Storage(driver="ephemeral", fstype="tmpfs", mount_point=str(tmp_path / "e"))])
        if number % 4:
            b.start()
            b.exec(["true"])
            with pytest.raises(RpcError):
                b.exec(["nonesuch"])
        c = box("nonesuch")
        with pytest.raises(RpcError):
            c.create()
        client.RemoveContainer(container_id=b.id)

    one(1)
    before = state()
    for number in range(12):
        one(number)
    assert state() == before
