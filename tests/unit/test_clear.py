"""The clear flavor: Clear Containers' configuration language, its assets, its sizes, its pods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kata import machineplan, oci
from kata.contract import InvocationOptions, RuntimeConfig
from kata.errors import ConfigError
from kata_clear import ClearBackend, assets, language
from kata_clear import backend as clear

OPTIONS = InvocationOptions(host_cpus=4, host_memory=8192, kernel_asset="/k", initrd_asset="/i", image_asset="/img",
                            boot_initrd_asset="/b")
PREFIX = "com.github.containers.virtcontainers."
#: A file as Clear Containers 3.0 came with.
SHIPPED = """
[hypervisor.qemu]
path = "/usr/bin/qemu-lite-system-x86_64"
kernel = "/usr/share/clear-containers/vmlinuz.container"
image = "/usr/share/clear-containers/clear-containers.img"
machine_type = "pc"
kernel_params = ""
firmware = ""
machine_accelerators = ""
default_vcpus = 1
default_bridges = 1
default_memory = 2048
disable_block_device_use = false
block_device_driver = "virtio-scsi"
enable_mem_prealloc = true
enable_hugepages = false
enable_swap = true
enable_debug = true
disable_nesting_checks = true

[proxy.cc]
path = "/usr/libexec/clear-containers/cc-proxy"
enable_debug = true

[shim.cc]
path = "/usr/libexec/clear-containers/cc-shim"
enable_debug = true

[agent.cc]
# There is no field for this section.

[runtime]
enable_debug = true
internetworking_model = "macvtap"
"""


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host without configuration files."""
    monkeypatch.setattr(clear, "CONFIG_PATHS", (str(tmp_path / "none.toml"),))


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def loader(text: str, annotations: dict[str, str] | None = None) -> RuntimeConfig:
        (tmp_path / "c.toml").write_text(text)
        options = InvocationOptions(config_path=str(tmp_path / "c.toml"), guest_folders=(str(tmp_path / "chosen"),))
        return ClearBackend().load_config(options, annotations or {})

    return loader


def bundle(folder: Path, resources: dict[str, Any] | None = None, **rest: Any) -> oci.Bundle:
    (folder / "rootfs").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({
        "ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": t} for t in ("pid", "network", "mount", "uts")],
                  "resources": resources or {}}, **rest}))
    return oci.load(str(folder), "c1")


# --- configuration ----------------------------------------------------------------------


def test_search_order() -> None:
    backend = ClearBackend()
    assert backend.config_paths(InvocationOptions(config_path="/o", environ={"KATA_CONF_FILE": "/e"})) == ("/o",)
    assert backend.config_paths(InvocationOptions(environ={"KATA_CONF_FILE": "/e"})) == clear.CONFIG_PATHS
    with pytest.raises(ConfigError, match=r"^Cannot find usable config file"):
        backend.load_config(InvocationOptions(config_path="/nonexistent/c.toml"), {})


def test_defaults_without_a_file() -> None:
    config = ClearBackend().load_config(InvocationOptions(), {})
    assert (config.machine_type, config.default_vcpus, config.default_memory) == ("pc", 1, 2048)
    assert (config.block_device_driver, config.internetworking_model, config.template) == \
        ("virtio-scsi", "macvtap", False)


def test_a_shipped_file_loads(load: Any) -> None:
    config = load(SHIPPED)
    assert (config.enable_mem_prealloc, config.enable_swap) == (True, True)
    assert all((config.debug_hypervisor, config.debug_proxy, config.debug_shim, config.debug_runtime))
    # Clear's own parts are ours, with a warning each.
    assert (config.kernel, config.image, config.qemu_path) == ("", "", "qemu-system-x86_64")
    assert [w.split(": ")[1].split()[0] for w in config.extra["warnings"]] == [
        "/usr/share/clear-containers/vmlinuz.container", "/usr/share/clear-containers/clear-containers.img",
        "/usr/bin/qemu-lite-system-x86_64"]


def test_the_warnings_reach_the_container(load: Any, tmp_path: Path) -> None:
    plan = ClearBackend().plan_container(load(SHIPPED), bundle(tmp_path), "c1", "single")
    assert "the kernel of the asset store is used instead" in "\n".join(plan.warnings)


def test_every_key_of_clear_is_in_the_language() -> None:
    keys = set("path kernel image machine_type kernel_params firmware machine_accelerators default_vcpus "
               "default_bridges default_memory disable_block_device_use block_device_driver enable_mem_prealloc "
               "enable_hugepages enable_swap enable_debug disable_nesting_checks".split())
    assert set(language.HYPERVISOR) == keys | {"accelerator"}
    assert set(language.RUNTIME) == {"enable_debug", "internetworking_model"}
    assert set(language.LANGUAGE) == {"hypervisor.qemu", "proxy.cc", "shim.cc", "agent.cc", "agent.hyperstart",
                                      "proxy.kata", "shim.kata", "agent.kata", "runtime"}
    for table in ("proxy.cc", "shim.cc", "proxy.kata", "shim.kata"):
        assert set(language.LANGUAGE[table]) == {"path", "enable_debug"}, table


@pytest.mark.parametrize(("text", "field", "value"), [
    ('path = "/opt/qemu"', "qemu_path", "/opt/qemu"),
    ('machine_type = "q35"', "machine_type", "q35"),
    ('machine_type = ""', "machine_type", "pc"),
    ('kernel_params = "a b=c"', "kernel_params", ("a", "b=c")),
    ('machine_accelerators = "smm=off"', "machine_accelerators", "smm=off"),
    ("default_vcpus = -1", "default_vcpus", -1),
    ("default_bridges = 5", "default_bridges", 5),
    ("default_memory = 512", "default_memory", 512),
    ("default_memory = 7", "default_memory", 2048),
    ("default_memory = 0", "default_memory", 2048),
    ("disable_block_device_use = true", "disable_block_device_use", True),
    ('block_device_driver = "virtio-blk"', "block_device_driver", "virtio-blk"),
    ("enable_hugepages = true", "enable_hugepages", True),
    ('accelerator = "tcg"', "accelerator", "tcg"),
    ('[runtime]\ninternetworking_model = "bridged"', "internetworking_model", "bridged"),
    ('[runtime]\ninternetworking_model = "default"', "internetworking_model", "macvtap"),
    ('[proxy.kata]\npath = "/x"\nenable_debug = true', "debug_proxy", True),
    ('[shim.kata]\npath = "/x"\nenable_debug = true', "debug_shim", True),
    ("[agent.kata]\nenable_debug = true", "debug_agent", True),
])
def test_key(load: Any, text: str, field: str, value: Any) -> None:
    assert getattr(load(text if text.startswith("[") else f"[hypervisor.qemu]\n{text}"), field) == value


@pytest.mark.parametrize(("text", "says"), [
    ('[runtime]\ninternetworking_model = "enlightened"', 'use "macvtap" or "bridged"'),
    ('[runtime]\ninternetworking_model = "tcfilter"', "one of 'macvtap', 'bridged', 'enlightened' is expected"),
    ("[factory]\nenable_template = true", "use the flavor unified"),
    ("[netmon]\nenable_netmon = true", "use the flavor unified"),
    ("[hypervisor.firecracker]", "QEMU is the only hypervisor"),
    ('[hypervisor.qemu]\ninitrd = "/x"', "unknown key 'initrd'"),
    ("[hypervisor.qemu]\ndefault_memroy = 1", "did you mean 'default_memory'?"),
    ("[hypervisor.qemu]\ndefault_bridges = 6", "from 0 to 5"),
    ("[proxi.cc]", "did you mean 'proxy.cc'?"),
    ("[agent.cc]\nport = 1", "unknown key 'port' in [agent.cc]"),
    ('[hypervisor.qemu]\nkernel = "/nonexistent/k"', "there is no such file"),
    ('[hypervisor.qemu]\nimage = "/nonexistent/i"', "there is no such file"),
])
def test_refused(load: Any, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert says in str(caught.value)
    if "unknown key" in caught.value.text:
        assert "c.toml:2: " in caught.value.text


def test_files_elsewhere_are_used_as_they_are(load: Any, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"x")
    config = load(f'[hypervisor.qemu]\nkernel = "{tmp_path}/vmlinux"')
    assert config.kernel == f"{tmp_path}/vmlinux" and "warnings" not in config.extra


def test_places_are_of_known_fields() -> None:
    assert set(assets.CLEARS_OWN) == set(assets.OURS) <= set(RuntimeConfig.FIELDS)


# --- annotations -------------------------------------------------------------------------


def test_asset_annotations(load: Any, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for name in ("k", "i", "image"):
        (chosen / name).write_bytes(b"abc")
    sha = ("ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
           "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f")
    config = load(f'[hypervisor.qemu]\nimage = "{chosen}/image"', {
        f"{PREFIX}KernelPath": f"{chosen}/k", f"{PREFIX}KernelHash": sha, f"{PREFIX}AssetHashType": "sha512",
        f"{PREFIX}InitrdPath": f"{chosen}/i", f"{PREFIX}pkg.oci.container_type": "pod_sandbox"})
    assert (config.kernel, config.initrd, config.image) == (f"{chosen}/k", f"{chosen}/i", "")
    config = load("", {f"{PREFIX}ImagePath": f"{chosen}/image", f"{PREFIX}ImageHash": sha.upper()})
    assert config.image == f"{chosen}/image"


def test_only_files_that_may_be_chosen(load: Any, tmp_path: Path) -> None:
    """The guest sees what it boots: an annotation is no way to any file of the host."""
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "link").symlink_to("/etc/shadow")
    for path in ("/etc/shadow", f"{chosen}/../c.toml", f"{chosen}/link", f"{chosen}elsewhere/k", str(chosen)):
        for name in language.ANNOTATION_PATHS:
            with pytest.raises(ConfigError, match="not in a folder that containers may choose from") as caught:
                load("", {PREFIX + name: path})
            assert "guest_folders" in caught.value.hint


@pytest.mark.parametrize(("annotations", "says"), [
    ({"KernlPath": "/x"}, "did you mean 'KernelPath'?"),
    ({"AssetHashType": "md5"}, "it is sha512"),
    ({"KernelPath": "x"}, "an absolute path is expected"),
    ({"KernelPath": "CHOSEN/nonexistent"}, "there is no such file"),
    ({"KernelPath": "CHOSEN/file", "KernelHash": "00"}, "has not the SHA-512"),
    ({"ImageHash": "00"}, "whose path is not configured"),
    ({"ImagePath": "CHOSEN/file", "InitrdPath": "CHOSEN/file"}, "both an image and an initrd"),
])
def test_wrong_annotations(load: Any, tmp_path: Path, annotations: dict[str, str], says: str) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "file").write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        load("", {f"{PREFIX}{name}": value.replace("CHOSEN", str(chosen)) for name, value in annotations.items()})
    assert says in str(caught.value)


# --- plans -------------------------------------------------------------------------------


@pytest.mark.parametrize(("resources", "vcpus", "memory"), [
    ({}, 1, 2048),
    ({"memory": {"limit": 512 << 20}}, 1, 512),  # replaces
    ({"memory": {"limit": 4096 << 20}}, 1, 4096),
    ({"memory": {"limit": 4 << 20}}, 1, machineplan.LEAST_WITH_IMAGE),
    ({"cpu": {"quota": 150000, "period": 100000}}, 3, 2048),  # adds
    ({"cpu": {"quota": 900000, "period": 100000}}, 4, 2048),
])
def test_size(tmp_path: Path, resources: dict[str, Any], vcpus: int, memory: int) -> None:
    backend = ClearBackend()
    config = backend.load_config(InvocationOptions(), {})
    plan = backend.plan_sandbox(config, bundle(tmp_path, resources), OPTIONS).machine
    assert (plan.vcpus, plan.memory, plan.max_memory) == (vcpus, memory, memory)


def test_boot_source(tmp_path: Path) -> None:
    """The store's image, or its initrd where it has none."""
    backend = ClearBackend()
    config = backend.load_config(InvocationOptions(), {})
    plan = backend.plan_sandbox(config, bundle(tmp_path), OPTIONS).machine
    assert (plan.image, plan.initrd) == ("/img", "/b") and "root=/dev/vda" in plan.kernel_params
    only_initrd = InvocationOptions(kernel_asset="/k", initrd_asset="/i")
    plan = backend.plan_sandbox(config, bundle(tmp_path), only_initrd).machine
    assert (plan.image, plan.initrd) == ("", "/i")


def test_resize() -> None:
    """vCPUs add up; the memory is the first container's."""
    config = RuntimeConfig()
    size = ClearBackend().plan_resize(config, [{"memory": {"limit": 1 << 30}}, {"memory": {"limit": 1 << 32},
                                                                               "cpu": {"quota": 100000}}])
    assert size.memory == 1024 and size.vcpus >= 2


def test_nothing_after_the_boot_but_vcpus() -> None:
    capabilities = ClearBackend.capabilities
    assert not any((capabilities.templates, capabilities.pool, capabilities.events, capabilities.update,
                    capabilities.resize, capabilities.join_by_netns))
