"""config.json's `hooks`: six kinds, their order, namespaces, state, timeout and failure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kata.conformance.case import Seen
from kata.conformance.cases.look import oci
from kata.conformance.engines.oci import Container, OciRuntime

#: Run in the runtime's namespaces; createContainer and startContainer in the container's.
HOST_KINDS = ("prestart", "createRuntime", "poststart", "poststop")
ENV = ["MARK=x y", "PATH=/bin:/sbin:/usr/bin:/usr/sbin"]


def shell_hook(shell: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", shell, "zero", "one"], "env": ENV, **more}


def writing_hooks(folder: Path) -> dict[str, Any]:
    """A hook of each kind of the host that writes down its state, namespaces, arguments and turn."""
    def hook(kind: str) -> dict[str, Any]:
        return shell_hook(
            f"cat > {folder}/{kind}.state;"
            f" for n in mnt net pid; do readlink /proc/self/ns/$n; done > {folder}/{kind}.ns;"
            f' echo "$0 $1 $MARK" > {folder}/{kind}.args;'
            f" pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' {folder}/{kind}.state | head -n 1);"
            f" readlink /proc/$pid/ns/net > {folder}/{kind}.net; echo {kind} >> {folder}/order")

    return {kind: [hook(kind)] for kind in HOST_KINDS}


def order(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().split() if path.exists() else []


def _folder(o: OciRuntime) -> Path:
    folder = o.data / f"hooks-{o.new_id()}"
    folder.mkdir()
    return folder


def _life(o: OciRuntime) -> dict[str, Any]:
    """A whole life with a hook of each kind of the host."""
    def make() -> dict[str, Any]:
        folder = _folder(o)
        own = [os.readlink(f"/proc/self/ns/{n}") for n in ("mnt", "net", "pid")]
        changes = {"hooks": writing_hooks(folder), "annotations": {"org.example.test": "kept"}}
        with o.created(changes=changes) as c:
            found: dict[str, Any] = {"create": order(folder)}
            pid = c.pid
            c.start().ok()
            found["start"] = order(folder)
            c.sh("true").ok()
            c.end()
            found["end"] = order(folder)
            c.delete().ok()
            found["delete"] = order(folder)
            states = {kind: json.loads((folder / f"{kind}.state").read_text()) for kind in HOST_KINDS}
            found["ids"] = [s["id"] == c.id and s["bundle"] == str(c.bundle) for s in states.values()]
            found["annotations"] = [s.get("annotations", {}).get("org.example.test") for s in states.values()]
            found["statuses"] = {kind: s["status"] for kind, s in states.items()}
            found["pids"] = [states[kind]["pid"] == pid for kind in HOST_KINDS[:3]]
        found["own"] = [(folder / f"{kind}.ns").read_text().split() == own for kind in HOST_KINDS]
        found["arguments"] = {(folder / f"{kind}.args").read_text() for kind in HOST_KINDS}
        found["network"] = [(folder / f"{kind}.net").read_text().strip() not in (own[1], "") for kind in HOST_KINDS[:3]]
        return found

    found: dict[str, Any] = o.shared("hooks", make)
    return found


@oci("hooks-order", "hooks: prestart, createRuntime; poststart; poststop",
     order=["prestart", "createRuntime", "poststart", "poststop"])
def hooks_order(o: OciRuntime) -> Seen:
    return {"order": _life(o)["delete"]}


@oci("hooks-turns", "hooks: prestart and createRuntime at create, poststart after start, poststop after delete",
     create=["prestart", "createRuntime"], start=["prestart", "createRuntime", "poststart"],
     end=["prestart", "createRuntime", "poststart"])
def hooks_turns(o: OciRuntime) -> Seen:
    return {key: _life(o)[key] for key in ("create", "start", "end")}


@oci("hooks-state", "hooks: each gets the state on standard input, with id, bundle and annotations", ids=[True] * 4,
     annotations=["kept"] * 4)
def hooks_state(o: OciRuntime) -> Seen:
    return {"ids": _life(o)["ids"], "annotations": _life(o)["annotations"]}


@oci("hooks-status", "hooks: the status in the state of each", early=True, poststart="running", poststop="stopped")
def hooks_status(o: OciRuntime) -> Seen:
    statuses = _life(o)["statuses"]
    return {"early": statuses["prestart"] in ("creating", "created") and statuses["createRuntime"] in (
        "creating", "created"), "poststart": statuses["poststart"], "poststop": statuses["poststop"]}


@oci("hooks-pid", "hooks: the state's pid is the container's, and its network namespace the container's",
     pids=[True] * 3, network=[True] * 3)
def hooks_pid(o: OciRuntime) -> Seen:
    return {"pids": _life(o)["pids"], "network": _life(o)["network"]}


@oci("hooks-namespaces", "hooks: these four run in the runtime's namespaces", own=[True] * 4)
def hooks_namespaces(o: OciRuntime) -> Seen:
    return {"own": _life(o)["own"]}


@oci("hooks-arguments", "hooks: args as given, the first is argv[0]; env is the whole environment",
     arguments=["zero one x y\n"])
def hooks_arguments(o: OciRuntime) -> Seen:
    return {"arguments": sorted(_life(o)["arguments"])}


@oci("hooks-create-container", "createContainer runs in the container's namespaces", mtu="1234", code=0)
def create_container(o: OciRuntime) -> Seen:
    hooks = {"createContainer": [shell_hook(
        "cat > /dev/null; ip link add hook0 mtu 1234 type veth; ip link set hook0 up")]}
    done = o.run("cat /sys/class/net/hook0/mtu", {"hooks": hooks})
    return {"mtu": done.out, "code": done.code}


@oci("hooks-start-container", "startContainer runs in the container's root, before the process, at start", early=False,
     before=True, id=True, status=True)
def start_container(o: OciRuntime) -> Seen:
    hooks = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state"], "env": ["PATH=/bin"]}]}
    with o.created("test -e /tmp/state && echo before", {"hooks": hooks}) as c:
        path = c.bundle / "rootfs/tmp/state"
        early = path.exists()
        c.start().ok()
        c.wait()
        state = json.loads(path.read_text())
        return {"early": early, "before": "before" in c.said, "id": state["id"] == c.id,
                "status": state["status"] in ("creating", "created")}


def _failing(o: OciRuntime, kind: str) -> dict[str, Any]:
    folder = _folder(o)
    hooks = {k: v for k, v in writing_hooks(folder).items() if k != kind}
    hooks[kind] = [shell_hook("cat > /dev/null; echo its words >&2; exit 3")]
    with o.container(o.bundle(changes={"hooks": hooks})) as c:
        code = c.try_create()
        return {"failed": code != 0, "words": "its words" in c.said, "left": o("state", c.id).code == 0,
                "poststart": "poststart" in order(folder)}


def _fails_at_create(kind: str) -> None:
    @oci(f"hooks-failing-{kind}", f"a {kind} hook that fails: create fails with the hook's words, and nothing is left",
         failed=True, words=True, left=False, poststart=False)
    def failing(o: OciRuntime) -> Seen:
        return _failing(o, kind)


for _kind in ("prestart", "createRuntime", "createContainer"):
    _fails_at_create(_kind)


@oci("hooks-failing-startContainer", "a startContainer hook that fails: the process never runs", ran=False,
     running=False)
def failing_at_start(o: OciRuntime) -> Seen:
    hooks = {"startContainer": [{"path": "/bin/false", "args": ["false"]}]}
    with o.created("echo ran; sleep 3600", {"hooks": hooks}) as c:
        c.start()
        c.wait()
        return {"ran": "ran" in c.said, "running": _status(o, c) == "running"}


def _status(o: OciRuntime, c: Container) -> str:
    done = o("state", c.id)
    return str(json.loads(done.stdout)["status"]) if done.code == 0 else "gone"


def _failing_poststop(o: OciRuntime) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        folder = _folder(o)
        hooks = {"poststop": [{"path": "/bin/false", "args": ["false"]}, *writing_hooks(folder)["poststop"]]}
        with o.running(changes={"hooks": hooks}) as c:
            deleted = c.delete("--force").code == 0
            return {"deleted": deleted, "gone": o("state", c.id).code != 0, "order": order(folder)}

    found: dict[str, Any] = o.shared("failing poststop", make)
    return found


@oci("hooks-failing-poststop", "a poststop hook that fails: delete succeeds all the same", deleted=True, gone=True)
def failing_poststop(o: OciRuntime) -> Seen:
    return {key: _failing_poststop(o)[key] for key in ("deleted", "gone")}


@oci("hooks-poststop-all", "poststop: the hooks after one that fails run all the same (runtime.md, lifecycle 13)",
     order=["poststop"])
def poststop_all(o: OciRuntime) -> Seen:
    return {"order": _failing_poststop(o)["order"]}


@oci("hooks-several", "several hooks of one kind run in their order", order=["1", "2", "3"])
def several(o: OciRuntime) -> Seen:
    folder = _folder(o)
    hooks = {"createRuntime": [shell_hook(f"cat > /dev/null; echo {n} >> {folder}/order") for n in (1, 2, 3)]}
    o.run("true", {"hooks": hooks}).ok()
    return {"order": order(folder)}


@oci("hooks-timeout", "a hook beyond its timeout is killed, and counts as failed", failed=True, runs=False)
def timeout(o: OciRuntime) -> Seen:
    mark = f"61{o.new_id().rpartition('-')[2]}{os.getpid()}"
    hooks = {"prestart": [{"path": "/bin/sleep", "args": ["sleep", mark], "timeout": 1}]}
    with o.container(o.bundle(changes={"hooks": hooks})) as c:
        failed = c.try_create() != 0
    return {"failed": failed, "runs": any(mark in line for line in _commands())}


def _commands() -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append(Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended
            continue
    return found


@oci("hooks-impossible", "hooks whose path is not absolute or not there fail create", refused=[True, True])
def impossible(o: OciRuntime) -> Seen:
    return {"refused": [o.run("true", {"hooks": {"prestart": [{"path": path, "args": ["x"]}]}}).code != 0
                        for path in ("relative", "/nosuch/hook")]}
