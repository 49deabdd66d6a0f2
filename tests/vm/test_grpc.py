"""agent.sock: a plain gRPC client, with nothing but the protocol's definitions, drives the agent as Kata 1.x does."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from harness.oci import Container, Oci
from harness.sandbox import Parts
from harness.stubs import Stubs
from harness.wait import eventually
from kata_agent.protocol import agent_pb2 as pb
from kata_agent.protocol import health_pb2

pytestmark = pytest.mark.vm_only

@pytest.fixture(scope="module")
def box(oci: Oci) -> Iterator[Container]:
    with oci.running(oci.bundle()) as container:
        yield container


@pytest.fixture(scope="module")
def path(oci: Oci, box: Container) -> str:
    return str(Parts(oci.root, box.id).folder / "agent.sock")


@pytest.fixture(scope="module")
def agent(path: str) -> Iterator[Stubs]:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        yield Stubs(channel)


def grpc_is_loaded(pid: int) -> bool:
    return "grpc" in Path(f"/proc/{pid}/maps").read_text()


def refused(code: grpc.StatusCode, call: Any, **fields: Any) -> str:
    with pytest.raises(grpc.RpcError) as info:
        call(**fields)
    assert info.value.code() == code, info.value
    return str(info.value.details())


def test_loaded_when_the_first_client_connects(oci: Oci, box: Container, path: str) -> None:
    parts = Parts(oci.root, box.id)
    parts.kill_proxy()  # another test may have connected already
    box.exec("true").ok()
    assert not grpc_is_loaded(parts.proxy)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with grpc.insecure_channel(f"unix:{path}") as channel:
        Stubs(channel).Check()
    assert grpc_is_loaded(parts.proxy)


def test_health_and_details(agent: Stubs) -> None:
    assert agent.Check().status == health_pb2.HealthCheckResponse.SERVING
    assert agent.Version().agent_version
    details = agent.GetGuestDetails(mem_block_size=True)
    assert details.agent_details.version
    assert details.mem_block_size_bytes > 0


def process(*args: str, terminal: bool = False) -> Any:
    from kata_agent.protocol import oci_pb2

    return oci_pb2.Process(Args=args, Env=["PATH=/bin:/usr/bin"], Cwd="/", Terminal=terminal)


def read_all(read: Any, box: Container, exec_id: str) -> bytes:
    """As Kata 1.x's shim: until an error says that the stream has ended."""
    data = b""
    while True:
        try:
            got = read(container_id=box.id, exec_id=exec_id, len=32768).data
        except grpc.RpcError as e:
            assert "EOF" in str(e.details()), e
            return data
        if not got:
            return data
        data += got


def test_exec_with_streams(agent: Stubs, box: Container) -> None:
    """What a Kata 1.x shim does for one process, 1 MB each way."""
    ids = {"container_id": box.id, "exec_id": "grpc-1"}
    agent.ExecProcess(process=process("sh", "-c", "cat; echo done >&2; exit 5"), **ids)
    data = os.urandom(1 << 20)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_all(agent.ReadStdout, box, "grpc-1")))
    reader.start()
    at = 0
    while at < len(data):
        at += agent.WriteStdin(data=data[at : at + 32768], **ids).len
    agent.CloseStdin(**ids)
    reader.join(60)
    assert got == [data]
    assert read_all(agent.ReadStderr, box, "grpc-1") == b"done\n"
    assert agent.WaitProcess(**ids).status == 5


def test_signal_and_terminal(agent: Stubs, box: Container) -> None:
    ids = {"container_id": box.id, "exec_id": "grpc-2"}
    agent.ExecProcess(process=process("sh", "-c", "sleep 0.5; stty size; exec sleep 1000", terminal=True), **ids)
    agent.TtyWinResize(row=41, column=97, **ids)
    assert b"41 97" in agent.ReadStdout(container_id=box.id, exec_id="grpc-2", len=1000).data
    waited: list[int] = []
    waiter = threading.Thread(target=lambda: waited.append(agent.WaitProcess(**ids).status))
    waiter.start()
    agent.SignalProcess(signal=15, **ids)
    waiter.join(30)
    assert waited == [143]


def test_statistics_and_lists(agent: Stubs, box: Container) -> None:
    stats = agent.StatsContainer(container_id=box.id).cgroup_stats
    assert stats.memory_stats.usage.usage > 0
    assert stats.pids_stats.current >= 1
    assert b"sleep" in agent.ListProcesses(container_id=box.id, format="table", args=["-ef"]).process_list
    assert [i.name for i in agent.ListInterfaces().Interfaces] == ["lo"]  # the bundle's network is empty
    assert len(agent.ListRoutes().Routes) == 0


def test_errors_have_codes(agent: Stubs, box: Container) -> None:
    refused(grpc.StatusCode.NOT_FOUND, agent.StatsContainer, container_id="nosuch")
    refused(grpc.StatusCode.NOT_FOUND, agent.WaitProcess, container_id=box.id, exec_id="nosuch")
    refused(grpc.StatusCode.INVALID_ARGUMENT, agent.CreateContainer, container_id="../x", exec_id="../x")
    refused(grpc.StatusCode.DEADLINE_EXCEEDED, agent.WaitProcess, container_id=box.id, exec_id=box.id, timeout=0.5)


def test_bad_clients_do_no_harm(oci: Oci, agent: Stubs, box: Container, path: str) -> None:
    """Garbage, half a greeting, oversized and unknown requests, clients that vanish in the middle."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", preface + b"\xff" * 4096, os.urandom(100_000)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(path)
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except OSError:
                pass
    with grpc.insecure_channel(f"unix:{path}") as channel:
        raw = channel.unary_unary("/grpc.AgentService/ExecProcess")
        with pytest.raises(grpc.RpcError) as info:
            raw(b"\xff\xff\xff", timeout=20)
        assert info.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as info:
            raw(bytes(5 << 20), timeout=20)
        assert info.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as info:
            channel.unary_unary("/grpc.AgentService/Nonesuch")(b"", timeout=20)
        assert info.value.code() == grpc.StatusCode.UNIMPLEMENTED
    for _ in range(50):
        channel = grpc.insecure_channel(f"unix:{path}")
        channel.unary_unary("/grpc.AgentService/WaitProcess").future(
            pb.WaitProcessRequest(container_id=box.id, exec_id=box.id).SerializeToString())
        channel.close()
    pid = Parts(oci.root, box.id).proxy
    eventually("the proxy to let go of their connections", lambda: len(os.listdir(f"/proc/{pid}/fd")) < 60, 20, 0.5)
    assert agent.Check().status == 1
    assert box.exec("echo", "fine").ok().out == "fine"


def test_create_start_and_remove(agent: Stubs, box: Container) -> None:
    """A process of a client outlives the client, and an empty answer is an Empty."""
    assert agent.OnlineCPUMem(wait=False) == empty_pb2.Empty()
    ids = {"container_id": box.id, "exec_id": "grpc-3"}
    agent.ExecProcess(process=process("sleep", "1000"), **ids)
    agent.SignalProcess(signal=9, **ids)
    assert agent.WaitProcess(**ids).status == 137
