"""containerd by `ctr`: the runc shim with --runc-binary."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import leaks
from harness.bundle import SLEEPER
from harness.console import Terminal
from harness.containerd import Containerd
from harness.netns import NetworkNamespace
from harness.proc import Result, environment, tagged
from harness.runtime import Runtime
from harness.text import compare, script, sections
from harness.wait import eventually

from .conftest import new_name


class Ctr:
    """`ctr` with the runtime under test; containers from a folder as root, no image needed."""

    def __init__(self, containerd: Containerd, runtime: Runtime, rootfs: Path, state: Path) -> None:
        self.containerd = containerd
        self.runtime = runtime
        self.rootfs = rootfs
        self.state = state

    def __call__(self, *argv: str, input: str | None = None, timeout: float = 60) -> Result:
        return self.containerd.ctr("--namespace", "test", *argv, input=input, timeout=timeout)

    def run_argv(self, name: str, *options: str, command: str) -> list[str]:
        return [
            "run", "--runc-binary", self.runtime.path, "--runc-root", str(self.state), *options, "--rootfs",
            str(self.rootfs), name, "/bin/sh", "-c", command,
        ]  # fmt: skip

    def once(self, command: str, *options: str, input: str | None = None) -> Result:
        return self(*self.run_argv(new_name("ctr"), "--rm", *options, command=command), input=input, timeout=90)

    def tasks(self) -> dict[str, str]:
        rows = [line.split() for line in self("tasks", "ls").ok().stdout.splitlines()[1:]]
        return {row[0]: row[2] for row in rows if len(row) == 3}


@pytest.fixture(scope="module")
def ctr(runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, rootfs: Path) -> Iterator[Ctr]:
    if shutil.which("ctr") is None:
        pytest.skip("containerd is not installed")
    own_root = work_dir / "ctr-rootfs"
    shutil.copytree(rootfs, own_root, symlinks=True)
    netns = NetworkNamespace(f"{tag}c").create()
    containerd = Containerd(run_dir / "c", work_dir / "containerd", netns)
    containerd.start()
    ctr = Ctr(containerd, runtime, own_root, run_dir / "runc")
    yield ctr
    for name in ctr("containers", "ls", "-q").ok().out.split():
        ctr("tasks", "kill", "-s", "KILL", "-a", name)
        ctr("tasks", "rm", "-f", name)
        ctr("containers", "rm", name)
    problems = []
    try:
        eventually(
            "no shim", lambda: not [p for p in tagged([str(run_dir / "c")]) if "/usr/bin/containerd " not in p[1]], 20
        )
    except AssertionError as exc:
        problems.append(str(exc))
    containerd.stop()
    problems += [f"mount {m}" for m in leaks.mounts([str(run_dir / "c"), str(work_dir / "containerd")])]
    netns.delete()
    assert not problems, problems


@pytest.fixture
def start(ctr: Ctr) -> Iterator[Callable[..., str]]:
    names: list[str] = []

    def start(*options: str, command: str = SLEEPER) -> str:
        name = new_name("ctr")
        names.append(name)
        ctr(*ctr.run_argv(name, "--detach", *options, command=command)).ok()
        return name

    yield start
    for name in names:
        ctr("tasks", "kill", "-s", "KILL", "-a", name)

        def stopped(name: str = name) -> bool:
            return ctr.tasks().get(name, "STOPPED") == "STOPPED"

        eventually(f"{name} stopped", stopped, 30)
        ctr("tasks", "rm", "-f", name)
        ctr("containers", "rm", name).ok()


def test_run(ctr: Ctr) -> None:
    """Output, exit code, options; the error of a program that is not there is the runtime's."""
    result = ctr.once("echo out; echo err >&2; exit 3")
    assert (result.rc, result.stdout, result.stderr.splitlines()[0]) == (3, "out\n", "err"), result
    got = sections(
        ctr.once(
            script(env="echo $A", cwd="pwd", host="hostname", net="ls /sys/class/net", ro="touch /x 2>&1"),
            "--env", "A=b", "--cwd", "/tmp", "--read-only",
        ).ok().stdout
    )  # fmt: skip
    compare(got, {"env": "b", "cwd": "/tmp", "net": "lo", "ro": lambda v: "Read-only" in v})
    missing = ctr(
        "run", "--rm", "--runc-binary", ctr.runtime.path, "--runc-root", str(ctr.state), "--rootfs", str(ctr.rootfs),
        new_name("ctr"), "/nosuch/program",
    )  # fmt: skip
    assert missing.rc != 0 and "/nosuch/program" in missing.stderr, missing


def test_mounts(ctr: Ctr, work_dir: Path) -> None:
    """--mount of a host folder, read-only."""
    folder = work_dir / "ctr-volume"
    folder.mkdir()
    (folder / "f").write_text("host\n")
    options = ["--mount", f"type=bind,src={folder},dst=/v,options=rbind:ro"]
    assert ctr.once("cat /v/f; touch /v/x 2>/dev/null || echo ro", *options).ok().stdout == "host\nro\n"


def test_exec_kill_pause(ctr: Ctr, start: Callable[..., str]) -> None:
    """tasks exec, ps, metrics, pause, resume, kill; the exit status afterwards."""
    name = start(command="trap 'exit 6' TERM; while :; do sleep 3600 & wait $!; done")
    assert ctr.tasks()[name] == "RUNNING"
    result = ctr("tasks", "exec", "--exec-id", "e1", name, "/bin/sh", "-c", "hostname; exit 4")
    assert result.rc == 4, result
    assert ctr("tasks", "ps", name).ok().stdout.splitlines()[0].split()[0] == "PID"
    assert "memory" in ctr("tasks", "metrics", name).ok().stdout
    ctr("tasks", "pause", name).ok()
    assert ctr.tasks()[name] == "PAUSED"
    ctr("tasks", "resume", name).ok()
    assert ctr.tasks()[name] == "RUNNING"
    ctr("tasks", "kill", "-s", "TERM", name).ok()
    eventually("its end", lambda: ctr.tasks()[name] == "STOPPED", 30)
    assert "exit code 6" in ctr("tasks", "rm", name).ok().stderr


def test_terminal(ctr: Ctr) -> None:
    """--tty on a terminal."""
    master, slave = os.openpty()
    terminal = Terminal(master)
    terminal.resize(30, 90)
    argv = ["ctr", "--address", str(ctr.containerd.address), "--namespace", "test"]
    argv += ctr.run_argv(
        new_name("ctr"),
        "--rm",
        "--tty",
        command="test -t 0 && echo is a tty; while read x; do stty size; echo ok.; done; exit 2",
    )
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment())
    os.close(slave)
    terminal.expect("is a tty", 60)

    def size() -> str:
        terminal.type("x\n")
        return terminal.expect("ok.")

    eventually("the size inside", lambda: "30 90" in size(), 20, 0.2)
    terminal.type("\x04")
    assert process.wait(40) == 2
    terminal.close()


def test_unpleasant_end(ctr: Ctr, start: Callable[..., str]) -> None:
    """A task whose process is killed from the outside is stopped, with 137, and can be removed."""
    name = start()
    pid = next(int(line.split()[1]) for line in ctr("tasks", "ls").ok().stdout.splitlines() if line.startswith(name))
    os.kill(pid, 9)
    eventually("its end", lambda: ctr.tasks()[name] == "STOPPED", 30)
    assert "exit code 137" in ctr("tasks", "rm", name).ok().stderr
