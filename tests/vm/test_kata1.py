"""Our guest image under a Kata 1.x runtime: kata-proxy on the machine's port, plain gRPC in front, kata-shim."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from harness import kata1_qemu
from harness.components import proxy, shim
from harness.oci import Oci
from harness.stubs import Stubs, read_all
from kata.conformance.engines.host import image_root
from kata_agent.protocol import agent_pb2 as pb
from kata_agent.protocol import oci_pb2
from tests.agent.machine import SHARED, Machine

pytestmark = pytest.mark.vm_only


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("vm"), tokenless=True)
    try:
        image_root(machine.share / "base")
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="module")
def listen(machine: Machine) -> Iterator[str]:
    path = str(machine.folder / "proxy.sock")
    with proxy(str(machine.folder / "channel.sock"), path, "-sandbox", "sb"):
        yield path


@pytest.fixture(scope="module")
def stubs(listen: str) -> Iterator[Stubs]:
    """A runtime that has made the sandbox; it asks while the guest boots."""
    with grpc.insecure_channel(f"unix:{listen}") as channel:
        stubs = Stubs(channel)
        assert stubs.Check(timeout=90).status == 1
        stubs.CreateSandbox(hostname="h", sandbox_id="sb", storages=[pb.Storage(
            driver="9p", source="kataShared", fstype="9p", mount_point=SHARED,
            options=["trans=virtio", "version=9p2000.L", "cache=mmap"])])
        yield stubs


def create(stubs: Stubs, name: str, *args: str) -> None:
    spec = oci_pb2.Spec(Version="1.0.2", Process=oci_pb2.Process(
        Args=args, Env=["PATH=/bin:/usr/bin"], Cwd="/"), Root=oci_pb2.Root(Path=f"{SHARED}/base"))
    for kind in ("pid", "mount", "ipc", "uts"):
        spec.Linux.Namespaces.add(Type=kind)
    spec.Mounts.add(type="proc", source="proc", destination="/proc")
    spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/dev", options=["nosuid", "mode=755"])
    stubs.CreateContainer(container_id=name, exec_id=name, OCI=spec)


def test_a_container(stubs: Stubs) -> None:
    create(stubs, "c1", "sh", "-c", "cat; hostname; echo done >&2; exit 5")
    ids = {"container_id": "c1", "exec_id": "c1"}
    stubs.StartContainer(container_id="c1")
    assert stubs.WriteStdin(data=b"hello\n", **ids).len == 6
    stubs.CloseStdin(**ids)
    assert read_all(stubs.ReadStdout, **ids) == b"hello\nh\n"
    assert read_all(stubs.ReadStderr, **ids) == b"done\n"
    assert stubs.WaitProcess(**ids).status == 5
    stubs.RemoveContainer(container_id="c1")


def test_kata_shim(stubs: Stubs, listen: str) -> None:
    data = os.urandom(1 << 20)
    create(stubs, "c2", "sh", "-c", "cat; echo done >&2; exit 7")
    with shim(listen, "c2", "c2") as program:
        stubs.StartContainer(container_id="c2")
        assert program.process.communicate(data, timeout=90) == (data, b"done\n")
        assert program.wait() == 7
    stubs.RemoveContainer(container_id="c2")


# --- the other way: our runtime, and a guest that holds a Kata 1.x agent ----------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kata1")
    program = folder / "qemu"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {kata1_qemu.__file__} \"$@\"\n")
    program.chmod(0o755)
    path = folder / "configuration.toml"
    path.write_text(f'[hypervisor.qemu]\npath = "{program}"\n[agent.kata]\ntransport = "yamux-grpc"\n')
    return str(path)


def test_our_runtime_drives_a_kata1_agent(oci: Oci, config: str, tmp_path: Path) -> None:
    """Create, start, streams, exit status, delete, as with our agent."""
    (tmp_path / "in").write_bytes(b"in\n" * 100_000)
    with oci.container(oci.bundle("cat; echo err >&2; exit 6")) as box, (tmp_path / "in").open("rb") as stdin:
        box.launch_verb("create", globals=["--kata-config", config], stdin=stdin, timeout=120).ok()
        box.start().ok()
        assert box.wait() == 6
        assert (box.stdout, box.stderr) == ("in\n" * 100_000, "err\n")


def test_exec_and_kill_with_a_kata1_agent(oci: Oci, config: str) -> None:
    with oci.container(oci.bundle()) as box:
        box.launch_verb("create", globals=["--kata-config", config], timeout=120).ok()
        box.start().ok()
        done = box.sh("cat; echo err >&2; exit 3", input=b"abc")
        assert (done.stdout, done.stderr, done.rc) == ("abc", "err\n", 3)
        box.kill("KILL").ok()
        assert box.wait() == 137
