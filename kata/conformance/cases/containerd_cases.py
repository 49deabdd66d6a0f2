"""containerd by `ctr`: run, exec, kill, pause, metrics, with the subject as the runc shim's binary."""

from __future__ import annotations

import os
from functools import partial

from kata.conformance.case import Seen, case
from kata.conformance.engines.containerd import Ctr
from kata.conformance.engines.host import Stream
from kata.conformance.engines.sections import script, sections
from kata.conformance.shared import shared

containerd = partial(case, "containerd")

FOUND = script(env="echo $A", cwd="pwd", links="ls /sys/class/net", readonly="touch /x 2>&1 | grep -o 'Read-only.*'",
               first="echo $$", mount="cat /v/f; touch /v/x 2>/dev/null || echo ro")


def found(c: Ctr) -> dict[str, str]:
    """What a container with many options found."""

    def make() -> dict[str, str]:
        folder = c.containerd.data / f"mount-{c.runtime}"
        folder.mkdir()
        (folder / "f").write_text("host\n")
        got = c.once(FOUND, "--env", "A=b", "--cwd", "/tmp", "--read-only",
                     "--mount", f"type=bind,src={folder},dst=/v,options=rbind:ro")
        return sections(got.ok().stdout)

    return shared(c, "found", make)


def box(c: Ctr) -> str:
    """A running container."""
    return shared(c, "box", c.start)


@containerd("run-options", "environment, folder, a root that cannot be written, no network but the loopback", env="b",
            cwd="/tmp", readonly="Read-only file system", links="lo", first="1")
def options(c: Ctr) -> Seen:
    return {name: found(c)[name] for name in ("env", "cwd", "readonly", "links", "first")}


@containerd("run-mount", "--mount of a host's folder, read-only", mount="host\nro")
def mount(c: Ctr) -> Seen:
    return {"mount": found(c)["mount"]}


@containerd("exit-code-and-streams", "the exit code; output and errors apart", code=3, output="out", errors="err")
def exit_code(c: Ctr) -> Seen:
    got = c.once("echo out; echo err >&2; exit 3")
    return {"code": got.code, "output": got.out, "errors": got.stderr.splitlines()[0] if got.stderr else ""}


@containerd("program-missing", "a program that does not exist fails the start, by name", failed=True, named=True)
def missing(c: Ctr) -> Seen:
    got = c(*c.run_argv(c.name(), "--rm", command=["/no/such/program"]))
    return {"failed": got.code != 0, "named": "/no/such/program" in got.stderr}


@containerd("exec", "tasks exec: output, input and exit code", code=4, output="in through")
def exec(c: Ctr) -> Seen:
    got = c.exec(box(c), "echo in $(cat); exit 4", input="through")
    return {"code": got.code, "output": got.out}


@containerd("exec-options", "tasks exec --cwd and --user", output="/tmp 1000")
def exec_options(c: Ctr) -> Seen:
    got = c.exec(box(c), "echo $(pwd) $(id -u)", "--cwd", "/tmp", "--user", "1000")
    return {"output": got.out}


@containerd("exec-missing", "tasks exec of a program that does not exist fails, by name", failed=True, named=True)
def exec_missing(c: Ctr) -> Seen:
    got = c("tasks", "exec", "--exec-id", "missing", box(c), "/no/such")
    return {"failed": got.code != 0, "named": "/no/such" in got.all}


@containerd("pause", "tasks pause and resume", status="RUNNING PAUSED RUNNING")
def pause(c: Ctr) -> Seen:
    name = box(c)
    seen = [c.status(name)]
    c("tasks", "pause", name).ok()
    seen.append(c.status(name))
    c("tasks", "resume", name).ok()
    return {"status": " ".join([*seen, c.status(name)])}


@containerd("metrics", "tasks metrics tell of memory, processor and processes", memory=True, cpu=True, processes=True)
def metrics(c: Ctr) -> Seen:
    said = c("tasks", "metrics", box(c)).ok().stdout
    return {"memory": "memory.usage" in said, "cpu": "cpuacct.usage" in said or "cpu.usage" in said,
            "processes": "pids.current" in said}


@containerd("ps", "tasks ps names the first process", first=True)
def ps(c: Ctr) -> Seen:
    rows = [line.split()[0] for line in c("tasks", "ps", box(c)).ok().stdout.splitlines()[1:]]
    return {"first": str(c.pid(box(c))) in rows}


def foreground(c: Ctr, name: str) -> Stream:
    """A task whose client waits for its end, and ends with its exit code."""
    script = "trap 'exit 6' TERM; echo up; while :; do sleep 3600 & wait $!; done"
    task = Stream(c.containerd.argv(*c.run_argv(name, "--rm", command=["/bin/sh", "-c", script])))
    task.expect("up")
    return task


@containerd("kill-by-signal", "tasks kill -s reaches the process; its exit status is told", code=6, left="")
def kill(c: Ctr) -> Seen:
    name = c.name()
    with foreground(c, name) as task:
        c("tasks", "kill", "-s", "TERM", name).ok()
        code = task.end().code
    return {"code": code, "left": c.status(name)}


@containerd("killed-from-outside", "a task whose host process is killed has ended with 137", code=137, left="")
def killed(c: Ctr) -> Seen:
    name = c.name()
    with foreground(c, name) as task:
        os.kill(c.pid(name), 9)
        code = task.end().code
    return {"code": code, "left": c.status(name)}
