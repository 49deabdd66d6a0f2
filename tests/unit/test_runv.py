"""The runv flavor: its options, where it finds what boots, its sizes, its pods."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata import machineplan, oci
from kata.contract import InvocationOptions, RuntimeConfig, SandboxPlan
from kata.errors import ConfigError
from kata_runv import RunvBackend

HOST = {"host_cpus": 4, "host_memory": 8192, "kernel_asset": "/k", "initrd_asset": "/i", "image_asset": "/img",
        "boot_initrd_asset": "/b", "guest_folders": ("/etc/security",)}
FLOOR = machineplan.LEAST_WITH_INITRD


def load(**options: str) -> RuntimeConfig:
    return RunvBackend().load_config(InvocationOptions(options=options), {})


def bundle(folder: Path, resources: dict[str, Any] | None = None, env: list[str] | None = None,
           annotations: dict[str, str] | None = None) -> oci.Bundle:
    (folder / "rootfs").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({
        "ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/", "env": env or []},
        "root": {"path": "rootfs"}, "annotations": annotations or {},
        "linux": {"namespaces": [{"type": t} for t in ("pid", "network", "mount", "uts")],
                  "resources": resources or {}}}))
    return oci.load(str(folder), "c1")


def plan(made: oci.Bundle, **options: str) -> SandboxPlan:
    return RunvBackend().plan_sandbox(load(**options), made, InvocationOptions(**HOST))


# --- options -------------------------------------------------------------------------------


def test_defaults(tmp_path: Path) -> None:
    assert list(RunvBackend().config_paths(InvocationOptions())) == []
    config = load()
    assert (config.machine_type, config.default_vcpus, config.default_memory) == ("pc", 1, 128)
    assert (config.internetworking_model, config.template) == ("mirred", False)
    made = plan(bundle(tmp_path))
    assert (made.machine.kernel, made.machine.initrd, made.machine.image, made.boot) == ("/k", "/i", "", "cold")


@pytest.mark.parametrize(("options", "field", "value"), [
    ({"driver": "kvm"}, "accelerator", "auto"),
    ({"driver": "qemu-kvm"}, "accelerator", "auto"),
    ({"driver": "qemu"}, "accelerator", "auto"),
    ({"agent": "kata"}, "agent_transport", "ttrpc"),
    ({"default_cpus": "3"}, "default_vcpus", 3),
    ({"default_memory": "512"}, "default_memory", 512),
    ({"kernel": "/etc/passwd"}, "kernel", "/etc/passwd"),
    ({"initrd": "/etc/passwd"}, "initrd", "/etc/passwd"),
    ({"bios": "/etc/passwd"}, "firmware", "/etc/passwd"),
    ({"template": "/run/t"}, "template_path", "/run/t"),
    ({"template": "/run/t"}, "template", True),
    ({"debug": "True"}, "debug_agent", True),
])
def test_option(options: dict[str, str], field: str, value: Any) -> None:
    assert getattr(load(**options), field) == value


def test_a_path_is_relative_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinux").write_bytes(b"x")
    assert load(kernel="vmlinux").kernel == f"{os.getcwd()}/vmlinux"


@pytest.mark.parametrize(("options", "says"), [
    ({"driver": "xen"}, "use --driver qemu"),
    ({"driver": "xenpv"}, "use --driver qemu"),
    ({"driver": "libvirt"}, "use --driver qemu"),
    ({"driver": "kvmtool"}, "use --driver qemu"),
    ({"driver": "hyperkit"}, "use --driver qemu"),
    ({"driver": "bochs"}, "--driver: one of 'qemu'"),
    ({"agent": "hyperstart"}, "use --agent kata"),
    ({"agent": "hyper"}, "--agent: one of"),
    ({"cbfs": "/x"}, "give --kernel and --initrd, or --bios"),
    ({"vsock": "True"}, "virtio-serial"),
    ({"default_cpus": "9"}, "from 1 to 8"),
    ({"default_cpus": "many"}, "--default_cpus: a whole number"),
    ({"default_memory": "0"}, "at least 1"),
    ({"kernel": "/nonexistent"}, "there is no such file"),
])
def test_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**options)
    assert says in str(caught.value)


def test_no_file() -> None:
    with pytest.raises(ConfigError, match="has no configuration file"):
        RunvBackend().load_config(InvocationOptions(config_path="/x"), {})


# --- what boots ------------------------------------------------------------------------------


def test_search_order(tmp_path: Path) -> None:
    """The process's environment, the option, the root's boot folder, the bundle's, the bundle, the store."""
    made = bundle(tmp_path)
    for folder in (tmp_path, tmp_path / "boot", tmp_path / "rootfs/boot"):
        folder.mkdir(exist_ok=True)
        (folder / "kernel").write_bytes(b"x")
        assert plan(made).machine.kernel == f"{folder}/kernel"
    (tmp_path / "rootfs/boot/hyper-initrd.img").write_bytes(b"x")
    (tmp_path / "rootfs/boot/bios.bin").write_bytes(b"x")
    found = plan(made).machine
    assert (found.initrd, found.firmware) == (f"{tmp_path}/rootfs/boot/hyper-initrd.img",
                                              f"{tmp_path}/rootfs/boot/bios.bin")
    assert plan(made, kernel="/etc/hostname").machine.kernel == "/etc/hostname"
    kernel, initrd = "/etc/security/limits.conf", "/etc/security/pam_env.conf"
    asked = bundle(tmp_path, env=[f"hypervisor.kernel={kernel}", f"hypervisor.initrd={initrd}"])
    found = plan(asked, kernel="/etc/hostname").machine
    assert (found.kernel, found.initrd) == (kernel, initrd)


def test_links_in_a_root_are_not_followed(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    (tmp_path / "rootfs/boot").mkdir()
    (tmp_path / "rootfs/boot/kernel").symlink_to("/etc/passwd")
    assert plan(made).machine.kernel == "/k"
    (tmp_path / "rootfs/boot/kernel").unlink()
    (tmp_path / "rootfs/boot").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kernel").write_bytes(b"x")
    (tmp_path / "rootfs/boot").symlink_to("../elsewhere")
    assert plan(made).machine.kernel == "/k"


@pytest.mark.parametrize(("variable", "says"), [
    ("hypervisor.cbfs=/x", "give --kernel and --initrd"),
    ("hypervisor.kernal=/x", "did you mean 'kernel'?"),
    ("hypervisor.kernel=x", "an absolute path is expected"),
    ("hypervisor.bios=/etc/security/none", "there is no such file"),
    ("hypervisor.initrd=/etc/shadow", "not in a folder that containers may choose from"),
    ("hypervisor.kernel=/etc/security/../shadow", "not in a folder that containers may choose from"),
])
def test_wrong_variables(tmp_path: Path, variable: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(bundle(tmp_path, env=[variable]))
    assert says in str(caught.value)


def test_a_cbfs_in_the_bundle_is_named(tmp_path: Path) -> None:
    (tmp_path / "cbfs.rom").write_bytes(b"x")
    warnings = RunvBackend().plan_container(load(), bundle(tmp_path), "c1", "single").warnings
    assert any("cbfs.rom is not used" in w for w in warnings)


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("resources", "vcpus", "memory"), [
    ({}, 1, FLOOR),
    ({"memory": {"limit": 512 << 20}}, 1, 512),
    ({"memory": {"limit": 64 << 20}}, 1, FLOOR),
    ({"cpu": {"quota": 250000, "period": 100000}}, 3, FLOOR),  # replaces
    ({"cpu": {"quota": 2000000, "period": 100000}}, 8, FLOOR),
    ({"cpu": {"cpus": "0-3"}}, 1, FLOOR),
])
def test_limits_replace_the_defaults(tmp_path: Path, resources: dict[str, Any], vcpus: int, memory: int) -> None:
    machine = plan(bundle(tmp_path, resources)).machine
    assert (machine.vcpus, machine.max_vcpus, machine.memory, machine.max_memory) == (vcpus, vcpus, memory, memory)


def test_template(tmp_path: Path) -> None:
    """A template has the default size, and room for every container's."""
    made = plan(bundle(tmp_path, {"memory": {"limit": 512 << 20}, "cpu": {"quota": 200000}}), template="/run/t")
    assert (made.boot, made.template_path, made.base_vcpus, made.base_memory) == \
        ("template", "/run/t", 1, FLOOR)
    assert (made.machine.vcpus, made.machine.max_vcpus, made.machine.memory, made.machine.max_memory) == \
        (2, 8, 512, 8192)


def test_resize_changes_nothing() -> None:
    size = RunvBackend().plan_resize(load(), [{"memory": {"limit": 1 << 30}}, {"memory": {"limit": 1 << 32},
                                                                              "cpu": {"quota": 300000}}])
    assert (size.vcpus, size.memory) == (1, 1024)


# --- pods -------------------------------------------------------------------------------------


KIND, ID, NAME = (f"io.kubernetes.cri-o.{n}" for n in ("ContainerType", "SandboxID", "SandboxName"))


@pytest.mark.parametrize(("annotations", "expected"), [
    ({}, ("single", "")),
    ({KIND: "sandbox"}, ("sandbox", "")),
    ({KIND: "container", NAME: "pod"}, ("container", "pod")),
    ({KIND: "container", NAME: "k8s_pod", ID: "0123"}, ("container", "0123")),
    ({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "p"}, ("single", "")),
])
def test_pods(tmp_path: Path, annotations: dict[str, str], expected: tuple[str, str]) -> None:
    assert RunvBackend().sandbox_of(bundle(tmp_path, annotations=annotations)) == expected


def test_what_it_can() -> None:
    capabilities = RunvBackend.capabilities
    assert (capabilities.templates, capabilities.join_by_netns, capabilities.initrd_boot) == (True, True, True)
    assert not any((capabilities.resize, capabilities.update, capabilities.events, capabilities.image_boot))
