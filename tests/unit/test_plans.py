"""The plans of every flavor for a handful of bundles, held as files beside this one.

A change of policy shows as a change of these files.  To accept one, run the
tests with ``KATA_GOLDEN=write`` and read the difference before it is committed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import kata.guestspec
from harness.bundle import default_config
from kata import machineplan, nvdimm, oci
from kata.cli.plan import table
from kata.contract import Backend, InvocationOptions
from kata.guestspec import Host
from kata.planjson import to_json
from kata_clear import ClearBackend
from kata_clear import backend as clear
from kata_runv import RunvBackend
from kata_unified import UnifiedBackend
from kata_unified import backend as unified

GOLDEN = Path(__file__).parent / "golden"
MIB = 1 << 20
FLAVORS: dict[str, type[Backend]] = {"clear": ClearBackend, "runv": RunvBackend, "unified": UnifiedBackend}

CRI, CRIO = "io.kubernetes.cri.", "io.kubernetes.cri-o."
#: name -> what is merged into a container like docker's.
BUNDLES: dict[str, dict[str, Any]] = {
    "docker": {},
    "limits": {"linux": {"resources": {
        "memory": {"limit": 512 * MIB}, "cpu": {"quota": 250_000, "period": 100_000, "shares": 512},
        "pids": {"limit": 100}}}},
    "pod": {"annotations": {f"{CRI}container-type": "sandbox", f"{CRI}sandbox-id": "c1",
                            f"{CRIO}ContainerType": "sandbox"}},
    "member": {"annotations": {f"{CRI}container-type": "container", f"{CRI}sandbox-id": "pod",
                               f"{CRIO}ContainerType": "container", f"{CRIO}SandboxID": "pod"}},
    "disk": {"linux": {"devices": [{"path": "/dev/data", "type": "b", "major": 8, "minor": 16, "fileMode": 0o660}],
                       "resources": {"devices": [{"allow": True, "type": "b", "major": 8, "minor": 16,
                                                  "access": "rw"}]}}},
}
#: Annotations in each flavor's own language.
ASSETS: dict[str, dict[str, str]] = {
    "clear": {"com.github.containers.virtcontainers.InitrdPath": "INITRD"},
    "unified": {"io.katacontainers.config.hypervisor.initrd": "INITRD"},
}


DAX = ("ACPI_NFIT", "BLK_DEV_PMEM", "NVDIMM_PFN", "FS_DAX", "EROFS_FS")
KERNEL_CONFIG = "".join(f"CONFIG_{name}=y\n" for name in DAX)
HEADER = nvdimm.header(2 * nvdimm.DATA, bytes(16))[: 2 * nvdimm.INFO_BLOCK]


def root_image(path: Path) -> None:
    """The beginnings of header and file system, as `kata image build` makes them."""
    with path.open("wb") as f:
        f.write(HEADER)
        f.seek(nvdimm.DATA + 1024)
        f.write(b"\xe2\xe1\xf5\xe0" + bytes(8) + b"\x0c")
        f.truncate(2 * nvdimm.DATA)


class DiskHost(Host):
    def block_device(self, major: int, minor: int) -> str:
        return "/dev/sdb" if (major, minor) == (8, 16) else ""


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host without configuration files, with a disk."""
    for module in (clear, unified):
        monkeypatch.setattr(module, "CONFIG_PATHS", (str(tmp_path / "none.toml"),))
    monkeypatch.setattr(kata.guestspec, "Host", DiskHost)


def host_with(folder: Path, config_path: str = "") -> InvocationOptions:
    """What the backends learn of a host whose asset store is in ``folder``."""
    store = folder / "store"
    store.mkdir(exist_ok=True)
    (store / "initrd").write_bytes(b"x")
    (store / "config").write_text(KERNEL_CONFIG)
    root_image(store / "root.erofs")
    return InvocationOptions(config_path=config_path, host_cpus=4, host_memory=8192, tsc_khz=2_000_000,
                             kernel_asset=f"{store}/vmlinux", initrd_asset=f"{store}/initrd",
                             image_asset=f"{store}/root.erofs", boot_initrd_asset=f"{store}/boot-initrd",
                             guest_folders=(str(folder),))


def bundle(folder: Path, change: dict[str, Any]) -> oci.Bundle:
    config = {**default_config("/bin/sh"), **{k: v for k, v in change.items() if k != "linux"}}
    config["linux"] = {**config["linux"], **change.get("linux", {})}
    (folder / "rootfs").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return oci.load(str(folder), "c1")


def plans(backend: Backend, made: oci.Bundle, options: InvocationOptions) -> dict[str, Any]:
    config = backend.load_config(options, made.annotations)
    role, sandbox = backend.sandbox_of(made)
    found = {"container": to_json(backend.plan_container(config, made, sandbox or made.id, role))}
    return found if sandbox else {"sandbox": to_json(backend.plan_sandbox(config, made, options)), **found}


def compare(name: str, found: dict[str, Any], folder: Path) -> None:
    if "sandbox" in found:  # what is tuned for all machines alike is no flavor's policy
        machine = found["sandbox"]["machine"]
        common = {*machineplan.KERNEL_PARAMS, *machineplan.TCG_PARAMS}
        machine["kernel_params"] = [p for p in machine["kernel_params"] if p not in common]
        del machine["tcg_cache"], machine["cpu"]
    text = json.dumps(found, indent=1).replace(f"{folder}/store", "STORE").replace(str(folder), "BUNDLE") + "\n"
    path = GOLDEN / f"plan-{name}.json"
    if os.environ.get("KATA_GOLDEN") == "write":
        path.write_text(text)
    assert json.loads(text) == json.loads(path.read_text()), f"the plan differs from {path}; see this module's text"


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("name", BUNDLES)
def test_plans(flavor: str, name: str, tmp_path: Path) -> None:
    found = plans(FLAVORS[flavor](), bundle(tmp_path, BUNDLES[name]), host_with(tmp_path))
    compare(f"{name}-{flavor}", found, tmp_path)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_plans_with_annotations(flavor: str, tmp_path: Path) -> None:
    """What a container asks for; the file of runv, which has no annotations, is the plain one."""
    (tmp_path / "initrd").write_bytes(b"x")
    (tmp_path / "all.toml").write_text('[hypervisor.qemu]\nenable_annotations = ["initrd"]\n')
    asked = {k: v.replace("INITRD", str(tmp_path / "initrd")) for k, v in ASSETS.get(flavor, {}).items()}
    config = str(tmp_path / "all.toml") if flavor == "unified" else ""
    made = bundle(tmp_path, {"annotations": asked})
    compare(f"annotations-{flavor}", plans(FLAVORS[flavor](), made, host_with(tmp_path, config)), tmp_path)


def test_side_by_side(tmp_path: Path) -> None:
    """One row a field, one column a flavor, and a star where they differ."""
    made = bundle(tmp_path, {})
    rows = table({name: plans(FLAVORS[name](), made, host_with(tmp_path)) for name in FLAVORS})
    by_field = {row[2:].split()[0]: row for row in rows[1:]}
    assert rows[0].split() == ["clear", "runv", "unified"]
    assert by_field["sandbox.network_model"].split() == ["*", "sandbox.network_model", "macvtap", "mirred", "tcfilter"]
    assert by_field["container.pause_scope"].split()[2:] == ["vm", "process", "container"]
    assert by_field["sandbox.hostname"].split() == ["sandbox.hostname", "guest"]
    params = by_field["sandbox.machine.kernel_params"]
    assert "root=/dev/pmem0" in params and "quiet" not in params, "only what not all have"
