"""Templates: one is made however many ask for it, nobody waits for it, and a clone is a machine of its own."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import grpc
import pytest

from harness.factory import Factory, factory
from harness.netns import NetworkNamespace
from harness.oci import Container, Oci
from harness.proc import environment, run
from harness.sandbox import Parts, assert_nothing_left
from harness.wait import eventually
from kata.conformance.engines.host import processes
from kata_agent.protocol import agent_pb2, guest_pb2, oci_pb2

pytestmark = pytest.mark.vm_only


@pytest.fixture
def fresh(oci: Oci) -> Iterator[Factory]:
    """Nothing made yet."""
    name = f"fresh{next(oci.numbers)}"
    with factory(oci, name, 0) as f:
        yield f


@pytest.fixture(scope="module")
def made(oci: Oci) -> Iterator[Factory]:
    with factory(oci, "made", 2) as f:
        f.verb("factory", "init").ok()
        yield f


def templates(f: Factory) -> list[Path]:
    return sorted(path.parent for path in f.templates.glob("*/template.json"))


def said(f: Factory) -> str:
    return (f.templates / "factory.log").read_text()


def start(f: Factory, script: str) -> str:
    """Output of a container, of which nothing may be left."""
    bundle, id = f.oci.bundle(script).write(), f.oci.new_id()
    done = f.verb("run", "--bundle", str(bundle.path), id).ok()
    assert_nothing_left(f.oci.root, id, (str(bundle.path),))
    return done.out


# --- making -----------------------------------------------------------------------------------


def test_one_is_made(fresh: Factory) -> None:
    """Three first starts and 17 makers at the same time."""
    with ThreadPoolExecutor(20) as threads:
        starts = [threads.submit(start, fresh, f"echo {i}") for i in range(3)]
        makers = [threads.submit(fresh.verb, "factory", "init", timeout=150) for _ in range(17)]
        assert [s.result() for s in starts] == ["0", "1", "2"]
        assert all(m.result().rc == 0 for m in makers)
    assert said(fresh).count("template made") == 1
    assert len(templates(fresh)) == 1
    assert not list(fresh.templates.glob("*.making"))


def test_nobody_waits_for_it(fresh: Factory) -> None:
    """A start boots while a maker is at work, for however long: it is one who holds the lock."""
    fresh.templates.mkdir()
    with open(fresh.templates / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert start(fresh, "echo booted") == "booted"
        assert not templates(fresh)


def test_first_start_leaves_one(fresh: Factory) -> None:
    assert start(fresh, "echo cold") == "cold"
    eventually("the template", lambda: templates(fresh), 90)
    with fresh.oci.container(fresh.oci.bundle()) as c:
        c.launch_verb("create", globals=fresh.globals).ok()
        assert "boot" not in Parts(fresh.oci.root, c.id).folder.joinpath("console.log").read_text()


def test_its_maker_holds_no_mount_of_the_first_start(fresh: Factory, tmp_path: Path) -> None:
    """It outlives that sandbox, and would keep the container's file systems busy."""
    source = fresh.oci.new_id()  # of the mount: tells it from all others
    bundle = fresh.oci.bundle("exit 0")
    bundle.config["root"]["path"] = str(tmp_path)
    run("mount", "-t", "tmpfs", source, str(tmp_path)).ok()
    try:
        shutil.copytree(bundle.rootfs, tmp_path, symlinks=True, dirs_exist_ok=True)
        with fresh.oci.container(bundle) as c:
            c.launch_verb("create", globals=fresh.globals).ok()
            qemu = Parts(fresh.oci.root, c.id).qemu
            assert source in Path(f"/proc/{qemu}/mountinfo").read_text()

            def maker() -> int:
                return next((int(line.split()[0]) for line in processes([f"{fresh.templates}/"])
                             if "-name template" in line), 0)

            assert source not in Path(f"/proc/{eventually('the maker', maker)}/mountinfo").read_text()
    finally:
        run("umount", str(tmp_path)).ok()


def test_other_files_another_template(oci: Oci, fresh: Factory, tmp_path: Path) -> None:
    """Kernel, initrd, QEMU's binary, plan: whatever changes, the old template is not used."""
    selected = Path("/var/lib/kata/assets/selected")
    files = {name: tmp_path / name for name in ("kernel", "initrd")}
    for name, path in files.items():
        shutil.copyfile(selected / name, path)
    files["path"] = tmp_path / "qemu"
    files["path"].write_text('#!/bin/sh\nexec qemu-system-x86_64 "$@"\n')
    files["path"].chmod(0o755)
    lines = "\n".join(f'{name} = "{path}"' for name, path in files.items())

    def is_on() -> bool:
        return "is on" in fresh.verb("factory", "status").ok().stdout

    fresh.configure(0, lines)
    fresh.verb("factory", "init").ok()
    assert is_on()
    for path in files.values():
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert not is_on(), path
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert is_on(), path
    fresh.configure(0, lines + '\nkernel_params = "x=1"')
    assert not is_on()
    fresh.verb("factory", "init").ok()
    assert is_on() and len(templates(fresh)) == 2
    assert "x=1" in start(fresh, "cat /proc/cmdline")


@pytest.mark.parametrize("what", ["all", "memory", "state", "cut memory", "cut state"])
def test_damage(oci: Oci, made: Factory, what: str) -> None:
    """Parts vanish while a clone runs: it goes on, the next start boots, and the template is made anew."""
    made.configure(0)
    if not templates(made):
        made.verb("factory", "init").ok()
    (template,) = templates(made)
    inode = (template / "state").stat().st_ino
    with oci.container(oci.bundle()) as c:
        c.launch_verb("create", globals=made.globals).ok()
        c.start().ok()
        if what == "all":
            shutil.rmtree(template)
        elif what.startswith("cut"):
            damaged = template / what.split()[1]
            aside = template / "aside"
            aside.write_bytes(damaged.read_bytes()[:100_000])
            aside.rename(damaged)
        else:
            (template / what).unlink()
        assert c.exec("echo", "alive").ok().out == "alive"
        assert start(made, "echo works") == "works"

        def new_one() -> bool:
            return bool(templates(made)) and (template / "state").stat().st_ino != inode

        eventually("a new template", new_one, 90)
        assert c.exec("cat", "/proc/sys/kernel/random/uuid").ok().out


# --- clones are distinct ----------------------------------------------------------------------

COUNT = 10
#: One line for each line that it reads: the time.
CLOCK = "while read line; do echo $EPOCHREALTIME; done"


@pytest.fixture
def networks(tag: str) -> Iterator[list[NetworkNamespace]]:
    made: list[NetworkNamespace] = []
    try:
        for n in range(COUNT):
            each = NetworkNamespace(f"{tag}-clone{n}").create()
            made.append(each)
            each.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other").ok()
            each.run("ip", "address", "add", f"10.215.{n}.2/24", "dev", "eth0").ok()
            each.run("ip", "link", "set", "eth0", "up").ok()
        yield made
    finally:
        for each in made:
            each.delete()


def test_clones_are_distinct(oci: Oci, made: Factory, networks: list[NetworkNamespace]) -> None:
    """Ten machines of one template, some of them out of the pool: entropy, machine id, generation id, host name,
    MAC, and the time."""
    made.configure(2)
    if not templates(made):
        made.verb("factory", "init").ok()
    made.keep()
    containers: list[Container] = []
    made.await_machines(2)
    made.stop()  # else more would come out of the pool

    def launch(n: int) -> Container:
        bundle = oci.bundle().merge({"hostname": f"clone{n}"}).in_network(networks[n].path)
        container = Container(oci, oci.new_id(), bundle.write())
        containers.append(container)
        container.launch_verb("create", globals=made.globals, timeout=120).ok()
        container.start().ok()
        return container

    try:
        for n in range(COUNT):
            launch(n)
        logs = [Parts(oci.root, c.id).log() for c in containers]
        assert sum("claimed sandbox" in log for log in logs) == 2
        facts = [facts_of(oci, c) for c in containers]
        for name in facts[0]:
            values = [f[name] for f in facts]
            assert len(set(values)) == COUNT and all(values), f"{name}: {values}"
        hosts = [f["hostname"] for f in facts]
        assert sorted(hosts) == sorted(f"clone{n}" for n in range(COUNT))
        skews = [(c.id, clock_skew(oci, c)) for c in containers]
        assert not [s for s in skews if abs(s[1]) > 0.050], f"clocks are off by (s): {skews}"
    finally:
        for container in reversed(containers):  # no id is the beginning of one that is left
            container.dispose(False)


def facts_of(oci: Oci, container: Container) -> dict[str, str]:
    parts = Parts(oci.root, container.id)
    argv = Path(f"/proc/{parts.qemu}/cmdline").read_text().split("\0")
    generation = re.search(r"guid=([0-9a-f-]{36})", " ".join(argv))
    entropy, boot, host, mac = container.sh(
        "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; cat /proc/sys/kernel/random/boot_id; hostname; "
        "cat /sys/class/net/eth0/address").ok().out.split("\n")
    assert generation is not None and boot
    return {"urandom": entropy, "hostname": host, "mac": mac, "vmgenid": generation[1],
            "machine id": machine_id(parts, container)}


def machine_id(parts: Parts, container: Container) -> str:
    """/etc/machine-id of the guest itself, which no container sees: a client of the agent binds it into one."""
    root = f"/run/kata/shared/{container.id}/rootfs"
    spec = oci_pb2.Spec(
        Version="1.0.2", Root=oci_pb2.Root(Path=root),
        Process=oci_pb2.Process(Args=["cat", "/tmp/machine-id"], Env=["PATH=/bin:/usr/bin"], Cwd="/"),
        Mounts=[oci_pb2.Mount(destination="/tmp/machine-id", source="/etc/machine-id", type="bind", options=["bind"])],
        Linux=oci_pb2.Linux(Namespaces=[oci_pb2.LinuxNamespace(Type=t) for t in ("pid", "mount")],
                            CgroupsPath="/kata/probe"))
    ids = {"container_id": "probe", "exec_id": "probe"}
    with grpc.insecure_channel(f"unix:{parts.folder}/agent.sock") as channel:
        def ask(service: str, name: str, request: object, reply: type) -> object:
            call = channel.unary_unary(f"/{service}/{name}", request_serializer=type(request).SerializeToString,
                                       response_deserializer=reply.FromString)  # type: ignore[attr-defined]
            return call(request, timeout=60)

        agent = "grpc.AgentService"
        from google.protobuf import empty_pb2

        ask(agent, "CreateContainer", agent_pb2.CreateContainerRequest(OCI=spec, **ids), empty_pb2.Empty)
        ask(agent, "StartContainer", agent_pb2.StartContainerRequest(container_id="probe"), empty_pb2.Empty)
        ask(agent, "WaitProcess", agent_pb2.WaitProcessRequest(**ids), agent_pb2.WaitProcessResponse)
        read = ask("kata.v1.Guest", "ReadStream", guest_pb2.ReadRequest(stream=1, max_len=100, **ids),
                   guest_pb2.ReadResponse)
        ask(agent, "RemoveContainer", agent_pb2.RemoveContainerRequest(container_id="probe"), empty_pb2.Empty)
    text = read.data.decode().strip()  # type: ignore[attr-defined]
    assert re.fullmatch("[0-9a-f]{32}", text), text
    return text


def clock_skew(oci: Oci, container: Container) -> float:
    """Seconds that the guest's clock is certainly ahead (+) or behind (-): of many questions, the tightest bounds."""
    argv = oci.argv("exec", container.id, "sh", "-c", CLOCK)
    with subprocess.Popen(argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        answers = [ask_time(process.stdin, process.stdout) for _ in range(20)]
        process.stdin.close()
        process.wait(30)
    ahead = max(guest - after for _before, guest, after in answers)
    behind = min(guest - before for before, guest, _after in answers)
    return ahead if ahead > 0 else min(behind, 0.0)


def ask_time(to: IO[bytes], answers: IO[bytes]) -> tuple[float, float, float]:
    before = time.time()
    to.write(b"\n")
    to.flush()
    guest = float(answers.readline())
    return before, guest, time.time()
