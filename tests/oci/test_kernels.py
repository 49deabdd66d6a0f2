"""Guest kernels: Debian's does what the suites ask of the one in use, and a kernel that lacks something is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.oci import Oci
from harness.proc import run
from harness.text import compare, script, sections
from kata.assets import store
from kata.errors import NotFound

pytestmark = pytest.mark.vm_only

MIB = 1 << 20


@pytest.fixture(scope="module")
def stock() -> str:
    """Settings for the stock kernel and its initrd, by path."""
    try:
        kernel = store.find(("kernel",), "stock")
        initrd = [a for a in store.list_assets("initrd") if a.inputs.get("kernel") == kernel.id][-1]
    except (NotFound, IndexError):
        pytest.fail("there is no stock kernel: kata kernel build stock")
    vmlinux = f"{kernel.path}/{kernel.files['kernel']}"
    return f'[hypervisor.qemu]\nkernel = "{vmlinux}"\ninitrd = "{initrd.path}/initrd.cpio"\n'


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stock: str):  # type: ignore[no-untyped-def]
    """Makes verbs use the stock kernel, with more settings."""

    def use(more: str = "") -> None:
        config = tmp_path / "configuration.toml"
        config.write_text(stock + more)
        monkeypatch.setenv("KATA_CONF_FILE", str(config))

    return use


def test_stock_kernel(oci: Oci, configure) -> None:  # type: ignore[no-untyped-def]
    """Volume, tmpfs, interface, memory and processor beyond the default, limits."""
    configure()
    volume = oci.work_dir / "stock-volume"
    volume.mkdir()
    name = f"{oci.tag}-stock"
    run("ip", "netns", "add", name).ok()
    try:
        setup = ("ip link set lo up; ip link add eth7 type veth peer name out7; ip addr add 10.77.0.1/24 dev out7; "
                 "ip link set out7 up; ip link set eth7 up; ip addr add 10.77.0.2/24 dev eth7")
        run("nsenter", f"--net=/run/netns/{name}", "sh", "-ec", setup).ok()
        bundle = oci.bundle().bind(volume, "/vol").tmpfs("/scratch", "size=1m")
        bundle.linux["resources"].update({"memory": {"limit": 256 * MIB}, "cpu": {"quota": 100000, "period": 100000}})
        for ns in bundle.linux["namespaces"]:
            if ns["type"] == "network":
                ns["path"] = f"/run/netns/{name}"
        check = script(
            kernel="uname -r",
            volume="echo from-guest >/vol/file && cat /vol/file",
            scratch="df -k /scratch | awk 'END { print $2 }'",
            address="ip -o -4 addr show eth7 | awk '{ print $4 }'",
            memory="cat /sys/fs/cgroup/memory.max",
            quota="cat /sys/fs/cgroup/cpu.max",
        )
        with oci.running(bundle) as c:
            seen = sections(c.sh(check).ok().stdout)
        compare(seen, {
            "kernel": store.find(("kernel",), "stock").kernel_release, "volume": "from-guest", "scratch": "1024",
            "address": "10.77.0.2/24", "memory": str(256 * MIB), "quota": "100000 100000"})
        assert (volume / "file").read_text() == "from-guest\n"
    finally:
        run("ip", "netns", "delete", name).ok()


def test_packed_module_loads_when_asked_for(oci: Oci, configure) -> None:  # type: ignore[no-untyped-def]
    configure('[agent.kata]\nkernel_modules = ["xfs"]\n')
    assert "\txfs" in oci.run(oci.bundle("cat /proc/filesystems")).ok().out


def test_a_kernel_without_the_channel_is_named_at_once(oci: Oci, configure) -> None:  # type: ignore[no-untyped-def]
    """The guest says what its kernel lacks; nobody waits for the boot timeout."""
    configure('kernel_params = "initcall_blacklist=virtio_console_init"\n[factory]\nenable_template = false\n')
    failed = oci.run(oci.bundle("true"), timeout=50).fails(1)
    assert "ended before its agent answered" in failed.stderr
    assert "this guest's kernel lacks CONFIG_VIRTIO_CONSOLE (the channel to the host is" in failed.stderr, failed


def test_a_kernel_without_a_controller_is_named_where_it_is_asked_for(  # type: ignore[no-untyped-def]
    oci: Oci, configure
) -> None:
    configure('kernel_params = "cgroup_disable=hugetlb"\n[factory]\nenable_template = false\n')
    bundle = oci.bundle("true")
    bundle.linux["resources"]["hugepageLimits"] = [{"pageSize": "2MB", "limit": 4 * MIB}]
    failed = oci.run(bundle, timeout=50).fails(1)
    assert "the 2MB page limit" in failed.stderr
    assert "this guest's kernel lacks CONFIG_CGROUP_HUGETLB (containers are limited" in failed.stderr, failed
