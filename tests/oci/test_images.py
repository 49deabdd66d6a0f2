"""Every form of the guest boots: initrds and root images, on the selected kernel."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness.oci import Oci
from kata.assets import image, store, workshop
from kata.assets.progress import Progress

pytestmark = pytest.mark.vm_only

LIMIT = 10_000_000  #: bytes of the zstd initrd beyond the kernel's modules


@pytest.fixture(scope="module")
def kernel() -> store.Asset:
    asset = store.selected("kernel")
    assert asset is not None, "no kernel is selected: kata image build"
    return asset


@pytest.fixture(scope="module")
def initrd(kernel: store.Asset) -> store.Asset:
    asset = store.selected("initrd")
    assert asset is not None, "no initrd is selected: kata image build"
    assert asset.inputs["kernel"] == kernel.id
    return asset


def boots(oci: Oci, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str) -> dict[str, str]:
    """Run a container in a guest with this setting; what it saw of the machine."""
    config = tmp_path / "configuration.toml"
    config.write_text(f"[hypervisor.qemu]\n{setting}\n")
    monkeypatch.setenv("KATA_CONF_FILE", str(config))
    result = oci.run(oci.bundle("uname -r; cat /proc/cmdline; ls /sys/block"))
    release, cmdline, disks = [*result.ok().out.splitlines(), "", "", ""][:3]
    return {"release": release, "cmdline": cmdline, "disks": disks}


@pytest.mark.parametrize("name", ["initrd.cpio", "initrd.zst"])
def test_initrd(oci: Oci, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, initrd: store.Asset, name: str) -> None:
    seen = boots(oci, monkeypatch, tmp_path, f'initrd = "{initrd.path}/{name}"')
    assert seen["release"] == initrd.kernel_release
    assert "root=" not in seen["cmdline"]


@pytest.mark.parametrize(("fmt", "disk"), [("erofs", "vda"), ("ext4", "pmem0")])
def test_root_image(
    oci: Oci, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: store.Asset, initrd: store.Asset, fmt: str,
    disk: str
) -> None:
    """Each kind, once as a virtio disk and once as an NVDIMM; the others are in tests/vm/test_nvdimm.py."""
    progress = Progress(stream=io.StringIO())
    with workshop.locked(progress):
        asset = image.build_image(kernel, store.load(initrd.inputs["base"]), progress, fmt=fmt)
    setting = f'image = "{asset.path}/{asset.files["image"]}"\ndisable_image_nvdimm = {str(disk == "vda").lower()}'
    seen = boots(oci, monkeypatch, tmp_path, setting)
    assert seen["release"] == kernel.kernel_release
    assert f"root=/dev/{disk}" in seen["cmdline"]
    assert disk in seen["disks"]


def test_zstd_initrd_is_small(kernel: store.Asset, initrd: store.Asset) -> None:
    beyond = initrd.sizes["initrd.zst"] - kernel.sizes["modules.cpio.zst"]
    assert beyond <= LIMIT


def test_selected_assets_are_as_built(kernel: store.Asset, initrd: store.Asset) -> None:
    store.verify(kernel)
    store.verify(initrd)
