"""Machines that do not come up: one clear error within the configured time, exit code 1, nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.netns import NetworkNamespace
from harness.oci import Oci
from harness.proc import Result, run
from harness.sandbox import assert_nothing_left
from kata.network import names

pytestmark = pytest.mark.vm_only

NO_FACTORY = "[factory]\nenable_template = false\n"


def refused(oci: Oci, text: str, *needles: str, seconds: float) -> Result:
    """``run`` with a configuration must fail in time and name ``needles``."""
    id = oci.new_id()
    config = oci.work_dir / f"{id}.toml"
    config.write_text(text + NO_FACTORY)
    bundle = oci.bundle().write()
    result = run(*oci.argv("--kata-config", str(config), "run", "--bundle", str(bundle.path), id),
                 timeout=seconds + 30).fails(1)
    assert result.seconds < seconds, result
    assert result.stderr.count("\n") == 1, f"more than one error\n{result}"
    assert "Traceback" not in result.stderr and "internal error" not in result.stderr, result
    missing = [n for n in needles if n.lower() not in result.stderr.lower()]
    assert not missing, f"the error does not name {missing}\n{result}"
    assert_nothing_left(oci.root, id, (str(bundle.path),))
    return result


def test_bad_machine_option(oci: Oci) -> None:
    refused(oci, '[hypervisor.qemu]\nmachine_accelerators = "nosuch=on"\n', "nosuch", "QEMU said", seconds=20)


def test_bad_cpu_feature(oci: Oci) -> None:
    refused(oci, '[hypervisor.qemu]\ncpu_features = "nosuchfeature=on"\n', "nosuchfeature", seconds=20)


def test_qemu_that_ends_at_once(oci: Oci, tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'I am no emulator' >&2\nexit 1\n")
    program.chmod(0o755)
    refused(oci, f'[hypervisor.qemu]\npath = "{program}"\n', "I am no emulator", seconds=20)


def test_qemu_that_does_nothing(oci: Oci, tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    refused(oci, f'[hypervisor.qemu]\npath = "{program}"\n', "did not greet", seconds=40)


def test_guest_that_panics(oci: Oci) -> None:
    """The kernel finds no init: known at once, not after the timeout."""
    refused(oci, '[hypervisor.qemu]\nkernel_params = "rdinit=/nosuch init=/nosuch root=/dev/nosuch"\n',
            "ended before its agent answered", "panic", seconds=45)


def test_agent_that_never_answers(oci: Oci) -> None:
    """A guest that comes up and stays silent: the configured time is kept."""
    result = refused(oci, '[hypervisor.qemu]\nkernel_params = "rdinit=/bin/busybox -- sh -c read"\n'
                          '[agent.kata]\nboot_timeout = 12\n', "12 s", seconds=40)
    assert result.seconds > 10, result


def test_full_run_directory(oci: Oci) -> None:
    """No room for the sandbox's folder, in a mount namespace of the test's own."""
    bundle, id = oci.bundle().write(), oci.new_id()
    script = ("mount -t tmpfs -o size=64k,nr_inodes=6 none /run/kata && exec \"$@\"")
    result = run("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
                 *oci.argv("run", "--bundle", str(bundle.path), id), timeout=60).fails(1)
    assert "no space left" in result.stderr.lower() and "Traceback" not in result.stderr, result
    assert "internal error" not in result.stderr, result
    assert_nothing_left(oci.root, id, (str(bundle.path),))


def test_image_that_does_not_boot(oci: Oci, tmp_path: Path) -> None:
    """No file system in the root image: the kernel's own words, at once."""
    image = tmp_path / "broken.img"
    image.write_bytes(bytes(1 << 20))
    refused(oci, f'[hypervisor.qemu]\nimage = "{image}"\n', "/dev/vda", "panic", seconds=45)


def test_used_tap(oci: Oci, tag: str) -> None:
    """Somebody else's interface has the tap's name: the error names it; the interface stays."""
    network = NetworkNamespace(f"{tag}-tap").create()
    try:
        network.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0").ok()
        network.run("ip", "link", "set", "eth0", "up").ok()
        name = names.tap(_index(network, "eth0"))
        network.run("ip", "link", "add", name, "type", "bridge").ok()
        id, bundle = oci.new_id(), oci.bundle().in_network(network.path).write()
        result = run(*oci.argv("run", "--bundle", str(bundle.path), id), timeout=60).fails(1)
        assert name in result.stderr and "in use" in result.stderr and "Traceback" not in result.stderr, result
        assert_nothing_left(oci.root, id, (str(bundle.path),))
        assert f"{name}:" in network.run("ip", "link").stdout
    finally:
        network.delete()


def _index(network: NetworkNamespace, interface: str) -> int:
    return int(network.run("ip", "-o", "link", "show", interface).ok().out.split(":")[0])
