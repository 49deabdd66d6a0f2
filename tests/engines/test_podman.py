"""podman as root with cgroupfs: run, exec, life, pods with an infra container, networks, volumes."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.bundle import SLEEPER
from harness.podman import IMAGE, Podman
from harness.proc import Result
from harness.runtime import Runtime
from harness.text import compare, mask, script, sections, status
from harness.wait import eventually

from .conftest import new_name

Once = Callable[..., Result]


@pytest.fixture(scope="module")
def podman(runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, rootfs: Path) -> Iterator[Podman]:
    """A private podman, for this module."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    podman = Podman(runtime, tag, run_dir, work_dir)
    podman.start(rootfs)
    yield podman
    podman.stop()


@pytest.fixture
def once(podman: Podman) -> Once:
    def once(text: str, *options: str, input: str | None = None) -> Result:
        return podman("run", "--rm", *options, IMAGE, "sh", "-c", text, input=input)

    return once


@pytest.fixture
def start(podman: Podman) -> Iterator[Callable[..., str]]:
    names: list[str] = []

    def start(*options: str, text: str = SLEEPER) -> str:
        name = new_name("p")
        names.append(name)
        podman("run", "-d", "--name", name, *options, IMAGE, "sh", "-c", text).ok()
        return name

    yield start
    for name in names:
        podman("rm", "-f", "-t", "0", "-i", name).ok()


def test_run(once: Once) -> None:
    """What a container finds, with podman's defaults and many options."""
    checks = script(
        id="id -u; id -g; id -G",
        cwd="pwd",
        env="echo $IMAGE_WORD $A $container",
        hostname="hostname",
        hosts="grep -c friend /etc/hosts; test -s /etc/resolv.conf && echo resolv",
        limits="ulimit -n",
        caps=status("CapBnd"),
        seccomp=status("Seccomp"),
        nnp=status("NoNewPrivs"),
        sysctl="cat /proc/sys/net/core/somaxconn",
        tmpfs="stat -c %a /t; df -k /t | awk 'END { print $2 }'",
        shm="df -k /dev/shm | awk 'END { print $2 }'",
        ro="touch /x 2>&1",
        memory="cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
        first="tr '\\0' ' ' < /proc/1/cmdline; echo; echo $$",
        containerenv="grep -c . /run/.containerenv",
    )
    options = [
        "--user", "1000:100", "--group-add", "44", "--workdir", "/tmp", "-e", "A=b c", "--hostname", "named",
        "--add-host", "friend:10.1.2.3", "--ulimit", "nofile=321:654",
        "--ulimit", "nproc=500:500", "--cap-drop", "all", "--cap-add", "KILL",
        "--security-opt", "no-new-privileges", "--sysctl", "net.core.somaxconn=555", "--tmpfs", "/t:size=1m,mode=1777",
        "--shm-size", "4m", "--read-only", "--memory", "100m", "--init",
    ]  # fmt: skip
    got = sections(once(checks, *options).ok().stdout)
    compare(
        got,
        {
            "id": "1000\n100\n100 44", "cwd": "/tmp", "env": "image b c podman", "hostname": "named",
            "hosts": "1\nresolv", "limits": "321", "caps": mask(1 << 5), "seccomp": "2", "nnp": "1", "sysctl": "555",
            "tmpfs": "1777\n1024", "shm": "4096", "ro": lambda v: "Read-only" in v, "memory": str(100 << 20),
            "first": lambda v: "init" in v.splitlines()[0] and v.splitlines()[-1] != "1",
        },
    )  # fmt: skip


def test_exit_codes_and_streams(podman: Podman, once: Once) -> None:
    result = once("cat; echo err >&2; exit 7", "-i", input="some input\n" * 5000)
    assert (result.rc, result.stderr) == (7, "err\n")
    assert result.stdout == "some input\n" * 5000
    missing = podman("run", "--rm", IMAGE, "/nosuch")
    assert missing.rc == 127 and "/nosuch" in missing.stderr, missing
    denied = podman("run", "--rm", IMAGE, "/etc/passwd")
    assert denied.rc == 126 and "denied" in denied.stderr, denied
    terminal = podman("run", "--rm", "-t", IMAGE, "sh", "-c", "test -t 1 && echo tty")
    assert terminal.ok().stdout == "tty\r\n", terminal


def test_exec(podman: Podman, start: Callable[..., str]) -> None:
    """exec with options, exit codes, streams; ten at once."""
    name = start()
    result = podman.sh(name, "id -u; pwd; echo $A; exit 5", "-u", "1000", "-w", "/tmp", "-e", "A=x")
    assert (result.rc, result.stdout) == (5, "1000\n/tmp\nx\n")
    assert podman("exec", "-i", name, "cat", input="through\n").ok().stdout == "through\n"
    assert podman("exec", name, "/nosuch").rc == 127

    def one(number: int) -> None:
        result = podman("exec", "-i", name, "sh", "-c", f"cat; exit {number}", input=f"{number}\n")
        assert (result.rc, result.stdout) == (number, f"{number}\n"), result

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for future in [pool.submit(one, n) for n in range(10)]:
            future.result()


def test_life(podman: Podman, start: Callable[..., str]) -> None:
    """stop, start, restart, kill, pause, top, stats, logs, wait."""
    name = start(text="trap 'exit 4' TERM; echo up; while :; do sleep 3600 & wait $!; done")

    def ups() -> int:
        return podman("logs", name).ok().stdout.count("up")

    eventually("its output", lambda: ups() == 1)
    assert "sleep" in podman("top", name, "args").ok().stdout
    stats = json.loads(podman("stats", "--no-stream", "--format", "json", name).ok().stdout)[0]
    assert int(stats["pids"]) >= 1 and stats["mem_usage"], stats
    podman("pause", name).ok()
    assert podman.inspect(name)["State"]["Status"] == "paused"
    podman("unpause", name).ok()
    podman("stop", name).ok()
    state = podman.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 4)
    podman("start", name).ok()
    eventually("a second run", lambda: ups() == 2)
    podman("restart", name).ok()
    eventually("a third run", lambda: ups() == 3)
    podman("kill", name).ok()
    assert podman("wait", name).ok().out == "137"


def test_out_of_memory(podman: Podman, start: Callable[..., str]) -> None:
    name = start("--memory", "48m", "--memory-swap", "48m", text="exec dd if=/dev/zero of=/dev/null bs=400M count=1")
    assert podman("wait", name).ok().out == "137"
    assert podman.inspect(name)["State"]["Status"] == "exited"


def test_update_by_restart_policy(podman: Podman, start: Callable[..., str]) -> None:
    """conmon brings a container back as its policy says."""
    name = start("--restart", "on-failure:2", text="echo try; exit 3")
    eventually("three tries", lambda: podman("logs", name).ok().stdout.count("try") == 3, 90)
    eventually("its end", lambda: podman.inspect(name)["State"]["Status"] == "exited", 30)


def test_volumes(podman: Podman, once: Once, work_dir: Path) -> None:
    """Bind mounts and named volumes, which are filled from the image and kept."""
    folder = work_dir / "podman volume"
    folder.mkdir()
    (folder / "f").write_text("host\n")
    got = once(
        "cat /v/f /ro/f; echo in > /v/new; touch /ro/x 2>/dev/null || echo ro",
        "-v", f"{folder}:/v", "-v", f"{folder}:/ro:ro",
    ).ok()  # fmt: skip
    assert got.stdout == "host\nhost\nro\n", got
    assert (folder / "new").read_text() == "in\n"
    assert once("ls /etc/passwd; echo kept > /etc/mine", "-v", "named:/etc").ok().out == "/etc/passwd"
    assert once("cat /again/mine", "-v", "named:/again").ok().out == "kept"
    shutil.rmtree(folder)


def test_pod(podman: Podman) -> None:
    """A pod with an infra container: shared network, ipc and uts; its end ends all."""
    podman("pod", "create", "--name", "pod1", "--hostname", "podhost").ok()
    try:
        serve = "mkdir /www; echo served > /www/f; exec httpd -f -p 80 -h /www"
        podman("run", "-d", "--pod", "pod1", "--name", "server", IMAGE, "sh", "-c", serve).ok()
        podman("run", "-d", "--pod", "pod1", "--name", "other", IMAGE, "sh", "-c", SLEEPER).ok()
        fetch = "printf 'GET /f HTTP/1.0\\r\\n\\r\\n' | nc -w 10 127.0.0.1 80 | tail -1"
        assert eventually("the server", lambda: podman.sh("other", fetch).out, 30) == "served"
        got = sections(
            podman.sh(
                "other",
                script(hostname="hostname", pid="tr '\\0' ' ' < /proc/1/cmdline | cut -c1-7",
                       shm="echo x > /dev/shm/shared", root="test -e /www || echo own root"),
            ).ok().stdout
        )  # fmt: skip
        compare(got, {"hostname": "podhost", "pid": lambda v: "sh" in v, "root": "own root"})
        assert podman.sh("server", "cat /dev/shm/shared").ok().out == "x"
        if podman.runtime.is_vm:
            boot = {podman.sh(n, "cat /proc/sys/kernel/random/boot_id").ok().out for n in ("server", "other")}
            assert len(boot) == 1, "the containers of a pod are in several machines"
        address = podman.sh("server", "ip -o -4 addr show eth0 | awk '{ print $4 }'").ok().out
        assert podman.sh("other", "ip -o -4 addr show eth0 | awk '{ print $4 }'").ok().out == address
        joined = podman("run", "--rm", "--pod", "pod1", IMAGE, "sh", "-c", fetch)
        assert joined.ok().out == "served", joined
        podman("pod", "stop", "-t", "1", "pod1", timeout=120).ok()
        podman("pod", "start", "pod1", timeout=120).ok()
        eventually("the server again", lambda: podman.sh("other", fetch).out == "served", 60)
        assert podman("pod", "inspect", "-f", "{{.State}}", "pod1").ok().out == "Running"
    finally:
        podman("pod", "rm", "-f", "-t", "0", "pod1", timeout=120).ok()


def test_networks(podman: Podman, once: Once, start: Callable[..., str]) -> None:
    """Own networks with names, published ports, none; the default bridge's gateway; host is refused."""
    podman("network", "create", "--subnet", "10.91.0.0/24", "net1").ok()
    try:
        serve = "mkdir /www; echo served > /www/f; exec httpd -f -p 80 -h /www"
        name = start("--network", "net1", "-p", "8081:80", text=serve)
        fetch = f"printf 'GET /f HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {name} 80 | tail -1"
        assert once(f"sleep 1; {fetch}", "--network", "net1").ok().out == "served"
        code = "import urllib.request as u; print(u.urlopen('http://10.91.0.1:8081/f', timeout=20).read().decode())"
        assert podman.netns.run("python3", "-I", "-c", code).ok().out == "served"
        assert once("ls /sys/class/net; ping -c 1 127.0.0.1 | grep -c ' 0%'", "--network", "none").ok().out == "lo\n1"
        routed = once("ping -c 1 -W 10 $(ip route | awk '/^default/ { print $3 }') | grep -c ' 0%'")
        assert routed.ok().out == "1", routed
        if podman.runtime.is_vm:
            refused = once("true", "--network", "host").fails()
            assert "host" in refused.stderr and "network" in refused.stderr, refused
        podman("rm", "-f", "-t", "0", name).ok()
    finally:
        podman("network", "rm", "-f", "net1").ok()


def test_connect_while_running(podman: Podman, start: Callable[..., str]) -> None:
    """network connect and disconnect of a running container."""
    podman("network", "create", "--subnet", "10.92.0.0/24", "net2").ok()
    try:
        name = start("--network", "podman")
        if podman("network", "connect", "net2", name).rc != 0:
            pytest.skip("this podman does not connect containers of its default network")
        eventually("the address inside", lambda: "10.92.0." in podman.sh(name, "ip -o addr").ok().stdout, 30)
        podman("network", "disconnect", "net2", name).ok()
        eventually("its end", lambda: "10.92.0." not in podman.sh(name, "ip -o addr").ok().stdout, 30)
        podman("rm", "-f", "-t", "0", name).ok()
    finally:
        podman("network", "rm", "-f", "net2").ok()


def test_commit_and_checkpoint(podman: Podman, start: Callable[..., str]) -> None:
    """commit and diff see what was changed; checkpoint, which no machine can do, is refused with a reason."""
    name = start()
    podman.sh(name, "echo made > /made").ok()
    assert "A /made" in podman("diff", name).ok().stdout
    podman("commit", "-q", name, "localhost/made:test").ok()
    assert podman("run", "--rm", "localhost/made:test", "cat", "/made").ok().out == "made"
    podman("rmi", "-f", "localhost/made:test").ok()
    if podman.runtime.is_vm:
        assert podman("checkpoint", name).fails().stderr.strip()
