"""The six kinds of hooks: order, namespaces, state on stdin, timeout, failure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.bundle import Bundle
from harness.oci import Oci
from harness.schema import check_state
from harness.wait import eventually

#: Run in the runtime's namespaces; the others run in the container's.
HOST_KINDS = ("prestart", "createRuntime", "poststart", "poststop")


def host_hook(kind: str, folder: Path) -> dict[str, Any]:
    """A hook that writes down its state, namespaces, arguments and turn."""
    lines = (
        f"cat > {folder}/{kind}.state; for n in mnt net pid; do readlink /proc/self/ns/$n; done > {folder}/{kind}.ns; "
        f'echo "$0 $1 $MARK" > {folder}/{kind}.args; '
        f"pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' {folder}/{kind}.state | head -1); "
        f"readlink /proc/$pid/ns/net > {folder}/{kind}.net; echo {kind} >> {folder}/order"
    )
    return {"path": "/bin/sh", "args": ["sh", "-c", lines, "zero", "one"], "env": ["MARK=x y", "PATH=/bin:/usr/bin"]}


def with_hooks(oci: Oci, script: str = "") -> tuple[Bundle, Path]:
    folder = oci.work_dir / f"hooks{oci.new_id()}"
    folder.mkdir()
    bundle = oci.bundle(script)
    bundle.config["annotations"] = {"org.example.test": "kept"}
    bundle.config["hooks"] = {kind: [host_hook(kind, folder)] for kind in HOST_KINDS}
    return bundle, folder


def order(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().split() if path.exists() else []


def test_hooks_in_the_runtime_namespace(oci: Oci) -> None:
    """prestart, createRuntime at create; poststart after start; poststop after delete; the state each gets."""
    bundle, folder = with_hooks(oci)
    own = [os.readlink(f"/proc/self/ns/{n}") for n in ("mnt", "net", "pid")]
    with oci.container(bundle) as c:
        c.launch_verb("create").ok()
        # runc runs poststart already at create, against the specification.
        assert order(folder)[:2] == ["prestart", "createRuntime"] and (len(order(folder)) == 2 or not oci.runtime.is_vm)
        pid = c.pid
        c.start().ok()
        assert order(folder) == ["prestart", "createRuntime", "poststart"]
        c.kill("KILL").ok()
        c.wait()
        assert order(folder)[-1] == "poststart"
        c.delete().ok()
        assert order(folder) == ["prestart", "createRuntime", "poststart", "poststop"]
    for kind in HOST_KINDS:
        state = json.loads((folder / f"{kind}.state").read_text())
        check_state(state)
        assert state["id"] == c.id and state["bundle"] == str(bundle.path), kind
        assert state["annotations"]["org.example.test"] == "kept", kind
        if kind != "poststop":
            assert state["pid"] == pid, kind
            assert (folder / f"{kind}.net").read_text().strip() not in (own[1], ""), f"{kind}: pid names no namespace"
        allowed = {"prestart": "creating created", "createRuntime": "creating created", "poststart": "running"}
        if not oci.runtime.is_vm:
            allowed["poststart"] = "created"
        assert state["status"] in allowed.get(kind, "stopped").split(), (kind, state["status"])
        assert (folder / f"{kind}.ns").read_text().split() == own, f"{kind} ran in other namespaces"
        assert (folder / f"{kind}.args").read_text() == "zero one x y\n", kind


def test_hooks_in_the_container_namespace(oci: Oci) -> None:
    """createContainer runs in the container's namespaces before its root, startContainer within the root."""
    script = (
        "cat /sys/class/net/hook0/mtu; cat /tmp/start.state; echo; test -e /tmp/start.ns && echo before the process"
    )
    bundle = oci.bundle(script)
    bundle.config["hooks"] = {
        "createContainer": [
            {"path": "/bin/sh",
             "args": ["sh", "-c", "cat > /dev/null; ip link add hook0 mtu 1234 type veth; ip link set hook0 up"],
             "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]}
        ],
        "startContainer": [
            {"path": "/bin/sh", "env": ["PATH=/bin"],
             "args": ["sh", "-c", "cat > /tmp/start.state; readlink /proc/self/ns/mnt > /tmp/start.ns"]}
        ],
    }  # fmt: skip
    with oci.created(bundle) as c:
        assert not (bundle.rootfs / "tmp/start.state").exists(), "startContainer ran at create"
        code, out, _ = c.finish()
        assert code == 0 and out.startswith("1234\n") and out.endswith("before the process\n"), out
        state = json.loads(out.splitlines()[1])
        assert state["id"] == c.id and state["status"] in ("created", "creating"), state


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_failing_hook_at_create(oci: Oci, kind: str) -> None:
    """A hook that fails makes create fail, names the hook, and undoes the container."""
    bundle, folder = with_hooks(oci)
    bundle.config["hooks"].pop(kind, None)
    bundle.config["hooks"][kind] = [{"path": "/bin/sh", "args": ["sh", "-c", "echo its words >&2; exit 3"]}]
    with oci.container(bundle) as c:
        failed = c.launch_verb("create").fails(1)
        assert "hook" in failed.stderr and "its words" in failed.stderr, failed
        if oci.runtime.is_vm:
            assert kind in failed.stderr, failed
        oci.verb("state", c.id).fails(1)
        assert "poststart" not in order(folder)
        c.assert_gone()


def test_failing_hook_at_start(oci: Oci) -> None:
    """startContainer: start fails and the container's process never runs."""
    bundle = oci.bundle("echo ran")
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/false", "args": ["false"]}]}
    with oci.created(bundle) as c:
        started = c.start()
        assert started.rc == 1 or not oci.runtime.is_vm, started
        eventually("the container's end", lambda: oci.verb("state", c.id).rc != 0 or c.status == "stopped", 20)
        assert "ran" not in c.stdout


def test_failing_poststart(oci: Oci) -> None:
    """poststart: a warning by specification 1.0, the container stopped by 1.2; never silence."""
    bundle = oci.bundle()
    bundle.config["hooks"] = {"poststart": [{"path": "/bin/false", "args": ["false"]}]}
    with oci.container(bundle) as c:
        result = c.launch_verb("create")
        if oci.runtime.is_vm:  # runc runs it already at create
            result.ok()
            result = c.start()
        assert "hook" in result.stderr, result
        if result.rc == 0:
            assert c.status == "running"
        else:
            eventually("the container's end", lambda: oci.verb("state", c.id).rc != 0 or c.status == "stopped", 20)


def test_failing_poststop(oci: Oci) -> None:
    """poststop: a warning; delete succeeds, the hooks after it run, nothing is left."""
    bundle, folder = with_hooks(oci)
    bundle.config["hooks"]["poststop"].insert(0, {"path": "/bin/false", "args": ["false"]})
    with oci.running(bundle) as c:
        c.delete("--force").ok()
        if oci.runtime.is_vm:  # runc stops at the first failure
            assert order(folder)[-1] == "poststop"
        c.assert_gone()


def test_hook_timeout(oci: Oci) -> None:
    """A hook beyond its timeout is killed and counts as failed."""
    bundle = oci.bundle()
    mark = f"60{os.getpid()}"
    bundle.config["hooks"] = {"prestart": [{"path": "/bin/sleep", "args": ["sleep", mark], "timeout": 1}]}
    with oci.container(bundle) as c:
        failed = c.launch_verb("create", timeout=40).fails(1)
        assert "hook" in failed.stderr and failed.seconds < 30, failed
        c.assert_gone()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        assert mark.encode() not in line.split(b"\0"), "the hook still runs"


@pytest.mark.parametrize("hook", [{"path": "relative"}, {"path": "/nosuch/hook"}, {"path": "/bin/true", "timeout": -1}])
def test_impossible_hook(oci: Oci, hook: dict[str, Any]) -> None:
    """Paths that are not absolute or not there, and timeouts that are none, fail create."""
    if hook.get("timeout") == -1 and not oci.runtime.is_vm:
        pytest.skip("runc takes a timeout of -1")
    bundle = oci.bundle("true")
    bundle.config["hooks"] = {"prestart": [{"args": ["x"], **hook}]}
    refused = oci.run(bundle, timeout=30).fails(1)
    assert "hook" in refused.stderr or hook["path"] in refused.stderr, refused


def test_hooks_of_exec_there_are_none(oci: Oci) -> None:
    """exec runs no hooks."""
    bundle, folder = with_hooks(oci)
    with oci.running(bundle) as c:
        before = order(folder)
        c.sh("true").ok()
        assert order(folder) == before
