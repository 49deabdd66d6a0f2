"""Several containers in one sandbox, by the annotations of containerd, CRI-O and dockershim."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from harness.bundle import Bundle
from harness.oci import Container, Oci
from harness.text import compare, script, sections
from harness.wait import alive, eventually

pytestmark = pytest.mark.vm_only

#: How each engine says what a container is: (sandbox id or "") -> annotations.
DIALECTS: dict[str, Callable[[str], dict[str, str]]] = {
    "containerd": lambda sandbox: (
        {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox}
        if sandbox
        else {"io.kubernetes.cri.container-type": "sandbox"}
    ),
    "cri-o": lambda sandbox: (
        {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": sandbox}
        if sandbox
        else {"io.kubernetes.cri-o.ContainerType": "sandbox"}
    ),
    "dockershim": lambda sandbox: (
        {"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": sandbox}
        if sandbox
        else {"io.kubernetes.docker.type": "podsandbox"}
    ),
}

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def member(oci: Oci, dialect: str, sandbox: Container | None, text: str = "") -> Bundle:
    """A bundle of a pod: its sandbox, or a container that joins ``sandbox``."""
    bundle = oci.bundle(text)
    bundle.config["annotations"] = DIALECTS[dialect](sandbox.id if sandbox else "")
    if sandbox:
        for ns in bundle.linux["namespaces"]:
            if ns["type"] in ("network", "ipc", "uts"):
                ns["path"] = f"/proc/{sandbox.pid}/ns/{ns['type'].replace('network', 'net')}"
        del bundle.config["hostname"]
    return bundle


@pytest.mark.parametrize("dialect", DIALECTS)
def test_containers_of_a_pod_share_a_machine(oci: Oci, dialect: str) -> None:
    """One kernel, one network, one hostname, shared memory; own roots, pids, exit codes."""
    with oci.running(member(oci, dialect, None)) as pause:
        exchange = script(
            boot=BOOT_ID, hostname="hostname", pids="cat /proc/1/cmdline | tr '\\0' ' ' | cut -c1-7",
            port="nc -l -p 7777 -e cat >/dev/null 2>&1 & echo", shm="ls /dev/shm",
        )  # fmt: skip
        first = sections(pause.sh(exchange).ok().stdout)
        with oci.running(member(oci, dialect, pause)) as one:
            second_bundle = member(oci, dialect, pause, "echo from two; cat /mark 2>/dev/null; exit 9")
            with oci.created(second_bundle) as two:
                pause.sh("echo mine > /mark").ok()
                one.sh("echo one > /mark").ok()
                code, out, _ = two.finish()
                assert (code, out) == (9, "from two\n")
                states = {e["id"]: e["status"] for e in json.loads(oci.verb("list", "--format", "json").ok().stdout)}
                assert (states[pause.id], states[one.id], states[two.id]) == ("running", "running", "stopped")
                two.delete().ok()
                assert two.launch
                two.launch.gone()
            got = sections(
                one.sh(
                    script(boot=BOOT_ID, hostname="hostname", mark="cat /mark",
                           talk="echo through the pod | nc 127.0.0.1 7777")
                ).ok().stdout
            )  # fmt: skip
            compare(
                got, {"boot": first["boot"], "hostname": first["hostname"], "mark": "one", "talk": "through the pod"}
            )
            assert one.sh("echo still").ok().out == "still"
            one.kill("KILL").ok()
            assert one.wait() == 137
            assert pause.status == "running"
        assert pause.sh("cat /mark").ok().out == "mine"


def test_end_of_the_sandbox_ends_its_containers(oci: Oci) -> None:
    """When the sandbox container is deleted by force, its containers are over, with 137, and deletable."""
    with oci.running(member(oci, "containerd", None)) as pause:
        with oci.running(member(oci, "containerd", pause)) as one:
            pause.delete("--force").ok()
            assert one.wait(30) == 137
            eventually("its container stopped", lambda: one.status == "stopped", 20)
            one.delete().ok()
        assert pause.launch
        pause.launch.gone()


def test_unknown_sandbox(oci: Oci) -> None:
    """A container of a sandbox that is not there is refused by its name, and so is a type nobody knows."""
    for dialect, of in DIALECTS.items():
        bundle = oci.bundle("true")
        bundle.config["annotations"] = of("no-such-sandbox")
        assert "no-such-sandbox" in oci.run(bundle, timeout=30).fails(1).stderr, dialect
    bundle = oci.bundle("true")
    bundle.config["annotations"] = {"io.kubernetes.cri.container-type": "balloon"}
    assert "balloon" in oci.run(bundle, timeout=30).fails(1).stderr


def test_failed_join_leaves_the_pod(oci: Oci) -> None:
    """A container that cannot be made in a pod leaves the others and the machine alone."""
    with oci.running(member(oci, "cri-o", None)) as pause:
        bad = member(oci, "cri-o", pause)
        bad.process["args"] = ["/nosuch"]
        with oci.container(bad) as c:
            c.launch_verb("create").fails(1)
            oci.verb("state", c.id).fails(1)
        assert pause.sh("echo fine").ok().out == "fine"


def test_pause_of_one_container(oci: Oci) -> None:
    """Pausing a container of a pod leaves the others running."""
    with oci.running(member(oci, "containerd", None)) as pause, oci.running(member(oci, "containerd", pause)) as one:
        oci.verb("pause", one.id).ok()
        assert pause.sh("echo runs").ok().out == "runs"
        one.sh("true").fails()
        oci.verb("resume", one.id).ok()
        assert one.sh("echo runs").ok().out == "runs"


def test_ten_containers(oci: Oci) -> None:
    """Ten containers in one machine, each with its own end; deleted at once, they take it along."""
    with oci.running(member(oci, "containerd", None)) as pause, ExitStack() as stack:
        boot = pause.sh(BOOT_ID).ok().out
        members = [
            stack.enter_context(oci.created(member(oci, "containerd", pause, f"{BOOT_ID}; exit {n}")))
            for n in range(10)
        ]
        for number, c in enumerate(members):
            code, out, _ = c.finish()
            assert (code, out.strip()) == (number, boot)
        pids = [p for p in (c.pid for c in members) if alive(p) and p != os.getpid()]
        assert not pids, f"shims of ended containers still live: {pids}"
        oci.verb("kill", pause.id, "KILL").ok()
        pause.wait()
        with ThreadPoolExecutor(11) as threads:
            for deleted in threads.map(lambda c: c.delete(), [*members, pause]):
                deleted.ok()
        pause.assert_gone()
