"""The root image as an NVDIMM: one copy for all machines, read through DAX; where it cannot be one, a virtio disk."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.oci import Container, Oci
from kata import nvdimm
from kata.assets import image, store, workshop
from kata.assets.progress import Progress

pytestmark = pytest.mark.vm_only

#: The guest's root file system once more: a second mount of a device has the options of the first.
LOOK = """
for disk in pmem0 vda; do
    [ -e /sys/block/$disk ] || continue
    IFS=: read major minor </sys/block/$disk/dev
    mknod /tmp/disk b $major $minor
    mkdir /tmp/root
    mount -t erofs -o ro /tmp/disk /tmp/root
    [ -x /tmp/root/init ] && echo $disk $(sed -n 's|^/tmp/disk /tmp/root ||p' /proc/mounts)
done
"""


@pytest.fixture(scope="module")
def root(oci: Oci) -> Path:
    """A root image for the selected kernel, which is one that can."""
    kernel, initrd = store.selected("kernel"), store.selected("initrd")
    assert kernel is not None and initrd is not None, "nothing is selected: kata image build"
    progress = Progress(stream=io.StringIO())
    with workshop.locked(progress):
        asset = image.build_image(kernel, store.load(initrd.inputs["base"]), progress, fmt="erofs")
    boot = Path(asset.path) / asset.files["boot-initrd"]
    lacks, _modules = nvdimm.kernel_lacks(store.selected_path("kernel"), str(boot), "erofs")
    assert not lacks, f"{lacks}: kata kernel build {kernel.variant}"
    return Path(asset.path) / asset.files["image"]


@contextmanager
def started(oci: Oci, flavor: str, config: str, log: Path) -> Iterator[Container]:
    """A container that may mount disks of its guest."""
    bundle = oci.bundle().tmpfs("/tmp")
    bundle.process["capabilities"] = {kind: ["CAP_SYS_ADMIN", "CAP_MKNOD"]
                                      for kind in ("bounding", "effective", "permitted")}
    bundle.linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    with oci.container(bundle) as container:
        file = bundle.path / "configuration.toml"
        file.write_text(f"[hypervisor.qemu]\n{config}\n")
        options = ("--flavor", flavor, "--kata-config", str(file), "--log", str(log))
        container.launch_verb("create", globals=options).ok()
        container.start().ok()
        yield container


def test_clear_maps_its_image(oci: Oci, root: Path, tmp_path: Path) -> None:
    with started(oci, "clear", f'image = "{root}"', tmp_path / "log") as container:
        out = container.sh(LOOK).ok().stdout
    assert out.startswith("pmem0 erofs ro,") and "dax=always" in out
    assert not (tmp_path / "log").exists()


def test_memory_is_plugged_in_beside_it(oci: Oci, root: Path, tmp_path: Path) -> None:
    with started(oci, "unified", f'image = "{root}"\ndefault_memory = 256', tmp_path / "log") as container:
        assert "dax=always" in container.sh(LOOK).ok().stdout
        before, after = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo", 512
        had = int(container.sh(before).ok().out)
        oci.verb("update", "--memory", str(after << 20), container.id).ok()
        assert int(container.sh(before).ok().out) >= had + after


def test_a_file_system_alone_is_a_disk(oci: Oci, root: Path, tmp_path: Path) -> None:
    """An image of somebody who knows nothing of NVDIMMs; the log says why."""
    alone = tmp_path / "alone.img"
    alone.write_bytes(root.read_bytes()[nvdimm.read(str(root)).data:])
    with started(oci, "clear", f'image = "{alone}"', tmp_path / "log") as container:
        out = container.sh(LOOK).ok().stdout
    assert out.startswith("vda erofs ro,") and "dax" not in out
    assert f"{alone} is a virtio disk: it has no NVDIMM header" in (tmp_path / "log").read_text()
