"""A proxy is killed at any time: no byte, no exit code, no state is lost, and one successor comes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.console import ConsoleSocket
from harness.netns import NetworkNamespace
from harness.oci import Container, Launch, Oci
from harness.proc import environment
from harness.sandbox import Parts, kill
from harness.wait import Late, eventually

MIB = 1 << 20
SIZE = 20 * MIB


class Pump:
    """Feeds random bytes to a process that copies them back, and checks what comes."""

    def __init__(self, size: int, slow: bool = False) -> None:
        self.size = size
        self.slow = slow
        self.sent = hashlib.sha256()
        self.got = hashlib.sha256()
        self.count = 0
        self.reached = threading.Condition()

    def feed(self, pipe: int) -> None:
        with os.fdopen(pipe, "wb", buffering=0) as f:
            left = self.size
            while left:
                data = os.urandom(min(left, 100_003))
                self.sent.update(data)
                view = memoryview(data)
                while view:
                    view = view[f.write(view) :]
                left -= len(data)

    def take(self, pipe: int) -> None:
        with os.fdopen(pipe, "rb", buffering=0) as f:
            while data := f.read(50_021):
                with self.reached:
                    self.got.update(data)
                    self.count += len(data)
                    self.reached.notify_all()

    def until(self, count: int, timeout: float = 90) -> None:
        with self.reached:
            if not self.reached.wait_for(lambda: self.count >= count, timeout):
                raise Late(f"{self.count} of {count} bytes came within {timeout:g} s")

    def check(self) -> None:
        assert self.count == self.size, f"{self.size} bytes were sent, {self.count} came back"
        assert self.got.digest() == self.sent.digest(), "other bytes came back than were sent"


def pumped(argv: list[str], pump: Pump) -> tuple[Launch, list[threading.Thread]]:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    with open(os.devnull, "wb") as null:
        launch = Launch(argv, Path("/nonexistent"), in_read, out_write, null)
    os.close(in_read)
    os.close(out_write)
    threads = [threading.Thread(target=pump.feed, args=(in_write,), daemon=True),
               threading.Thread(target=pump.take, args=(out_read,), daemon=True)]
    for thread in threads:
        thread.start()
    return launch, threads


def test_streams_and_exit_survive(oci: Oci) -> None:
    """20 MiB through a container and back, the proxy killed three times on the way."""
    bundle = oci.bundle("cat; exit 7")
    with oci.container(bundle) as c:
        pump = Pump(SIZE)
        argv = oci.argv("run", "--keep", "--bundle", str(bundle.path), c.id)
        launch, threads = pumped(argv, pump)
        parts = Parts(oci.root, c.id)
        killed = []
        for part in (1, 2, 3):
            pump.until(SIZE * part // 4)
            killed.append(parts.kill_proxy())
        assert launch.verb_code(120) == 7
        for thread in threads:
            thread.join(10)
        pump.check()
        assert len(set(killed)) == 3, f"a proxy survived: {killed}"
        assert c.status == "stopped"
        assert parts.log().count("took over from an earlier proxy") == 3


def test_exec_streams_survive(oci: Oci) -> None:
    """A foreground exec is its own shim; it attaches again as well."""
    with oci.running(oci.bundle()) as c:
        pump = Pump(6 * MIB)
        launch, threads = pumped(oci.argv("exec", c.id, "sh", "-c", "cat; exit 9"), pump)
        pump.until(2 * MIB)
        Parts(oci.root, c.id).kill_proxy()
        assert launch.verb_code(120) == 9
        for thread in threads:
            thread.join(10)
        pump.check()


def test_slow_reader_survives(oci: Oci) -> None:
    """Output that waits everywhere on its way, in guest, proxy and shim, when the proxy is killed."""
    bundle = oci.bundle("head -c 4000000 /dev/zero | tr '\\0' x; echo end")
    with oci.container(bundle) as c:
        read, write = os.pipe()
        argv = oci.argv("run", "--keep", "--bundle", str(bundle.path), c.id)
        with open(os.devnull, "r+b") as null:
            launch = Launch(argv, Path("/nonexistent"), null, write, null)
        os.close(write)
        parts = Parts(oci.root, c.id)
        eventually("the container running", lambda: parts.state()["status"] == "running")
        with os.fdopen(read, "rb", buffering=0) as f:
            got = f.read(10)
            parts.kill_proxy()
            while data := f.read(1 << 16):
                got += data
        assert launch.verb_code(60) == 0
        assert got == b"x" * 4_000_000 + b"end\n", f"{len(got)} bytes, ends with {got[-20:]!r}"


def test_exit_while_there_is_no_proxy(oci: Oci) -> None:
    """The process writes and ends between two proxies; the shim hears of it from the second."""
    with oci.running(oci.bundle("sleep 1.5; echo last; exit 5")) as c:
        parts = Parts(oci.root, c.id)
        os.kill(parts.shim, signal.SIGSTOP)  # it would start a successor at once
        parts.kill_proxy()
        time.sleep(2.5)  # nobody is there to tell when the process has ended
        os.kill(parts.shim, signal.SIGCONT)
        assert c.wait(60) == 5
        assert c.stdout == "last\n"
        eventually("the container stopped", lambda: c.status == "stopped", 10)


def test_shim_ends_while_there_is_no_proxy(oci: Oci) -> None:
    """The process's host pid is dead, so the process dies when the next proxy looks."""
    with oci.running(oci.bundle()) as c:
        parts = Parts(oci.root, c.id)
        shim = parts.shim
        os.kill(shim, signal.SIGSTOP)
        parts.kill_proxy()
        kill(shim, "the shim")
        assert c.status == "stopped", "the record says what /proc says"
        # Any verb that needs the proxy brings the next one.
        assert oci.verb("exec", c.id, "true").rc != 0
        c.delete().ok()
        c.assert_gone()


def test_verbs_after_a_kill(oci: Oci) -> None:
    """Each verb right after the proxy was killed; then the container's end is as ever."""
    with oci.running(oci.bundle("trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done")) as c:
        parts = Parts(oci.root, c.id)
        before = c.state()
        parts.kill_proxy()
        assert c.state() == before
        assert c.exec("echo", "hello").ok().out == "hello"
        parts.kill_proxy()
        assert "sleep 0.1" in oci.verb("ps", c.id).ok().stdout
        pids = json.loads(oci.verb("ps", "--format", "json", c.id).ok().stdout)
        assert pids == [c.pid]
        parts.kill_proxy()
        oci.verb("pause", c.id).ok()
        parts.kill_proxy()
        assert c.status == "paused"
        oci.verb("resume", c.id).ok()
        assert json.loads(oci.verb("events", "--stats", c.id).ok().stdout)["type"] == "stats"
        assert len(parts.proxies()) == 1, parts.processes()
        parts.kill_proxy()
        c.kill("TERM").ok()
        assert c.wait() == 4
        eventually("the container stopped", lambda: c.status == "stopped", 10)
        parts.kill_proxy()
        c.delete().ok()
        c.assert_gone()


def test_parallel_revives_start_one_proxy(oci: Oci) -> None:
    with oci.running(oci.bundle()) as c:
        parts = Parts(oci.root, c.id)
        killed = parts.kill_proxy()
        verbs = [subprocess.Popen(oci.argv("exec", c.id, "echo", str(n)), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment())
                 for n in range(6)]
        said = [verb.communicate(timeout=120)[0].decode().strip() for verb in verbs]
        assert said == [str(n) for n in range(6)]
        assert parts.proxies() == [parts.proxy] != [killed]
        assert parts.log().count("took over from an earlier proxy") == 1


@pytest.fixture
def between(tag: str) -> Iterator[NetworkNamespace]:
    """A network namespace with one end of a veth pair, as engines make it; the other end is in the peer's."""
    peer = NetworkNamespace(f"{tag}-peer").create()
    inner = NetworkNamespace(f"{tag}-net").create()
    try:
        peer.run("ip", "link", "add", "host0", "type", "veth", "peer", "name", "eth0", "netns", inner.name).ok()
        peer.run("ip", "address", "add", "10.213.7.1/24", "dev", "host0").ok()
        peer.run("ip", "link", "set", "host0", "up").ok()
        inner.run("ip", "address", "add", "10.213.7.2/24", "dev", "eth0").ok()
        inner.run("ip", "link", "set", "eth0", "up").ok()
        yield inner
    finally:
        inner.delete()
        peer.delete()


def test_network_stays(oci: Oci, between: NetworkNamespace, tag: str) -> None:
    """The same wire carries on, interfaces that come later are seen, and nothing is left in an engine's namespace."""
    peer = NetworkNamespace(f"{tag}-peer")
    bundle = oci.bundle().in_network(between.path)
    with oci.running(bundle) as c:
        ping = ("ping", "-c", "1", "-W", "10", "10.213.7.1")
        c.exec(*ping).ok()
        parts = Parts(oci.root, c.id)
        wires = parts.record()["wires"]
        parts.kill_proxy()
        c.exec(*ping).ok()
        assert parts.record()["wires"] == wires, "the wire was made anew"
        peer.run("ip", "link", "add", "host1", "type", "veth", "peer", "name", "eth1", "netns", between.name).ok()
        peer.run("ip", "address", "add", "10.213.8.1/24", "dev", "host1").ok()
        peer.run("ip", "link", "set", "host1", "up").ok()
        between.run("ip", "address", "add", "10.213.8.2/24", "dev", "eth1").ok()
        between.run("ip", "link", "set", "eth1", "up").ok()
        eventually("eth1 in the guest", lambda: "10.213.8.2" in c.exec("ip", "address").stdout, 30, 0.5)
        parts.kill_proxy()
        c.exec("ping", "-c", "1", "-W", "10", "10.213.8.1").ok()
        c.delete("--force").ok()
        assert "ingress" not in between.run("tc", "qdisc", "show").stdout
        assert "kata" not in between.run("ip", "link").stdout


# --- killed in the middle of a verb ------------------------------------------------------


def interrupted(oci: Oci, c: Container, delay: float, *verb: str) -> int:
    """Start a verb, kill the proxy ``delay`` seconds later; the verb's exit code."""
    process = subprocess.Popen(oci.argv(*verb), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=environment())
    time.sleep(delay)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a delete may be over by now
        Parts(oci.root, c.id).kill_proxy()
    return process.wait(90)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2])
def test_killed_during_start(oci: Oci, delay: float) -> None:
    with oci.created(oci.bundle()) as c:
        code = interrupted(oci, c, delay, "start", c.id)
        c.exec("true").ok()
        status = c.status
        assert status in ("created", "running") and (code != 0 or status == "running"), (code, status)
        if status == "created":
            c.start().ok()
        assert c.status == "running"
        c.kill().ok()
        assert c.wait() == 137


@pytest.mark.parametrize("delay", [0.02, 0.08, 0.15, 0.3])
def test_killed_during_exec_and_delete(oci: Oci, delay: float) -> None:
    with oci.running(oci.bundle()) as c:
        interrupted(oci, c, delay, "exec", c.id, "sleep", "0.1")
        c.exec("true").ok()
        eventually("no process of the exec left", lambda: "sleep 0.1" not in oci.verb("ps", c.id).ok().stdout, 60, 1)
        assert c.status == "running"
        parts = Parts(oci.root, c.id)
        code = interrupted(oci, c, delay, "delete", "--force", c.id) if parts.proxies() else 0
        if code != 0:
            c.delete("--force").ok()
        c.assert_gone()


@pytest.mark.parametrize("moment", ["qemu", "agent.sock", "making", "created"])
def test_killed_during_create(oci: Oci, moment: str) -> None:
    """The creation fails and leaves nothing, or the container is whole."""
    with oci.container(oci.bundle()) as c:
        parts = Parts(oci.root, c.id)
        c.launch = Launch(oci.argv("create", "--bundle", str(c.bundle.path), "--pid-file", str(c.pid_file), c.id),
                          c.pid_file, subprocess.DEVNULL, subprocess.DEVNULL, subprocess.DEVNULL)

        def reached() -> bool:
            match moment:
                case "agent.sock":
                    return (parts.folder / "agent.sock").exists()
                case "making":
                    return c.id in parts.record()["containers"]
                case "created":
                    return parts.state()["status"] == "created"
            return "qemu" in parts.record()

        eventually(f"the creation to reach {moment}", reached, 60, 0.001)
        parts.kill_proxy()
        if c.launch.verb_code(120) == 0:
            c.start().ok()
            assert c.status == "running"
        else:
            c.assert_gone()


def test_killed_while_a_pod_grows(oci: Oci) -> None:
    """The half-made container is removed from guest and share; the pod lives on and takes it again."""
    pod = oci.bundle()
    pod.config["annotations"] = {"io.kubernetes.cri.container-type": "sandbox"}
    with oci.running(pod) as sandbox:
        member = oci.bundle()
        member.config["annotations"] = {"io.kubernetes.cri.container-type": "container",
                                        "io.kubernetes.cri.sandbox-id": sandbox.id}
        with oci.container(member) as c:
            parts = Parts(oci.root, sandbox.id)
            c.launch = Launch(oci.argv("create", "--bundle", str(member.path), "--pid-file", str(c.pid_file), c.id),
                              c.pid_file, subprocess.DEVNULL, subprocess.DEVNULL, subprocess.DEVNULL)
            eventually("the creation to begin", lambda: c.id in parts.record()["containers"], 60, 0.001)
            parts.kill_proxy()
            code = c.launch.verb_code(120)
            sandbox.exec("true").ok()
            if code != 0:
                eventually("the half-made container to be gone", lambda: c.id not in parts.record()["containers"], 10)
                c.launch_verb("create").ok()
            c.start().ok()
            assert c.status == "running"
            c.delete("--force").ok()
        assert sandbox.status == "running"


def test_output_after_the_exit_survives(oci: Oci) -> None:
    """A child of the process still writes when its exit was reported and the proxy is killed."""
    with oci.running(oci.bundle()) as c:
        verb = subprocess.Popen(oci.argv("exec", c.id, "sh", "-c", "(sleep 3; echo late) & exit 4"),
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                env=environment())
        assert verb.wait(30) == 4
        Parts(oci.root, c.id).kill_proxy()
        assert verb.stdout is not None
        assert verb.stdout.read() == b"late\n"


def test_terminal_survives(oci: Oci) -> None:
    """What is typed and shown while there is no proxy comes when there is one; so does a resize."""
    bundle = oci.bundle("while read line; do echo \"[$line] $(stty size)\"; done; exit 4")
    bundle.process["terminal"] = True
    with ConsoleSocket(oci.run_dir / "t.sock") as socket, oci.container(bundle) as c:
        c.launch_verb("create", "--console-socket", str(socket.path)).ok()
        terminal = socket.receive()
        c.start().ok()
        terminal.resize(30, 90)
        terminal.type("one\n")
        terminal.expect("[one] 30 90\r\n")
        parts = Parts(oci.root, c.id)
        os.kill(parts.shim, signal.SIGSTOP)
        parts.kill_proxy()
        terminal.type("two\n")
        terminal.resize(31, 91)
        os.kill(parts.shim, signal.SIGCONT)
        terminal.expect("[two]")
        terminal.type("three\n")
        terminal.expect("[three] 31 91\r\n")
        terminal.type("\x04")
        assert c.wait() == 4
        terminal.drain()
