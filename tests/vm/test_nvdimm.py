"""The root image as an NVDIMM: one copy for all machines, read through DAX; and a virtio disk where it cannot be one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.bundle import Bundle
from harness.oci import Container, Oci
from kata import nvdimm
from kata.assets import store

pytestmark = pytest.mark.vm_only

MIB = 1 << 20
#: The guest's root file system once more: a second mount of a device has the options of the first.
LOOK = """
for disk in pmem0 vda; do
    [ -e /sys/block/$disk ] || continue
    IFS=: read major minor </sys/block/$disk/dev
    mknod /tmp/disk b $major $minor
    mkdir /tmp/root
    mount -t erofs -o ro /tmp/disk /tmp/root 2>/dev/null || mount -t ext4 -o ro,noload /tmp/disk /tmp/root
    [ -x /tmp/root/init ] && echo $disk $(sed -n 's|^/tmp/disk /tmp/root ||p' /proc/mounts)
done
"""


def privileged(bundle: Bundle) -> Bundle:
    """It may mount disks of the guest."""
    allowed = ["CAP_SYS_ADMIN", "CAP_MKNOD"]
    bundle.process["capabilities"] = {kind: allowed for kind in ("bounding", "effective", "permitted")}
    bundle.linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    return bundle.tmpfs("/tmp")


@contextmanager
def started(oci: Oci, *globals: str, flavor: str = "clear", script: str = "") -> Iterator[Container]:
    with oci.container(privileged(oci.bundle(script))) as container:
        container.launch_verb("create", globals=("--flavor", flavor, *globals)).ok()
        container.start().ok()
        yield container


def test_it_is_mapped_with_dax(oci: Oci) -> None:
    with started(oci) as container:
        out = container.sh(LOOK).ok().stdout
    assert out.startswith("pmem0 ") and "dax=always" in out and " ro," in out
