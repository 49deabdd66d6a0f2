"""podman 5: everyday work, folded into few containers; the suite for podman 4 goes into depth."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from harness.bundle import SLEEPER
from harness.podman import IMAGE, Podman
from harness.text import compare, mask, script, sections, status
from harness.wait import eventually

from .test_docker import FETCH, SERVE

StartPodman = Callable[..., str]


def test_run(podman: Podman) -> None:
    """Streams, exit code, kernel, and what options make of a container; failures keep their codes."""
    assert podman("version", "--format", "{{.Client.Version}}").ok().out.startswith("5.")
    checks = script(
        kernel="uname -r",
        id="id -u; id -G; pwd",
        env="echo $IMAGE_WORD $A $container",
        hostname="hostname",
        caps=status("CapBnd"),
        seccomp=status("Seccomp"),
        tmpfs="stat -c %a /t; df -k /t | awk 'END { print $2 }'",
        shm="df -k /dev/shm | awk 'END { print $2 }'",
        memory="cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
        ro="touch /x 2>&1",
        stdin="cat",
    )
    options = [
        "-i", "--user", "1000:100", "--group-add", "44", "-w", "/tmp", "-e", "A=b", "--hostname", "named", "--cap-drop",
        "all", "--cap-add", "KILL", "--tmpfs", "/t:size=1m,mode=1777", "--shm-size", "4m", "--memory", "96m",
        "--read-only", "--read-only-tmpfs=false", "--init",
    ]  # fmt: skip
    argv = [*options, IMAGE, "sh", "-c", f"{checks}; echo err >&2; exit 7"]
    result = podman("run", "--rm", *argv, input="some input\n" * 3)
    assert (result.rc, result.stderr) == (7, "err\n"), result
    host = os.uname().release

    def kernel(inside: str) -> bool:
        return inside != host if podman.runtime.is_vm else inside == host

    compare(
        sections(result.stdout),
        {
            "kernel": kernel, "id": "1000\n100 44\n/tmp", "env": "image b podman", "hostname": "named",
            "caps": mask(1 << 5), "seccomp": "2", "tmpfs": "1777\n1024", "shm": "4096", "memory": str(96 << 20),
            "ro": lambda v: "Read-only" in v, "stdin": "some input\nsome input\nsome input",
        },
    )  # fmt: skip
    for program, code in (("/nosuch", 127), ("/etc/passwd", 126)):
        failed = podman("run", "--rm", IMAGE, program).fails(code)
        assert program in failed.stderr, failed
    assert podman("run", "--rm", "-t", IMAGE, "sh", "-c", "test -t 1 && echo tty").ok().stdout == "tty\r\n"


def test_life(podman: Podman, start_podman: StartPodman) -> None:
    """exec, top, stats, pause, stop, start, restart, kill, logs, wait of one container."""
    name = start_podman(script="trap 'exit 4' TERM; echo up; while :; do sleep 3600 & wait $!; done")

    def ups() -> int:
        return podman("logs", name).ok().stdout.count("up")

    eventually("its output", lambda: ups() == 1)
    result = podman.sh(name, "id -u; pwd; echo $A; echo err >&2; exit 3", "-u", "1000", "-w", "/tmp", "-e", "A=b")
    assert (result.rc, result.stdout, result.stderr) == (3, "1000\n/tmp\nb\n", "err\n"), result
    assert podman("exec", "-i", name, "cat", input="through\n").ok().stdout == "through\n"
    assert podman("exec", name, "/nosuch").rc == 127
    assert "sleep" in podman("top", name, "args").ok().stdout
    stats = json.loads(podman("stats", "--no-stream", "--format", "json", name).ok().stdout)[0]
    assert int(stats["pids"]) >= 1 and stats["mem_usage"], stats
    podman("pause", name).ok()
    assert podman.inspect(name)["State"]["Status"] == "paused"
    podman("unpause", name).ok()
    podman("update", "--memory", "192m", "--cpus", "0.75", name).ok()
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
    assert podman.sh(name, limit).ok().out == str(192 << 20)
    podman("stop", name).ok()
    state = podman.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 4), state
    podman("start", name).ok()
    eventually("a second run", lambda: ups() == 2)
    podman("restart", name).ok()
    eventually("a third run", lambda: ups() == 3)
    podman("kill", name).ok()
    assert podman("wait", name).ok().out == "137"


def test_volumes(podman: Podman, start_podman: StartPodman, work_dir: Path) -> None:
    """A folder of the host, a named volume filled from the image, commit."""
    folder = work_dir / "podman 5 volume"
    folder.mkdir()
    (folder / "f").write_text("host\n")
    name = start_podman("-v", f"{folder}:/v", "-v", f"{folder}:/ro:ro", "-v", "named5:/etc")
    got = podman.sh(name, "cat /v/f /ro/f; echo in > /v/new; touch /ro/x 2>/dev/null || echo ro; ls /etc/passwd").ok()
    assert got.stdout == "host\nhost\nro\n/etc/passwd\n", got
    assert (folder / "new").read_text() == "in\n"
    podman.sh(name, "echo made > /root/made; echo kept > /etc/mine").ok()
    podman("commit", "-q", name, "localhost/made:test").ok()
    podman("rm", "-f", "-t", "0", name).ok()
    again = podman("run", "--rm", "-v", "named5:/again", "localhost/made:test", "cat", "/again/mine", "/root/made")
    assert again.ok().stdout == "kept\nmade\n", again
    podman("rmi", "-f", "localhost/made:test").ok()
    podman("volume", "rm", "named5").ok()
    shutil.rmtree(folder)


def test_copy(podman: Podman) -> None:
    """cp into a container that was created, out of it and into it while it runs."""
    copied = podman.run_dir / "copied"
    copied.write_text("copied\n")
    command = ["sh", "-c", f"cat /root/copied; {SLEEPER}"]
    podman("create", "--name", "copies", IMAGE, *command).ok()
    try:
        podman("cp", str(copied), "copies:/root/copied").ok()
        podman("start", "copies").ok()
        eventually("what was copied", lambda: podman("logs", "copies").ok().stdout == "copied\n", 30)
        podman("cp", str(copied), "copies:/root/again").ok()
        assert podman.sh("copies", "cat /root/again").ok().stdout == "copied\n"
        podman("cp", "copies:/etc/os-release", str(copied)).ok()
        assert "A root of busybox" in copied.read_text()
    finally:
        podman("rm", "-f", "-t", "0", "copies").ok()


def test_pod(podman: Podman) -> None:
    """A pod with an infra container: one machine for all of it; network, ipc and uts are shared."""
    podman("pod", "create", "--name", "pod5", "--hostname", "podhost").ok()
    try:
        podman("run", "-d", "--pod", "pod5", "--name", "server5", IMAGE, "sh", "-c", SERVE).ok()
        podman("run", "-d", "--pod", "pod5", "--name", "other5", IMAGE, "sh", "-c", SLEEPER).ok()
        fetch = FETCH.format("127.0.0.1")
        assert eventually("the server", lambda: podman.sh("other5", fetch).out, 30) == "podhost"
        checks = script(hostname="hostname", shm="echo x > /dev/shm/shared", root="test -e /www || echo own root")
        compare(sections(podman.sh("other5", checks).ok().stdout), {"hostname": "podhost", "root": "own root"})
        assert podman.sh("server5", "cat /dev/shm/shared").ok().out == "x"
        boot, address = "cat /proc/sys/kernel/random/boot_id", "ip -o -4 addr show eth0 | awk '{ print $4 }'"
        for same in (boot, address):
            assert podman.sh("server5", same).ok().out == podman.sh("other5", same).ok().out
        if podman.runtime.is_vm:
            own = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            assert podman.sh("other5", boot).ok().out != own
        podman("pod", "stop", "-t", "1", "pod5", timeout=120).ok()
        podman("pod", "start", "pod5", timeout=120).ok()
        assert eventually("the server again", lambda: podman.sh("other5", fetch).out, 60) == "podhost"
    finally:
        podman("pod", "rm", "-f", "-t", "0", "pod5", timeout=120).ok()


def test_networks(podman: Podman, start_podman: StartPodman) -> None:
    """Names on a network of its own, IPv6, a published port, a network more while running, none."""
    for network, options in (("net5", ["--ipv6", "--subnet", "10.95.0.0/24", "--subnet", "fd00:beef:5::/64"]),
                             ("late5", ["--subnet", "10.96.0.0/24"])):  # fmt: skip
        podman("network", "create", *options, network).ok()
    try:
        web = start_podman("--network", "net5", "-p", "8085:80", "--hostname", "web", script=SERVE)
        other = start_podman("--network", "net5", "--cap-add", "NET_RAW")
        assert eventually("an answer", lambda: podman.sh(other, FETCH.format(web)).out, 60) == "web"
        code = "import urllib.request as u; print(u.urlopen('http://10.95.0.1:8085/name', timeout=30).read().decode())"
        assert podman.netns.run(sys.executable, "-I", "-c", code).ok().out == "web"
        assert podman.sh(other, f"ping -6 -c 1 -W 10 {web} | grep -c ' 0% packet loss'").ok().out == "1"
        podman("network", "connect", "late5", other).ok()
        eventually("the address inside", lambda: "10.96.0." in podman.sh(other, "ip -o addr").ok().stdout, 30)
        podman("network", "disconnect", "late5", other).ok()
        eventually("its end", lambda: "10.96.0." not in podman.sh(other, "ip -o addr").ok().stdout, 30)
        podman("rm", "-f", "-t", "0", web, other).ok()
        none = podman("run", "--rm", "--network", "none", IMAGE, "ls", "/sys/class/net")
        assert none.ok().out == "lo", none
    finally:
        podman("network", "rm", "-f", "net5", "late5").ok()
