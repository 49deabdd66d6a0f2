"""The unified flavor's policy: which plans come out of which configuration and bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kata import oci
from kata.contract import InvocationOptions, RuntimeConfig, SandboxPlan
from kata.errors import BundleError, ConfigError, HostError
from kata.planjson import from_json, to_json
from kata.record import replace
from kata_unified import UnifiedBackend
from kata_unified import backend as unified

OPTIONS = InvocationOptions(host_cpus=4, host_memory=8192, kernel_asset="/k", initrd_asset="/i", image_asset="/img",
                            boot_initrd_asset="/b", tsc_khz=2_000_000)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> UnifiedBackend:
    """The backend on a host without configuration files."""
    monkeypatch.setattr(unified, "CONFIG_PATHS", (str(tmp_path / "none.toml"),))
    return UnifiedBackend()


def bundle(folder: Path, resources: dict[str, Any] | None = None, **rest: Any) -> oci.Bundle:
    (folder / "rootfs").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({
        "ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": t} for t in ("pid", "network", "mount", "uts")],
                  "resources": resources or {}}, **rest}))
    return oci.load(str(folder), "c1")


def machine(config: RuntimeConfig, options: InvocationOptions = OPTIONS, folder: Path | None = None,
            resources: dict[str, Any] | None = None) -> Any:
    assert folder
    return UnifiedBackend().plan_sandbox(config, bundle(folder, resources), options).machine


def test_search_order(backend: UnifiedBackend) -> None:
    environ = {"KATA_CONF_FILE": "/env.toml"}
    assert backend.config_paths(InvocationOptions(config_path="/o.toml", environ=environ)) == ("/o.toml",)
    assert backend.config_paths(InvocationOptions(environ=environ)) == ("/env.toml",)
    assert backend.config_paths(InvocationOptions()) == unified.CONFIG_PATHS


def test_defaults_without_a_file(backend: UnifiedBackend) -> None:
    config = backend.load_config(InvocationOptions(), {})
    assert config == RuntimeConfig() and config.default_memory == 2048
    with pytest.raises(ConfigError, match="Cannot find usable config file"):
        backend.load_config(InvocationOptions(config_path="/nonexistent/c.toml"), {})


def test_an_annotation_asks_for_no_more_memory_than_the_host_has(backend: UnifiedBackend, tmp_path: Path) -> None:
    """What the host's owner writes into the file is another matter."""
    name = "io.katacontainers.config.hypervisor.default_memory"
    file = tmp_path / "c.toml"
    file.write_text('[hypervisor.qemu]\ndefault_memory = 9000\nenable_annotations = ["default_memory"]\n')
    (tmp_path / "i").write_bytes(b"")
    options = replace(OPTIONS, config_path=str(file), initrd_asset=str(tmp_path / "i"))
    assert backend.load_config(options, {}).default_memory == 9000
    assert backend.load_config(options, {name: "8192"}).default_memory == 8192
    with pytest.raises(ConfigError) as failure:
        backend.load_config(options, {name: "8193"})
    assert str(failure.value) == (f"annotation {name}: 8193 MiB are more than the host has, 8192 MiB: ask for less; "
                                  "the configuration file may name any size")


def test_config_path_annotation_is_refused(backend: UnifiedBackend) -> None:
    with pytest.raises(ConfigError, match="config_path is not supported"):
        backend.load_config(InvocationOptions(), {"io.katacontainers.config_path": "/x"})


def test_sandbox_plan(tmp_path: Path) -> None:
    plan = UnifiedBackend().plan_sandbox(RuntimeConfig(), bundle(tmp_path, hostname="box"), OPTIONS)
    assert (plan.id, plan.flavor, plan.boot, plan.hostname) == ("c1", "unified", "template", "box")
    assert (plan.network_model, plan.hotplug_network, plan.shared_pidns) == ("tcfilter", True, False)
    assert from_json(SandboxPlan, json.loads(json.dumps(to_json(plan)))) == plan


def test_accelerator(tmp_path: Path) -> None:
    tcg = machine(RuntimeConfig(), folder=tmp_path)
    assert (tcg.accelerator, tcg.cpu, tcg.machine_type) == ("tcg", "max,-erms,-fsrm", "q35")
    assert "tsc_early_khz=2000000" in tcg.kernel_params and "tsc=reliable" in tcg.kernel_params
    kvm = machine(RuntimeConfig(cpu_features="pmu=off"), InvocationOptions(**{**_dict(OPTIONS), "kvm_usable": True}),
                  tmp_path)
    assert (kvm.accelerator, kvm.cpu) == ("kvm", "host,pmu=off")
    assert not any(p.startswith("tsc") for p in kvm.kernel_params)
    with pytest.raises(HostError, match="KVM cannot be used"):
        machine(RuntimeConfig(accelerator="kvm"), folder=tmp_path)


def test_a_kernel_for_emulated_processors_is_refused_with_kvm(tmp_path: Path) -> None:
    config = RuntimeConfig(kernel="/store/1/vmlinux-tcg")
    assert machine(config, folder=tmp_path).kernel == "/store/1/vmlinux-tcg"
    with_kvm = replace(OPTIONS, kvm_usable=True)
    with pytest.raises(ConfigError, match="kernel /store/1/vmlinux-tcg is for emulated processors") as e:
        machine(config, with_kvm, tmp_path)
    assert e.value.hint == "run `kata kernel build`, or set accelerator = \"tcg\""
    assert machine(replace(config, accelerator="tcg"), with_kvm, tmp_path).accelerator == "tcg"
    (tmp_path / "vmlinux-tcg").write_text("")
    (tmp_path / "kernel").symlink_to("vmlinux-tcg")
    with pytest.raises(ConfigError, match="is for emulated processors"):
        machine(RuntimeConfig(kernel=str(tmp_path / "kernel")), with_kvm, tmp_path)


def _dict(options: InvocationOptions) -> dict[str, Any]:
    return {f: getattr(options, f) for f in InvocationOptions.FIELDS}


def test_unknown_clock_is_left_to_the_guest(tmp_path: Path) -> None:
    plan = machine(RuntimeConfig(), InvocationOptions(**{**_dict(OPTIONS), "tsc_khz": 0}), tmp_path)
    assert not any(p.startswith("tsc") for p in plan.kernel_params)


@pytest.mark.parametrize(("config", "image", "initrd"), [
    (RuntimeConfig(), "", "/i"),
    (RuntimeConfig(initrd="/my"), "", "/my"),
    (RuntimeConfig(image="/my"), "/my", "/b"),
])
def test_boot_source(tmp_path: Path, config: RuntimeConfig, image: str, initrd: str) -> None:
    plan = machine(config, folder=tmp_path)
    assert (plan.image, plan.initrd) == (image, initrd)
    assert ("root=/dev/vda" in plan.kernel_params) == bool(image)


def test_nothing_to_boot(tmp_path: Path) -> None:
    only_image = InvocationOptions(kernel_asset="/k", image_asset="/img", boot_initrd_asset="/b")
    assert machine(RuntimeConfig(), only_image, tmp_path).image == "/img"
    with pytest.raises(ConfigError, match="no guest image"):
        machine(RuntimeConfig(), InvocationOptions(kernel_asset="/k"), tmp_path)
    with pytest.raises(ConfigError, match="no guest kernel"):
        machine(RuntimeConfig(), InvocationOptions(initrd_asset="/i"), tmp_path)


@pytest.mark.parametrize(("config", "resources", "vcpus", "max_vcpus", "memory"), [
    (RuntimeConfig(), {}, 1, 4, 2048),
    (RuntimeConfig(), {"cpu": {"quota": 150000}, "memory": {"limit": 512 << 20}}, 3, 4, 2560),
    (RuntimeConfig(), {"cpu": {"quota": 900000}, "memory": {"limit": 1 << 50}}, 4, 4, 8192),
    (RuntimeConfig(default_vcpus=-1), {}, 4, 4, 2048),
    (RuntimeConfig(default_vcpus=0), {}, 1, 4, 2048),
    (RuntimeConfig(default_vcpus=99), {}, 4, 4, 2048),
    (RuntimeConfig(default_vcpus=2, default_maxvcpus=2), {"cpu": {"quota": 100000}}, 2, 2, 2048),
    (RuntimeConfig(default_memory=9000), {}, 1, 4, 9000),
])
def test_size(tmp_path: Path, config: RuntimeConfig, resources: dict[str, Any], vcpus: int, max_vcpus: int,
              memory: int) -> None:
    plan = machine(config, folder=tmp_path, resources=resources)
    assert (plan.vcpus, plan.max_vcpus, plan.memory) == (vcpus, max_vcpus, memory)
    assert plan.max_memory == max(8192, config.default_memory)


def test_resize_adds_up() -> None:
    resize = UnifiedBackend().plan_resize(RuntimeConfig(), [{"cpu": {"quota": 100000}}, {"memory": {"limit": 1 << 30}}])
    assert (resize.vcpus, resize.memory) == (2, 3072)


def test_machine_keys_take_effect(tmp_path: Path) -> None:
    plan = machine(RuntimeConfig(
        machine_type="pc", machine_accelerators="kernel_irqchip=split", kernel_params=("a=b",), kernel="/mine",
        firmware="/f", default_bridges=3, enable_iothreads=True, enable_mem_prealloc=True, enable_hugepages=True,
        block_device_driver="virtio-scsi", msize_9p=8192, entropy_source="/dev/random", memory_slots=3,
        debug_hypervisor=True, debug_agent=True, qemu_path="/q"), folder=tmp_path)
    assert (plan.machine_type, plan.machine_options, plan.kernel, plan.firmware) == \
        ("pc", "kernel_irqchip=split", "/mine", "/f")
    assert plan.hotplug_ports == 93
    assert (plan.iothreads, plan.prealloc, plan.hugepages, plan.mlock) == (True, True, True, True)
    assert (plan.block_driver, plan.msize_9p, plan.entropy_source, plan.memory_slots) == \
        ("virtio-scsi", 8192, "/dev/random", 3)
    assert plan.kernel_params[-1] == "a=b" and "quiet" not in plan.kernel_params and plan.debug
    assert "agent.log=debug" in plan.kernel_params and plan.qemu_path == "/q"
    assert machine(RuntimeConfig(default_bridges=0), folder=tmp_path).hotplug_ports == 31
    assert not machine(RuntimeConfig(enable_mem_prealloc=True, enable_swap=True), folder=tmp_path).mlock


def test_boot_strategies(tmp_path: Path) -> None:
    plans = [UnifiedBackend().plan_sandbox(c, bundle(tmp_path), OPTIONS)
             for c in (RuntimeConfig(), RuntimeConfig(template=False), RuntimeConfig(image="/i"),
                       RuntimeConfig(pool_size=2), RuntimeConfig(pool_size=2, template=False))]
    assert [p.boot for p in plans] == ["template", "cold", "cold", "pool", "pool"]
    assert [bool(p.template_path) for p in plans] == [True, False, False, True, False]
    assert [p.pool_path for p in plans] == ["", "", "", "/run/kata/pool", "/run/kata/pool"]


def test_container_plan(tmp_path: Path) -> None:
    plan = UnifiedBackend().plan_container(RuntimeConfig(), bundle(tmp_path), "s1", "container")
    assert (plan.id, plan.sandbox_id, plan.role, plan.flavor) == ("c1", "s1", "container", "unified")
    assert (plan.guest_process_at, plan.pause_scope) == ("create", "container")
    assert "defer_process" not in plan.extras


# --- pods -------------------------------------------------------------------------------


CRI, CRIO, DOCKERSHIM = "io.kubernetes.cri.", "io.kubernetes.cri-o.", "io.kubernetes."


@pytest.mark.parametrize(("annotations", "expected"), [
    ({}, ("single", "")),
    ({f"{CRI}container-type": "sandbox", f"{CRI}sandbox-id": "p"}, ("sandbox", "")),
    ({f"{CRI}container-type": "container", f"{CRI}sandbox-id": "p"}, ("container", "p")),
    ({f"{CRIO}ContainerType": "sandbox"}, ("sandbox", "")),
    ({f"{CRIO}ContainerType": "container", f"{CRIO}SandboxID": "p"}, ("container", "p")),
    ({f"{DOCKERSHIM}docker.type": "podsandbox"}, ("sandbox", "")),
    ({f"{DOCKERSHIM}docker.type": "container", f"{DOCKERSHIM}sandbox.id": "p"}, ("container", "p")),
])
def test_pods(tmp_path: Path, annotations: dict[str, str], expected: tuple[str, str]) -> None:
    assert UnifiedBackend().sandbox_of(bundle(tmp_path, annotations=annotations)) == expected


def test_wrong_pods(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^Unknown container type pod"):
        UnifiedBackend().sandbox_of(bundle(tmp_path, annotations={f"{CRI}container-type": "pod"}))
    with pytest.raises(BundleError, match=r"^Could not find sandbox ID"):
        UnifiedBackend().sandbox_of(bundle(tmp_path, annotations={f"{CRIO}ContainerType": "container"}))
