"""A Kata 1.x agent, written for the tests, behind our client, our kata-proxy and our kata-shim."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from harness.components import Program, proxy, shim
from harness.kata1 import Kata1Agent
from harness.stubs import Stubs, read_all
from kata.agent_client import ChannelClosed, NoAnswer
from kata.errors import GuestError, UnsupportedError
from kata.transport.kata1 import Kata1Client
from kata_agent.protocol import agent_pb2 as pb
from kata_agent.protocol import guest_pb2, oci_pb2


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Kata1Agent]:
    agent = Kata1Agent(tmp_path)
    yield agent
    wrong = [text for mux in agent.muxes for text in mux.wrong]
    agent.close()
    assert wrong == []


def process(*args: str, terminal: bool = False) -> Any:
    return oci_pb2.Process(Args=args, Env=["PATH=/usr/bin:/bin"], Cwd="/", Terminal=terminal)


# --- our proxy's client ------------------------------------------------------------------


def drive(agent: Kata1Agent, folder: Path, use: Callable[[Kata1Client], Awaitable[None]]) -> list[str]:
    """Run ``use`` with a client; what it reported."""
    reports: list[str] = []

    async def main() -> None:
        client = Kata1Client(agent.path, str(folder / "yamux.sock"), reports.append)
        async with asyncio.timeout(60):
            await client.connect()
            await client.check()
            await use(client)
        await client.close()

    asyncio.run(main())
    return reports


async def start(client: Kata1Client, name: str, *args: str, terminal: bool = False) -> None:
    await client.guest("PrepareContainer", guest_pb2.PrepareContainerRequest(container_id=name))
    await client.agent("CreateContainer", pb.CreateContainerRequest(
        container_id=name, exec_id=name, OCI=oci_pb2.Spec(Process=process(*args, terminal=terminal))))
    await client.agent("StartContainer", pb.StartContainerRequest(container_id=name))


async def read(client: Kata1Client, name: str, stream: int, exec_id: str = "") -> bytes:
    data = b""
    while True:
        reply = await client.guest("ReadStream", guest_pb2.ReadRequest(
            container_id=name, exec_id=exec_id, stream=stream, offset=len(data), ack=max(0, len(data) - 1000),
            max_len=100_000), timeout=None)
        assert reply.offset == len(data)
        data += reply.data
        if reply.eof:
            return data


def wait(client: Kata1Client, name: str, exec_id: str = "") -> Any:
    return client.guest("WaitProcess", guest_pb2.ProcessId(container_id=name, exec_id=exec_id), timeout=None)


def test_streams_and_exit(agent: Kata1Agent, tmp_path: Path) -> None:
    """Input and output with offsets, 3 MB each way, and WaitProcess only when all output was read."""
    data = os.urandom(3 << 20)

    async def use(client: Kata1Client) -> None:
        await start(client, "c", "sh", "-c", "cat; echo done >&2; exit 7")

        async def feed() -> None:
            at = 0
            while at < len(data):
                reply = await client.guest("WriteStream", guest_pb2.WriteRequest(
                    container_id="c", offset=at, data=data[at : at + 500_000]), timeout=None)
                at = reply.received
            # What was received already is passed over.
            await client.guest("WriteStream", guest_pb2.WriteRequest(
                container_id="c", offset=at - 5, data=data[-5:], eof=True))

        out, err, status, _ = await asyncio.gather(
            read(client, "c", 1), read(client, "c", 2), wait(client, "c"), feed())
        assert out == data
        assert err == b"done\n"
        assert status.status == 7
        assert (await wait(client, "c")).status == 7  # as often as one likes

    assert drive(agent, tmp_path, use) == []
    names = agent.names()
    assert names.count("WaitProcess") == 1
    assert names.index("WaitProcess") > max(i for i, name in enumerate(names) if name.startswith("Read"))


def test_exec_signal_and_terminal(agent: Kata1Agent, tmp_path: Path) -> None:
    async def use(client: Kata1Client) -> None:
        await start(client, "c", "sleep", "1000")
        await client.guest("PrepareProcess", guest_pb2.PrepareProcessRequest(container_id="c", exec_id="e"))
        await client.agent("ExecProcess", pb.ExecProcessRequest(
            container_id="c", exec_id="e", process=process("sh", "-c", "read x; stty size", terminal=True)))
        await client.agent("TtyWinResize", pb.TtyWinResizeRequest(container_id="c", exec_id="e", row=33, column=44))
        await client.guest("WriteStream", guest_pb2.WriteRequest(container_id="c", exec_id="e", data=b"go\n"))
        assert b"33 44" in await read(client, "c", 1, "e")
        assert (await wait(client, "c", "e")).status == 0
        await client.guest("ReleaseProcess", guest_pb2.ProcessId(container_id="c", exec_id="e"))
        with pytest.raises(GuestError, match="no process e"):
            await wait(client, "c", "e")
        await client.agent("SignalProcess", pb.SignalProcessRequest(container_id="c", exec_id="c", signal=9))
        assert (await wait(client, "c")).status == 137

    assert drive(agent, tmp_path, use) == []
    assert ("ReadStderr", "e") not in [(name, getattr(r, "exec_id", "")) for name, r in agent.calls]


def test_a_reader_that_does_not_read_holds_the_process_up(agent: Kata1Agent, tmp_path: Path) -> None:
    """A megabyte is kept and no more is asked for; nobody who wants it any more sets it going again."""
    async def use(client: Kata1Client) -> None:
        await start(client, "c", "sh", "-c", "head -c 8000000 /dev/zero; exit 3")
        output = client._processes["c", "c"].outputs[1]
        while len(output.data) < 1 << 20:
            await output.moved.wait()
        assert len(output.data) <= (1 << 20) + (64 << 10)
        await client.guest("ReadStream", guest_pb2.ReadRequest(container_id="c", stream=1, close=True))
        assert (await wait(client, "c")).status == 3

    drive(agent, tmp_path, use)


def test_events_and_details(agent: Kata1Agent, tmp_path: Path) -> None:
    async def use(client: Kata1Client) -> None:
        asking = asyncio.ensure_future(client.guest("GetEvent", guest_pb2.GetEventRequest(), timeout=None))
        with agent.oom:
            agent.ooms.append("c")
            agent.oom.notify_all()
        assert (await asking).oom.container_id == "c"
        assert (await client.guest("GuestStatus", Empty())).agent_version == "1.12.1"
        assert await client.guest("ContainerStats", guest_pb2.ContainerId(container_id="c"))

    assert drive(agent, tmp_path, use) == []


@pytest.mark.parametrize(("fields", "what"), [
    ({"unified": {"memory.high": "1"}}, "resources.unified"), ({"personality": 8}, "personality"),
    ({"process": {"seccomp_bpf": b"x"}}, "seccomp"), ({"process": {"has_umask": True, "umask": 7}}, "umask 0o7"),
    ({"mounts": [{"index": 1, "uid_mappings": [{"size": 1}]}]}, "idmapped mounts"),
    ({"start_container_hooks": [{"path": "/x"}]}, "startContainer hooks"),
])
def test_what_cannot_hold_is_refused_by_name(agent: Kata1Agent, tmp_path: Path, fields: Any, what: str) -> None:
    async def use(client: Kata1Client) -> None:
        with pytest.raises(UnsupportedError, match=what):
            await client.guest("PrepareContainer", guest_pb2.PrepareContainerRequest(container_id="c", **fields))
        with pytest.raises(UnsupportedError, match=what):
            await client.agent("CreateContainer", pb.CreateContainerRequest(container_id="c", exec_id="c"))

    drive(agent, tmp_path, use)
    assert "CreateContainer" not in agent.names()


def test_what_is_less_is_reported(agent: Kata1Agent, tmp_path: Path) -> None:
    async def use(client: Kata1Client) -> None:
        await client.guest("PrepareContainer", guest_pb2.PrepareContainerRequest(
            container_id="c", domainname="d", state_json="{}", mounts=[guest_pb2.MountExtras(index=2, copy_up=True)]))
        await client.guest("SetDnsRelay", guest_pb2.SetDnsRelayRequest(addresses=["127.0.0.11"]))
        for method, request, what in (("ListAll", Empty(), "taking over"), ("Personalize", Empty(), "templates")):
            with pytest.raises(UnsupportedError, match=what):
                await client.guest(method, request)

    reports = " ".join(drive(agent, tmp_path, use))
    for word in ("domain name", "tmpcopyup", "127.0.0.11"):
        assert word in reports


def test_what_kata1s_runtime_keeps_back(agent: Kata1Agent, tmp_path: Path) -> None:
    async def use(client: Kata1Client) -> None:
        spec = oci_pb2.Spec(Process=process("true"))
        for kind in ("pid", "network", "cgroup"):
            spec.Linux.Namespaces.add(Type=kind, Path="/x")
        spec.Linux.Resources.Pids.Limit = 5
        spec.Linux.Resources.Devices.add(Allow=False)
        spec.Linux.Resources.Memory.Limit = 7
        await client.agent("CreateContainer", pb.CreateContainerRequest(container_id="c", exec_id="c", OCI=spec))

    assert drive(agent, tmp_path, use) == ["c: a Kata 1.x agent does not limit pids"]
    linux = next(request for name, request in agent.calls if name == "CreateContainer").OCI.Linux
    assert [(n.Type, n.Path) for n in linux.Namespaces] == [("pid", "")]
    assert not linux.Resources.HasField("Pids") and not linux.Resources.Devices
    assert linux.Resources.Memory.Limit == 7


def test_the_guest_goes(agent: Kata1Agent, tmp_path: Path) -> None:
    """Whoever waits is told; nobody waits for ever."""
    async def use(client: Kata1Client) -> None:
        await start(client, "c", "sleep", "1000")
        with pytest.raises(NoAnswer, match="did not answer WaitProcess"):
            await client.guest("WaitProcess", guest_pb2.ProcessId(container_id="c"), timeout=0.1)
        waiting = asyncio.ensure_future(wait(client, "c"))
        reading = asyncio.ensure_future(read(client, "c", 1))
        await asyncio.sleep(0)
        agent.muxes[0].close()
        with pytest.raises(ChannelClosed):
            await waiting
        assert await reading == b""
        with pytest.raises(ChannelClosed):
            await client.check()

    drive(agent, tmp_path, use)


# --- the programs ---------------------------------------------------------------------------


@pytest.fixture
def served(agent: Kata1Agent, tmp_path: Path) -> Iterator[tuple[Program, str]]:
    """kata-proxy in front of the agent, and the socket it serves."""
    listen = str(tmp_path / "proxy.sock")
    with proxy(agent.path, listen) as program:
        yield program, listen


def test_kata_proxy(served: tuple[Program, str], agent: Kata1Agent) -> None:
    """Several clients, a stream each; the agent sees them end."""
    _program, listen = served
    for number in range(3):
        own = [("grpc.use_local_subchannel_pool", 1)]  # else they may share a connection
        with grpc.insecure_channel(f"unix:{listen}", own) as channel:
            stubs = Stubs(channel)
            assert stubs.Version().agent_version == "1.12.1"
            ids = {"container_id": "c", "exec_id": f"e{number}"}
            stubs.ExecProcess(process=process("sh", "-c", "cat; exit 4"), **ids)
            stubs.WriteStdin(data=b"hello", **ids)
            stubs.CloseStdin(**ids)
            assert read_all(stubs.ReadStdout, **ids) == b"hello"
            assert stubs.WaitProcess(**ids).status == 4
    mux = agent.muxes[0]
    assert len(agent.muxes) == 1 and sorted(mux.streams) == [1, 3, 5]
    assert mux.seen[0].type == 2  # who is there? before anything else
    with pytest.raises(grpc.RpcError) as info, grpc.insecure_channel(f"unix:{listen}") as channel:
        Stubs(channel).ListProcesses(container_id="c")
    assert info.value.code() == grpc.StatusCode.UNIMPLEMENTED  # the agent's own words


def test_kata_proxy_ends(agent: Kata1Agent, tmp_path: Path) -> None:
    for end, status, word in (
            (lambda p: p.signal(signal.SIGTERM), 0, "signal"), (lambda p: agent.muxes[-1].close(), 1, "closed")):
        listen = str(tmp_path / "proxy.sock")
        with proxy(agent.path, listen, "-log", "info", "-sandbox", "sb1") as program:
            with grpc.insecure_channel(f"unix:{listen}") as channel:
                Stubs(channel).Check()
            end(program)
            assert program.wait() == status
            assert word in program.errors() and "sandbox=sb1" in program.errors()
        assert not os.path.exists(listen)


def test_kata_proxy_waits_for_a_guest_that_boots(tmp_path: Path) -> None:
    """A runtime connects before the guest answers."""
    listen = str(tmp_path / "proxy.sock")
    late = Kata1Agent(tmp_path)
    path, late.path = late.path, str(tmp_path / "guest.sock")
    os.rename(path, late.path)
    gate = socket.socket(socket.AF_UNIX)
    gate.bind(path)
    gate.listen()
    try:
        with proxy(path, listen) as _program, grpc.insecure_channel(f"unix:{listen}") as channel:
            check = Stubs(channel).start("Check", timeout=60)
            near, _ = gate.accept()  # the port takes what is sent, and nobody answers yet
            assert near.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL)
            far = socket.socket(socket.AF_UNIX)
            far.connect(late.path)
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=_copy, args=(a, b), daemon=True).start()
            assert check.result().status == 1
    finally:
        late.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass


def test_console_lines_are_logged(agent: Kata1Agent, tmp_path: Path) -> None:
    console = socket.socket(socket.AF_UNIX)
    console.bind(str(tmp_path / "console.sock"))
    console.listen()
    with proxy(agent.path, str(tmp_path / "proxy.sock"), "-debug", "-agent-logs-socket",
               str(tmp_path / "console.sock")) as program:
        sock, _ = console.accept()
        sock.sendall(b"first\r\nsecond \x1b[31m line\n" + b"x" * 10_000 + b"\n")
        program.until_error_says("second ?[31m line")
        sock.close()


@pytest.mark.parametrize(("words", "status", "text"), [
    (["-listen-socket", "/x/y", "-mux-socket", "/x/z"], 1, "cannot listen on /x/y"),
    (["-listen-socket", "unix:///tmp/l"], 2, "-mux-socket is not set"),
    (["-mux-socket", "tcp://host:1", "-listen-socket", "unix:///tmp/l"], 2, "only unix sockets"),
    (["-nonsense"], 2, "flag provided but not defined: -nonsense"),
    (["-log", "loud", "-listen-socket", "/a", "-mux-socket", "/b"], 2, "not a valid log level"),
    (["--version"], 0, ""), (["-version=true"], 0, ""), (["-help"], 0, "-mux-socket string"),
    (["-debug=perhaps"], 2, "invalid boolean value"), (["-log"], 2, "flag needs an argument"),
    (["-debug", "word"], 2, "unexpected argument"),
])
def test_options_of_kata_proxy(words: list[str], status: int, text: str) -> None:
    done = subprocess.run([sys.executable, "-m", "kata.components.proxy", *words], capture_output=True, text=True,
                          timeout=60, env=os.environ | Program.ENVIRONMENT)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    if "version" in words[0]:
        assert done.stdout.startswith("kata-proxy version ")


def test_kata_proxy_without_a_machine(tmp_path: Path) -> None:
    with proxy(str(tmp_path / "none"), str(tmp_path / "proxy.sock")) as program:
        assert program.wait() == 1
        assert "cannot connect to the guest's port" in program.errors()


# --- kata-shim ------------------------------------------------------------------------------


@pytest.fixture
def stubs(served: tuple[Program, str]) -> Iterator[Stubs]:
    with grpc.insecure_channel(f"unix:{served[1]}") as channel:
        yield Stubs(channel)


def test_kata_shim(served: tuple[Program, str], stubs: Stubs) -> None:
    """Streams both ways, apart, 1 MB; the status is the process's."""
    data = os.urandom(1 << 20)
    ids = {"container_id": "c", "exec_id": "c"}
    stubs.CreateContainer(OCI=oci_pb2.Spec(Process=process("sh", "-c", "cat; echo done >&2; exit 5")), **ids)
    with shim(served[1], "c", "c") as program:
        stubs.StartContainer(container_id="c")
        out, err = program.process.communicate(data, timeout=60)
        assert out == data
        assert err == b"done\n"
        assert program.wait() == 5


def test_kata_shim_signals(served: tuple[Program, str], stubs: Stubs) -> None:
    ids = {"container_id": "c", "exec_id": "e"}
    script = "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    stubs.ExecProcess(process=process("sh", "-c", script), **ids)
    with shim(served[1], "c", "e") as program:
        assert program.line() == b"ready\n"
        program.signal(signal.SIGCHLD)
        program.signal(signal.SIGPIPE)
        program.signal(signal.SIGUSR1)
        assert program.line() == b"usr1\n"
        program.signal(signal.SIGTERM)
        assert program.line() == b"term\n"
        assert program.wait() == 9


def test_kata_shim_terminal(served: tuple[Program, str], stubs: Stubs, agent: Kata1Agent) -> None:
    """Its terminal is raw, has the same size as the process's, and is as before in the end."""
    ids = {"container_id": "c", "exec_id": "e"}
    stubs.ExecProcess(process=process("sh", "-c", "echo ready; read x; stty size; read y; stty size", terminal=True),
                      **ids)
    near, far = pty.openpty()
    before = termios.tcgetattr(far)
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 71, 0, 0))
    with shim(served[1], "c", "e", "-terminal", tty=far) as program:
        seen = _until(near, b"ready")
        os.write(near, b"a\r")
        seen += _until(near, b"31 71")
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 32, 72, 0, 0))
        program.signal(signal.SIGWINCH)
        agent.until("TtyWinResize", 2)
        os.write(near, b"b\r")
        _until(near, b"32 72")
        assert program.wait() == 0
        assert termios.tcgetattr(far) == before
    os.close(near)
    os.close(far)


def _until(fd: int, text: bytes) -> bytes:
    data = b""
    while text not in data:
        data += os.read(fd, 4096)
    return data


def test_kata_shim_fails_with_words(served: tuple[Program, str], tmp_path: Path) -> None:
    with shim(served[1], "c", "nosuch") as program:
        assert program.wait() == 1
        assert "nosuch not found" in program.errors()
    with shim(served[1], "c", "x", "-trace") as program:
        assert program.wait() == 1
        assert "no tracing" in program.errors()


def test_kata_shim_when_the_guest_goes(served: tuple[Program, str], stubs: Stubs, agent: Kata1Agent) -> None:
    ids = {"container_id": "c", "exec_id": "e"}
    stubs.ExecProcess(process=process("sh", "-c", "echo ready; sleep 1000"), **ids)
    with shim(served[1], "c", "e") as program:
        assert program.line() == b"ready\n"
        agent.muxes[0].close()
        assert program.wait() == 1
        assert "Traceback" not in program.errors()
