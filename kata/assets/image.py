"""The root image: the guest's root tree on a disk, and the small initrd that mounts it.

The image is read-only, so that every sandbox shares the host's one copy of it:
as an NVDIMM even the pages of what runs, so nothing in it is compressed.  Its
header (kata/nvdimm.py) lies before what is the disk where it is none.

The stock kernel has neither drivers nor file system built in; the boot
initrd loads them, mounts the image and hands over to its ``/init``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID as Uuid

from kata import nvdimm
from kata.assets import cpio, guest, workshop
from kata.assets.initrd import list_modules
from kata.assets.modules import BOOT, DISK_BOOT, NVDIMM_BOOT, ModuleSet
from kata.assets.progress import Progress, megabytes
from kata.assets.store import Asset
from kata.process import run

FORMATS = ("erofs", "ext4")
SERIAL = "kata-image"  #: of the virtio-blk disk that holds the image, unless root= names a device
UUID = "6b617461-0000-4000-8000-000000000001"  #: fixed, so that equal inputs make equal images
LAYOUT = 2  #: of the file; counted, so that images of an older one are made anew
TIMEOUT = 300.0  #: seconds for a mkfs
NVDIMM_LIST = f"{guest.MODULE_LIST}.nvdimm"  #: what the boot initrd loads for an image that is no disk

#: PID 1 until the image is mounted.  A failure ends it, the kernel panics, and the console says why.
BOOT_INIT = f"""#!/bin/sh
fail() {{
    echo "kata: $1" >/dev/kmsg
    echo "kata: $1" >/dev/console
    exit 1
}}
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
mount -t proc proc /proc
root= flags=ro
for word in $(cat /proc/cmdline); do
    case "$word" in
        root=/dev/*) root="${{word#root=}}" ;;
        rootflags=*) flags="ro,${{word#rootflags=}}" ;;
    esac
done
case "$root" in /dev/pmem*) modules=/{NVDIMM_LIST} ;; *) modules=/{guest.MODULE_LIST} ;; esac
while read -r module; do
    insmod "$module" || fail "cannot load $module"
done <$modules
# The drivers of an NVDIMM go on after they were loaded; a look at this waits for them.
for bus in /sys/bus/nd/devices/ndbus*; do
    [ ! -e "$bus" ] || cat "$bus/wait_probe" >/dev/null
done
if [ -z "$root" ]; then
    for disk in /sys/block/*; do
        [ -r "$disk/serial" ] && [ "$(cat "$disk/serial")" = {SERIAL} ] && root="/dev/${{disk##*/}}"
    done
fi
[ -n "$root" ] || fail "no disk has the serial {SERIAL}"
[ -b "$root" ] || fail "there is no disk $root"
mount -t erofs -o "$flags" "$root" /mnt 2>/dev/null || mount -t ext4 -o "$flags,noload" "$root" /mnt ||
    fail "cannot mount $root"
umount /proc /sys
mount -o move /dev /mnt/dev
exec switch_root -c /dev/console /mnt /init
"""


def build_image(kernel: Asset, base: Asset, progress: Progress, *, fmt: str = "erofs", force: bool = False) -> Asset:
    """The root image for ``kernel`` and its boot initrd.

    :param fmt: ``erofs`` or ``ext4``.
    """
    agent = guest.agent_sources()
    inputs = {
        "kernel": kernel.id,
        "kernel_release": kernel.kernel_release,
        "base": base.id,
        "agent": guest.sources_hash(agent),
        "format": fmt,
        "layout": LAYOUT,
    }

    def fill(target: Path, scratch: Path) -> Mapping[str, str]:
        progress.step("compiling the agent")
        tree = scratch / "tree"
        shutil.copytree(Path(base.path) / "tree", tree, symlinks=True)
        guest.build_agent(tree, tree, agent)
        place = f"usr/lib/modules/{kernel.kernel_release}"
        shutil.copytree(Path(kernel.path) / "modules", tree / place)
        # Some of these the boot initrd has loaded already; loading them again is harmless (EEXIST).
        list_modules(kernel, BOOT, tree / guest.MODULE_LIST)
        image = target / f"root.{fmt}"
        progress.step(f"writing {image.name}")
        MAKERS[fmt](tree, scratch / image.name)
        _add_header(scratch / image.name, image)
        progress.step(f"{image.name} {megabytes(image.stat().st_size)}")
        boot = scratch / "boot"
        _boot_tree(boot, tree, kernel)
        with (target / "boot-initrd.cpio").open("wb") as out:
            cpio.write_tree(boot, out, cpio.DEVICES)
        return {"image": image.name, "boot-initrd": "boot-initrd.cpio"}

    return workshop.make("image", f"{fmt} image for {kernel.kernel_release}", inputs, fill, progress, force=force)


def _make_erofs(tree: Path, image: Path) -> None:
    # noinline_data: the end of a file beside its inode could not be mapped.
    argv: list[str | Path] = ["mkfs.erofs", "--quiet", "-Enoinline_data", "-T0", f"-U{UUID}", "--all-root", image, tree]
    run(argv, timeout=TIMEOUT, hint="apt-get install erofs-utils")


def _make_ext4(tree: Path, image: Path) -> None:
    used = sum(-(-p.lstat().st_size // 4096) * 4096 + 512 for p in tree.rglob("*"))
    with image.open("wb") as out:
        out.truncate(used + used // 10 + (4 << 20))
    features = "^has_journal,^resize_inode,^metadata_csum_seed"
    argv = ["mke2fs", "-q", "-t", "ext4", "-O", features, "-m", "0", "-b", "4096", "-U", UUID]
    argv += ["-E", f"root_owner=0:0,hash_seed={UUID},lazy_itable_init=0", "-d", str(tree), str(image)]
    run(argv, timeout=TIMEOUT, env={**os.environ, "E2FSPROGS_FAKE_TIME": "1"}, hint="apt-get install e2fsprogs")


MAKERS = {"erofs": _make_erofs, "ext4": _make_ext4}


def _add_header(source: Path, image: Path) -> None:
    """Write the file system ``source`` behind the header of an NVDIMM."""
    size = nvdimm.DATA + -(-source.stat().st_size // nvdimm.ALIGNMENT) * nvdimm.ALIGNMENT
    with source.open("rb") as content, image.open("wb") as out:
        out.write(nvdimm.header(size, Uuid(UUID).bytes))
        shutil.copyfileobj(content, out)
        out.truncate(size)


def _boot_tree(boot: Path, tree: Path, kernel: Asset) -> None:
    """Busybox, the modules that find and mount the image, and the script that does it."""
    for name in ("dev", "proc", "sys", "mnt", "etc/kata", "usr/bin", "usr/sbin"):
        (boot / name).mkdir(parents=True)
    for link in ("bin", "sbin", "lib"):
        (boot / link).symlink_to(f"usr/{link}")
    guest.install_busybox(tree / "usr/bin/busybox", boot)
    source = ModuleSet(Path(kernel.path) / "modules")
    for module in (*source.closure(DISK_BOOT, required=True), *source.closure(NVDIMM_BOOT, required=False)):
        path = boot / f"usr/lib/modules/{kernel.kernel_release}" / module.path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.root / module.path, path)
    list_modules(kernel, DISK_BOOT, boot / guest.MODULE_LIST)
    list_modules(kernel, NVDIMM_BOOT, boot / NVDIMM_LIST, required=False)
    (boot / "init").write_text(BOOT_INIT)
    (boot / "init").chmod(0o755)
