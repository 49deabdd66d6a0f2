"""The life of docker's containers: stop, kill, restart, pause, exec, logs, attach, top, stats, update, cp, commit."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import subprocess
import time
from pathlib import Path

from harness import leaks
from harness.console import Terminal
from harness.dockerd import IMAGE, Docker
from harness.sandbox import kill
from harness.wait import eventually

from .conftest import Start


def test_exec(docker: Docker, box: str) -> None:
    """exec with its options, exit codes, streams; twenty at once."""
    result = docker.sh(box, "id -u; pwd; echo $A; echo err >&2; exit 3", "-u", "1000", "-w", "/tmp", "-e", "A=b")
    assert (result.rc, result.stdout, result.stderr) == (3, "1000\n/tmp\nb\n", "err\n")
    assert docker("exec", "-i", box, "cat", input="through\n").ok().stdout == "through\n"
    assert docker("exec", box, "/nosuch").rc in (126, 127)
    assert "\r\n" in docker("exec", "-t", box, "sh", "-c", "tty; echo line").ok().stdout
    docker("exec", "-d", box, "sh", "-c", "echo detached > /tmp/detached").ok()
    eventually("a detached exec", lambda: docker("exec", box, "cat", "/tmp/detached").out == "detached")

    def one(number: int) -> None:
        result = docker("exec", "-i", box, "sh", "-c", f"cat; exit {number}", input=f"input {number}\n")
        assert (result.rc, result.stdout) == (number, f"input {number}\n"), result

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        for future in [pool.submit(one, n) for n in range(20)]:
            future.result()


def test_stop_start_restart(docker: Docker, start: Start) -> None:
    """stop asks by TERM, then kills; start and restart run the same container again; files stay."""
    name = start(
        script="trap 'echo bye; exit 4' TERM; echo run >> /runs; echo up; while :; do sleep 3600 & wait $!; done"
    )
    docker.wait_logs(name, "up")
    docker("stop", name).ok()
    state = docker.state(name)
    assert (state["Status"], state["ExitCode"]) == ("exited", 4)
    assert "bye" in docker("logs", name).ok().stdout
    docker("start", name).ok()
    eventually("a second run", lambda: docker("logs", name).ok().stdout.count("up") == 2)
    docker("restart", name).ok()
    eventually("a third run", lambda: docker("logs", name).ok().stdout.count("up") == 3)
    assert docker("exec", name, "cat", "/runs").ok().stdout == "run\n" * 3
    docker("kill", name).ok()
    eventually("its end", lambda: docker.state(name)["ExitCode"] == 137)

    deaf = start(script="trap '' TERM; echo up; while :; do sleep 1; done")
    docker.wait_logs(deaf, "up")
    begun = time.monotonic()
    docker("stop", "-t", "2", deaf).ok()
    assert 1.5 < time.monotonic() - begun < 25
    assert docker.state(deaf)["ExitCode"] == 137


def test_kill_and_wait(docker: Docker, start: Start) -> None:
    """kill by any signal; wait tells the exit code; rm -f ends a running one."""
    name = start(script="trap 'echo usr1' USR1; trap 'exit 9' INT; echo up; while :; do sleep 3600 & wait $!; done")
    docker.wait_logs(name, "up")
    docker("kill", "-s", "USR1", name).ok()
    docker.wait_logs(name, "usr1")
    waiter = docker.spawn("wait", name)
    docker("kill", "--signal", "2", name).ok()
    assert waiter.communicate(timeout=60)[0].strip() == b"9"
    docker("start", name).ok()
    docker("rm", "-f", name).ok()
    docker("inspect", name).fails()


def test_restart_policies(docker: Docker, start: Start) -> None:
    """on-failure counts and gives up; always brings it back."""
    failing = start("--restart", "on-failure:2", script="echo try; exit 3")
    back = start("--restart", "always", script="test -e /ran && exec sleep 3600; touch /ran; exit 1")
    eventually(
        "the policy to give up",
        lambda: docker.inspect(failing)["RestartCount"] == 2 and docker.state(failing)["Status"] == "exited", 120,
    )  # fmt: skip
    assert docker.state(failing)["ExitCode"] == 3
    assert docker("logs", failing).ok().stdout == "try\n" * 3
    eventually(
        "it to be back",
        lambda: docker.inspect(back)["RestartCount"] == 1 and docker.state(back)["Status"] == "running",
        90,
    )
    docker("rm", "-f", back).ok()


def test_pause(docker: Docker, start: Start) -> None:
    """pause stops the clock of every process; unpause lets them go on; stop of a paused one works."""
    name = start(script="i=0; while :; do i=$((i+1)); echo $i; usleep 50000; done")
    docker.wait_logs(name, "3\n")
    docker("pause", name).ok()
    assert docker.state(name)["Status"] == "paused"
    before = docker("logs", name).ok().stdout
    docker("exec", name, "true").fails()
    time.sleep(0.6)  # the time in which nothing may happen
    assert docker("logs", name).ok().stdout == before
    docker("unpause", name).ok()
    eventually("output again", lambda: docker("logs", name).ok().stdout != before)


def mebibytes(usage: str) -> float:
    """The used part of `docker stats`' memory column."""
    number, unit = re.match(r"([\d.]+)(B|KiB|MiB|GiB) /", usage).groups()  # type: ignore[union-attr]
    return float(number) * {"B": 2**-20, "KiB": 2**-10, "MiB": 1, "GiB": 1024}[unit]


def test_top_and_stats(docker: Docker, start: Start) -> None:
    """top names the container's process; stats are true: memory of the container, its processes, processor time."""
    name = start("--memory", "200m", script="exec sleep 4242")
    rows = docker("top", name).ok().stdout.splitlines()
    assert "PID" in rows[0] and str(docker.state(name)["Pid"]) in rows[1].split()
    assert any("sleep 4242" in row for row in rows[1:]), rows
    custom = docker("top", name, "-o", "pid,comm").ok().stdout.splitlines()
    assert custom[0].split() == ["PID", "COMMAND"] and len(custom) >= 2

    def stats() -> dict[str, str]:
        found: dict[str, str] = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name).ok().stdout)
        return found

    # containerd's shim reads the host's cgroup of the container: with a machine, the whole of it is in there.
    own = not docker.runtime.is_vm
    idle = stats()
    used = mebibytes(idle["MemUsage"])
    assert used > 0 and int(idle["PIDs"]) >= 1, idle
    assert not own or (idle["MemUsage"].endswith("/ 200MiB") and idle["PIDs"] == "1"), idle
    docker("exec", "-d", name, "sh", "-c", "while :; do :; done").ok()
    eventually("the load to show", lambda: float(stats()["CPUPerc"].rstrip("%")) > 30, 40)
    assert not own or stats()["PIDs"] == "2"
    docker.sh(name, "head -c 30000000 /dev/zero > /dev/shm/fill").ok()
    more = stats()["MemUsage"]
    assert mebibytes(more) > used + 20, f"{more} with 28 MiB more than {idle['MemUsage']}"


def test_out_of_memory(docker: Docker, start: Start) -> None:
    """The first process beyond the limit: exit code 137 and OOMKilled, as inspect tells."""
    name = start("--memory", "48m", "--memory-swap", "48m", script="exec dd if=/dev/zero of=/dev/null bs=400M count=1")
    eventually("its end", lambda: docker.state(name)["Status"] == "exited", 60)
    state = docker.state(name)
    assert state["ExitCode"] == 137 and state["OOMKilled"] is True, state


def test_update(docker: Docker, start: Start) -> None:
    """docker update changes limits of a running container, as seen inside."""
    name = start("--memory", "128m", "--memory-swap", "128m", "--cpus", "0.5")
    docker("update", "--memory", "192m", "--memory-swap", "192m", "--cpus", "0.75", "--pids-limit", "66", name).ok()
    inside = docker.sh(
        name,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max; "
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max; "
        "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max",
    ).ok()
    assert inside.stdout.split() == [str(192 << 20), "75000", "66"]
    assert docker.inspect(name)["HostConfig"]["Memory"] == 192 << 20


def test_logs_and_attach(docker: Docker, start: Start) -> None:
    """logs tell the streams apart and follow; attach joins them, with input."""
    loop = "while read line; do echo got $line; test $line = quit && break; done; echo end"
    name = start("-i", script=f"echo one; echo two >&2; {loop}")
    docker.wait_logs(name, "one")
    attached = docker.spawn("attach", name, stdin=subprocess.PIPE)
    assert attached.stdin and attached.stdout
    shown = Terminal(attached.stdout.fileno())
    attached.stdin.write(b"hello\n")
    attached.stdin.flush()
    shown.expect("got hello\n")
    follower = docker.spawn("logs", "-f", name)
    attached.stdin.write(b"quit\n")
    attached.stdin.flush()
    shown.expect("got quit\nend\n")
    assert attached.wait(30) == 0
    attached.stdin.close()
    followed = follower.communicate(timeout=30)[0].decode()
    assert sorted(followed.splitlines()) == sorted(["one", "two", "got hello", "got quit", "end"])
    logs = docker("logs", name).ok()
    assert (logs.stdout, logs.stderr) == ("one\ngot hello\ngot quit\nend\n", "two\n")
    assert docker("logs", "--tail", "1", name).ok().stdout == "end\n"


def test_copy_commit_diff(docker: Docker, start: Start) -> None:
    """cp in both directions, also into a running one; diff and commit see what the container changed."""
    name = start()
    source = docker.run_dir / "copied"
    source.write_text("from the host\n")
    docker("cp", str(source), f"{name}:/etc/copied").ok()
    assert docker("exec", name, "cat", "/etc/copied").ok().stdout == "from the host\n"
    docker.sh(name, "echo made > /made; rm /etc/group; mkdir /d; echo more >> /etc/copied").ok()
    docker("cp", f"{name}:/etc/copied", str(source)).ok()
    assert source.read_text() == "from the host\nmore\n"
    docker("stop", "-t", "1", name).ok()
    changes = set(docker("diff", name).ok().stdout.splitlines())
    assert {"A /made", "D /etc/group", "A /d", "A /etc/copied", "C /etc"} <= changes, changes
    docker("commit", name, "made:test").ok()
    result = docker("run", "--rm", "made:test", "sh", "-c", "cat /made; test -e /etc/group || echo gone").ok()
    assert result.stdout == "made\ngone\n"
    docker("rmi", "made:test").ok()


def test_proxy_killed(docker: Docker, start: Start) -> None:
    """docker does not notice: logs go on, exec works, the exit code is the container's."""
    name = start(script="trap 'exit 7' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2; done")
    eventually("a first line", lambda: "line 1" in docker("logs", name).stdout)
    pid = docker.inspect(name)["State"]["Pid"]
    folder = next(f for f in leaks.SANDBOXES.iterdir() if pid in shims(f))
    kill(json.loads((folder / "sandbox.json").read_text())["proxy"]["pid"], "the proxy")
    assert docker("exec", name, "echo", "still here").ok().out == "still here"
    seen = docker("logs", name).ok().stdout.splitlines()
    eventually("more lines", lambda: len(docker("logs", name).stdout.splitlines()) > len(seen) + 3)
    docker("stop", "-t", "20", name, timeout=60).ok()
    lines = docker("logs", name).ok().stdout.splitlines()
    assert lines == [f"line {i}" for i in range(len(lines))]
    assert docker.inspect(name)["State"]["ExitCode"] == 7


def shims(folder: Path) -> list[int]:
    """Pids of the containers in a sandbox."""
    containers = json.loads((folder / "sandbox.json").read_text())["containers"]
    return [json.loads(Path(c["root"], id, "state.json").read_text())["pid"] for id, c in containers.items()]


def test_terminal(docker: Docker) -> None:
    """run -t: one stream with carriage returns, a terminal inside, its input by -i."""
    result = docker("run", "--rm", "-t", IMAGE, "sh", "-c", "test -t 0 && test -t 1 && echo tty; echo err >&2")
    assert result.ok().stdout == "tty\r\nerr\r\n", result


def test_terminal_size(docker: Docker, box: str) -> None:
    """exec -it on a person's terminal: size, resize, ^C, exit code."""
    master, slave = os.openpty()
    terminal = Terminal(master)
    terminal.resize(33, 101)
    process = subprocess.Popen(
        docker.argv("exec", "-it", box, "sh", "-c", "while read l; do stty size; echo; done; exit 8"),
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)

    def size() -> str:
        terminal.type("x\n")
        return terminal.expect("\r\n\r\n")

    eventually("the size inside", lambda: "33 101" in size(), 30, 0.2)
    terminal.resize(22, 77)
    process.send_signal(28)  # SIGWINCH: the slave is no controlling terminal of the client
    eventually("the new size inside", lambda: "22 77" in size(), 30, 0.2)
    terminal.type("\x04")
    assert process.wait(30) == 8
    terminal.close()


def test_health_check(docker: Docker, start: Start) -> None:
    """A health check is an exec that dockerd repeats."""
    name = start("--health-cmd", "test -e /healthy", "--health-interval", "1s", "--health-retries", "2")
    eventually("unhealthy", lambda: docker.state(name)["Health"]["Status"] == "unhealthy", 60)
    docker.sh(name, "touch /healthy").ok()
    eventually("healthy", lambda: docker.state(name)["Health"]["Status"] == "healthy", 60)


def test_events_and_ps(docker: Docker, start: Start) -> None:
    """docker's events in their order; ps with the exit code."""
    since = str(time.time() - 1)
    name = start(script="exit 6")
    eventually("its end", lambda: docker.state(name)["Status"] == "exited")
    listed = docker("ps", "-a", "--filter", f"name={name}", "--format", "{{.Status}}").ok().out
    assert listed.startswith("Exited (6)"), listed
    docker("rm", name).ok()
    seen = docker(
        "events", "--since", since, "--until", str(time.time() + 0.1), "--filter", f"container={name}", "--format",
        "{{.Action}}",
    ).ok()  # fmt: skip
    actions = [a for a in seen.stdout.split() if a in ("create", "start", "die", "destroy")]
    assert actions == ["create", "start", "die", "destroy"], seen


def test_many_containers(docker: Docker) -> None:
    """Five at once: all run, all end with their own codes."""

    def one(number: int) -> None:
        result = docker(
            "run", "--rm", "--label", "test=this", IMAGE, "sh", "-c", f"echo {number}; exit {number}", timeout=180
        )
        assert (result.rc, result.stdout) == (number, f"{number}\n"), result

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        for future in [pool.submit(one, n) for n in range(1, 6)]:
            future.result()
