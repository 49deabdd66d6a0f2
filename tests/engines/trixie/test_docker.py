"""Docker 26: everyday work, folded into few containers; the suite for docker 20 goes into depth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.dockerd import IMAGE, Docker
from harness.proc import Result, run, tagged
from harness.text import compare, script, sections, status
from harness.wait import eventually

from ..conftest import Start, new_name

Once = Callable[..., Result]

#: Shell: a web server that tells the container's name, and a client (busybox-static's wget crashes).
SERVE = "mkdir -p /www; hostname > /www/name; exec httpd -f -p 80 -h /www"
FETCH = "printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {} 80 | sed '1,/^\\r$/d'"


@pytest.fixture
def networks(docker: Docker) -> Iterator[Callable[..., str]]:
    """Make networks that are gone after the test."""
    made: list[str] = []

    def make(*options: str) -> str:
        name = new_name("net")
        docker("network", "create", *options, name).ok()
        made.append(name)
        return name

    yield make
    mine = docker("ps", "-aq", "--filter", "label=test=this").ok().out.split()
    if mine:
        docker("rm", "-f", *mine, timeout=120).ok()
    for name in made:
        docker("network", "rm", name).ok()


def answers(docker: Docker, url: str) -> str:
    """Wait until a URL is served on the docker host's network."""
    code = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"
    argv = docker.netns.argv(sys.executable, "-I", "-c", code, url)

    def served() -> str:
        got = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, text=True)
        return got.stdout.strip()

    return eventually(f"an answer from {url}", served, 90)


def test_versions(docker: Docker) -> None:
    """This is docker 26 with containerd 1.7, which the folder is for."""
    engine = json.loads(docker("version", "--format", "{{json .Server}}").ok().stdout)
    versions = {c["Name"]: c["Version"] for c in engine["Components"]}
    assert versions["Engine"].startswith("26.") and versions["containerd"].startswith("1.7"), versions


def test_run(docker: Docker, once: Once) -> None:
    """Streams, exit code, kernel, and what options make of a container."""
    checks = script(
        kernel="uname -r",
        id="id -u; id -G; pwd",
        env="echo $IMAGE_WORD $A",
        hostname="hostname",
        files='for f in hosts hostname resolv.conf; do grep -c " /etc/$f " /proc/self/mountinfo; done',
        caps=status("CapBnd"),
        seccomp=status("Seccomp"),
        nnp=status("NoNewPrivs"),
        nofile="ulimit -n",
        tmpfs="stat -c %a /t; df -k /t | awk 'END { print $2 }'",
        shm="df -k /dev/shm | awk 'END { print $2 }'",
        memory="cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
        ro="touch /x 2>&1",
        first="tr '\\0' ' ' < /proc/1/cmdline; echo; echo $$",
        stdin="cat",
    )
    options = [
        "-i", "--user", "1000:100", "--group-add", "44", "-w", "/tmp", "-e", "A=b", "--hostname", "named",
        "--cap-drop", "ALL", "--cap-add", "KILL", "--security-opt", "no-new-privileges", "--ulimit", "nofile=321:654",
        "--tmpfs", "/t:size=1m,mode=1777", "--shm-size", "4m", "--memory", "96m", "--read-only", "--init",
    ]  # fmt: skip
    result = once(f"{checks}; echo err >&2; exit 7", *options, input="some input\n" * 3)
    assert (result.rc, result.stderr) == (7, "err\n"), result
    host = os.uname().release

    def kernel(inside: str) -> bool:
        return inside != host if docker.runtime.is_vm else inside == host

    compare(
        sections(result.stdout),
        {
            "kernel": kernel, "id": "1000\n100 44\n/tmp", "env": "image b", "hostname": "named", "files": "1\n1\n1",
            "caps": f"{1 << 5:016x}", "seccomp": "2", "nnp": "1", "nofile": "321", "tmpfs": "1777\n1024",
            "shm": "4096", "memory": str(96 << 20), "ro": lambda v: "Read-only" in v,
            "first": lambda v: "init" in v.splitlines()[0] and v.splitlines()[-1] != "1",
            "stdin": "some input\nsome input\nsome input",
        },
    )  # fmt: skip


@pytest.mark.vm_only
def test_template_is_read_only(docker: Docker, start: Start) -> None:
    """QEMU 10 cannot write to the memory that all clones of a template begin with."""
    full_id = docker("inspect", "--format", "{{.Id}}", start()).ok().out
    (qemu,) = [pid for pid, words in tagged([f"sandbox-{full_id[:12]},"]) if "rom=off" in words]
    fds = [fd.name for fd in Path(f"/proc/{qemu}/fd").iterdir() if os.readlink(fd).endswith("/memory")]
    flags = [line.split()[1] for fd in fds for line in Path(f"/proc/{qemu}/fdinfo/{fd}").read_text().splitlines()
             if line.startswith("flags:")]
    assert flags and all(int(each, 8) & os.O_ACCMODE == os.O_RDONLY for each in flags), flags


def test_failures(docker: Docker, once: Once) -> None:
    """A program that is absent or may not be executed: docker's own codes, and a message that names it."""
    for program, code in (("/nosuch/program", 127), ("/etc/passwd", 126)):
        result = docker("run", "--rm", "--label", "test=this", IMAGE, program).fails(code)
        assert program in result.stderr, result
    if docker.runtime.is_vm:
        refused = once("true", "--network", "host").fails()
        assert "network" in refused.stderr and "host" in refused.stderr, refused


def test_terminal(docker: Docker, once: Once) -> None:
    result = once("test -t 0 && test -t 1 && echo tty; echo err >&2; exit 5", "-t")
    assert (result.rc, result.stdout) == (5, "tty\r\nerr\r\n"), result


def test_life(docker: Docker, start: Start) -> None:
    """exec, logs, top, pause, stop, start, restart, kill of one container."""
    name = start(
        script="trap 'echo bye; exit 4' TERM; echo run >> /runs; echo up; while :; do sleep 3600 & wait $!; done"
    )
    docker.wait_logs(name, "up")
    result = docker.sh(name, "id -u; pwd; echo $A; echo err >&2; exit 3", "-u", "1000", "-w", "/tmp", "-e", "A=b")
    assert (result.rc, result.stdout, result.stderr) == (3, "1000\n/tmp\nb\n", "err\n"), result
    assert docker("exec", "-i", name, "cat", input="through\n").ok().stdout == "through\n"
    assert "\r\n" in docker("exec", "-t", name, "tty").ok().stdout
    assert docker("exec", name, "/nosuch").rc in (126, 127)
    rows = docker("top", name).ok().stdout
    assert any("sleep 3600" in row for row in rows.splitlines()[1:]), rows
    docker("pause", name).ok()
    assert docker.state(name)["Status"] == "paused"
    docker("unpause", name).ok()
    docker("stop", name).ok()
    state = docker.state(name)
    assert (state["Status"], state["ExitCode"]) == ("exited", 4), state
    docker("start", name).ok()
    eventually("a second run", lambda: docker("logs", name).ok().stdout.count("up") == 2)
    docker("restart", name).ok()
    eventually("a third run", lambda: docker("logs", name).ok().stdout.count("up") == 3)
    assert docker.sh(name, "cat /runs").ok().stdout == "run\n" * 3
    assert docker("logs", name).ok().stdout == "up\nbye\nup\nbye\nup\n"
    docker("kill", name).ok()
    eventually("its end", lambda: docker.state(name)["ExitCode"] == 137)


def test_stats_update_cp(docker: Docker, start: Start) -> None:
    """True numbers, limits changed while it runs, files copied both ways, what changed."""
    name = start("--memory", "128m", "--memory-swap", "128m", "--cpus", "0.5")
    stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name).ok().stdout)
    assert int(stats["PIDs"]) >= 1 and not stats["MemUsage"].startswith("0B"), stats
    if not docker.runtime.is_vm:  # a machine's cgroup has no limit on the host
        assert stats["MemUsage"].endswith("/ 128MiB"), stats
    docker("update", "--memory", "192m", "--memory-swap", "192m", "--cpus", "0.75", "--pids-limit", "66", name).ok()
    inside = docker.sh(
        name,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max; "
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max; "
        "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max",
    ).ok()
    assert inside.stdout.split() == [str(192 << 20), "75000", "66"], inside
    copied = docker.run_dir / "copied"
    copied.write_text("from the host\n")
    docker("cp", str(copied), f"{name}:/etc/copied").ok()
    docker.sh(name, "echo more >> /etc/copied; rm /etc/group").ok()
    docker("cp", f"{name}:/etc/copied", str(copied)).ok()
    assert copied.read_text() == "from the host\nmore\n"
    changes = set(docker("diff", name).ok().stdout.splitlines())
    assert {"A /etc/copied", "D /etc/group"} <= changes, changes


def test_out_of_memory(docker: Docker, start: Start) -> None:
    name = start("--memory", "48m", "--memory-swap", "48m", script="exec dd if=/dev/zero of=/dev/null bs=400M count=1")
    eventually("its end", lambda: docker.state(name)["Status"] == "exited", 90)
    state = docker.state(name)
    assert state["ExitCode"] == 137 and state["OOMKilled"] is True, state


def test_restart_policy(docker: Docker, start: Start) -> None:
    name = start("--restart", "on-failure:1", script="echo try; exit 3")
    eventually(
        "the policy to give up",
        lambda: docker.inspect(name)["RestartCount"] == 1 and docker.state(name)["Status"] == "exited", 120,
    )  # fmt: skip
    assert docker("logs", name).ok().stdout == "try\n" * 2


def test_volumes(docker: Docker, start: Start, once: Once) -> None:
    """Folders of the host, live both ways and read-only; a named volume that is filled from the image and kept."""
    folder = docker.data_dir.parent / "shared folder"
    folder.mkdir()
    (folder / "file").write_text("host\n")
    try:
        name = start("-v", f"{folder}:/rw", "-v", f"{folder}/file:/etc/single:ro", "-v", "named:/etc/copy",
                     "--mount", f"type=bind,src={folder},dst=/ro,readonly")  # fmt: skip
        got = docker.sh(name, "cat /rw/file /etc/single; echo in > /rw/new; touch /ro/x 2>&1; echo kept > /etc/copy/f")
        assert got.ok().stdout.startswith("host\nhost\n") and "Read-only" in got.stdout, got
        assert (folder / "new").read_text() == "in\n"
        (folder / "late").write_text("later\n")
        assert docker.sh(name, "cat /ro/late").ok().stdout == "later\n"
        docker("rm", "-f", name).ok()
        assert once("cat /again/f", "-v", "named:/again").ok().out == "kept"
    finally:
        docker("volume", "rm", "-f", "named")
        run("rm", "-r", str(folder)).ok()


def test_networks(docker: Docker, start: Start, networks: Callable[..., str]) -> None:
    """Two containers on a network of their own: names, IPv6, a published port, a second network while running."""
    net = networks("--ipv6", "--subnet", "fd00:beef:26::/64", "--subnet", "10.76.0.0/24")
    web, other = new_name("web"), new_name("other")
    start("--network", net, "--network-alias", "friend", "-p", "8026:80", "--hostname", "web", script=SERVE, name=web)
    start("--network", net, "--ip", "10.76.0.77", "--mac-address", "02:42:0a:4c:00:77", name=other)
    assert answers(docker, "http://127.0.0.1:8026/name") == "web"
    checks = script(
        links="ls /sys/class/net | tr '\\n' ' '",
        address="ip -o -4 addr show eth0 | awk '{ print $4 }'; cat /sys/class/net/eth0/address",
        route="ip route | awk '/^default/ { print $3 }'; ip -6 route | awk '/^default/ { print $3 }'",
        name=FETCH.format(web),
        alias=FETCH.format("friend"),
        six=f"ping -6 -c 1 -W 10 {web} | grep -c ' 0% packet loss'",
        absent="nslookup no-such-name-here 127.0.0.11 > /dev/null 2>&1; echo $?",
    )
    compare(
        sections(docker.sh(other, checks).ok().stdout),
        {
            "links": "eth0 lo", "address": "10.76.0.77/24\n02:42:0a:4c:00:77", "route": "10.76.0.1\nfd00:beef:26::1",
            "name": "web", "alias": "web", "six": "1", "absent": lambda v: v != "0",
        },
    )  # fmt: skip
    late = networks("--subnet", "10.76.1.0/24")
    docker("network", "connect", "--ip", "10.76.1.99", late, other).ok()
    docker("network", "connect", late, web).ok()
    eventually("the address inside", lambda: "10.76.1.99/24" in docker.sh(other, "ip -o addr").ok().stdout, 30)
    address = docker.inspect(web)["NetworkSettings"]["Networks"][late]["IPAddress"]
    assert eventually("the web server there", lambda: docker.sh(other, FETCH.format(address)).out, 30) == "web"
    docker("network", "disconnect", late, other).ok()
    eventually("the interface to vanish", lambda: "10.76.1.99" not in docker.sh(other, "ip -o addr").ok().stdout, 30)
    assert docker.sh(other, FETCH.format(web)).ok().out == "web"
    docker("stop", "-t", "1", web).ok()
    assert docker.sh(other, f"nslookup {web} 127.0.0.11 > /dev/null 2>&1").rc != 0


def test_two_networks_at_start(docker: Docker, networks: Callable[..., str]) -> None:
    """Docker 26 makes the interfaces between create and start; each is the one it should be."""
    first, second = networks("--subnet", "10.77.1.0/24"), networks("--subnet", "10.77.2.0/24")
    name = new_name()
    command = ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
    docker(
        "create", "--name", name, "--label", "test=this", "--network", f"name={first},ip=10.77.1.50", "--network",
        f"name={second},ip=10.77.2.50", IMAGE, *command,
    ).ok()  # fmt: skip
    docker("start", name).ok()
    for net, prefix in ((first, "10.77.1"), (second, "10.77.2")):
        mac = docker.inspect(name)["NetworkSettings"]["Networks"][net]["MacAddress"]
        link = docker.sh(name, f"grep -l {mac} /sys/class/net/*/address | cut -d/ -f5").ok().out
        assert f"{prefix}.50/24" in docker.sh(name, f"ip -o -4 addr show {link}").ok().stdout
        assert docker.sh(name, f"ping -c 1 -W 10 {prefix}.1").rc == 0
    assert docker.sh(name, "ip route | grep -c ^default").out == "1"


def test_image_of_a_container(docker: Docker, start: Start) -> None:
    """commit, save and load, and a run of the result."""
    name = start()
    docker.sh(name, "echo made > /made").ok()
    docker("commit", name, "made:test").ok()
    archive = docker.run_dir / "made.tar"
    docker("save", "-o", str(archive), "made:test").ok()
    docker("rmi", "made:test").ok()
    docker("load", "-i", str(archive)).ok()
    archive.unlink()
    assert docker("run", "--rm", "--label", "test=this", "made:test", "cat", "/made").ok().stdout == "made\n"
    docker("rmi", "made:test").ok()
