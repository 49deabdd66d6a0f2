"""A Kata 1.x runtime's end: plain gRPC through our kata-proxy to our agent, which has no token and tells one."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from harness.components import Program, proxy, shim
from harness.stubs import Stubs, read_all
from kata_agent.protocol import ttrpc
from tests.agent.conftest import Agent, Box


@pytest.fixture(scope="module")
def tokenless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    agent = Agent(tmp_path_factory.mktemp("agent"), token=b"")
    try:
        yield agent
    finally:
        agent.close()


@pytest.fixture(scope="module")
def served(tokenless: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, str]]:
    listen = str(tmp_path_factory.mktemp("proxy") / "proxy.sock")
    tokenless.wait()
    with proxy(str(tokenless.socket), listen, "-log", "debug") as program:
        yield program, listen


@pytest.fixture(scope="module")
def stubs(served: tuple[Program, str]) -> Iterator[Stubs]:
    with grpc.insecure_channel(f"unix:{served[1]}") as channel:
        yield Stubs(channel)


def create(stubs: Stubs, rootfs: Path, *args: str, terminal: bool = False) -> str:
    """A container whose process has not begun; its id."""
    box = Box(None, rootfs, list(args))  # type: ignore[arg-type]
    box.spec.Process.Terminal = terminal
    stubs.CreateContainer(container_id=box.id, exec_id=box.id, OCI=box.spec)
    return box.id


def test_life_of_a_container(stubs: Stubs, rootfs: Path) -> None:
    """In the order of a Kata 1.x runtime."""
    assert stubs.Check().status == 1
    stubs.CreateSandbox(hostname="h", sandbox_id="sb")
    name = create(stubs, rootfs, "sh", "-c", "cat; echo done >&2; exit 5")
    ids = {"container_id": name, "exec_id": name}
    stubs.StartContainer(container_id=name)
    data = os.urandom(300_000)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_all(stubs.ReadStdout, **ids)))
    reader.start()
    at = 0
    while at < len(data):
        at += stubs.WriteStdin(data=data[at : at + 32768], **ids).len
    stubs.CloseStdin(**ids)
    reader.join(60)
    assert got == [data]
    assert read_all(stubs.ReadStderr, **ids) == b"done\n"
    assert stubs.WaitProcess(**ids).status == 5
    stubs.RemoveContainer(container_id=name)
    with pytest.raises(grpc.RpcError) as info:
        stubs.WaitProcess(**ids)
    assert info.value.code() == grpc.StatusCode.NOT_FOUND


def test_kata_shim_on_our_agent(served: tuple[Program, str], stubs: Stubs, rootfs: Path) -> None:
    data = os.urandom(300_000)
    name = create(stubs, rootfs, "sh", "-c", "cat; echo done >&2; exit 5")
    with shim(served[1], name, name) as program:
        stubs.StartContainer(container_id=name)
        assert program.process.communicate(data, timeout=60) == (data, b"done\n")
        assert program.wait() == 5
    name = create(stubs, rootfs, "sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done")
    with shim(served[1], name, name) as program:
        stubs.StartContainer(container_id=name)
        assert program.line() == b"ready\n"
        program.signal(signal.SIGUSR1)
        assert program.wait() == 9


def test_a_token_is_told_once_and_only_without_one(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With a token on its command line the agent keeps silent; after the first greeting it does, too."""
    def ask(path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.settimeout(10)
        sock.sendall(ttrpc.PROBE)
        return sock

    agent.wait()
    with ask(agent.socket) as sock:
        greeting = ttrpc.HostHandshake(bytes(range(32)), bytes(16)).greeting
        sock.sendall(greeting)
        assert sock.recv(100) == greeting[32:]  # and nothing before it
    other = Agent(tmp_path_factory.mktemp("agent"), token=b"")
    try:
        other.wait()
        with ask(other.socket) as sock:
            head = sock.recv(10, socket.MSG_WAITALL)
            assert head == ttrpc.HELLO_HEADER
            token = sock.recv(32, socket.MSG_WAITALL)
            sock.sendall(ttrpc.PROBE)
            assert sock.recv(42, socket.MSG_WAITALL) == head + token
            greeting = ttrpc.HostHandshake(token, bytes(16)).greeting
            sock.sendall(greeting)
            assert sock.recv(26, socket.MSG_WAITALL) == greeting[32:]
    finally:
        other.close()
