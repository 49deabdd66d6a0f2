"""The stock guest kernel: Debian's, taken out of its package.  Nothing is compiled."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

from kata.assets import cpio, modules, packages, workshop
from kata.assets.bzimage import extract_vmlinux
from kata.assets.elf import Elf
from kata.assets.packages import Package
from kata.assets.progress import Progress, megabytes
from kata.assets.store import Asset
from kata.errors import HostError

STOCK = "linux-image-amd64"
#: Bytes from which a module is kept packed.  Not all: modprobe first offers a module to the kernel as it is, which
#: then complains to the console.
LARGE = 1 << 20


def resolve_stock(progress: Progress) -> Package:
    """The package that ``linux-image-amd64`` stands for now."""
    (meta,) = packages.candidates([STOCK], progress)
    return packages.dependency(meta, r"linux-image-[0-9].*-amd64")


def build_kernel_stock(progress: Progress, *, force: bool = False) -> Asset:
    """The stock kernel as an asset: ``vmlinux``, ``vmlinuz``, ``config``, ``modules/``, and
    the modules as a layer of an initrd (``modules.cpio``, ``modules.cpio.zst``).

    ``vmlinux`` is what boots: QEMU enters it by PVH, without a decompressor.

    :raise HostError: the package cannot be had, or holds no usable kernel.
    """
    package = resolve_stock(progress)
    release = package.name.removeprefix("linux-image-")
    inputs = {
        "package": str(package),
        "kernel_release": release,
        "modules": [*modules.BOOT, *modules.IMAGE_BOOT, *modules.ON_DEMAND],
    }

    def fill(target: Path, scratch: Path) -> dict[str, str]:
        (deb,) = packages.fetch([package], progress)
        progress.step("unpacking the kernel package")
        packages.extract(deb, scratch)
        image = scratch / f"boot/vmlinuz-{release}"
        if not image.exists():
            raise HostError(f"{package} holds no boot/vmlinuz-{release}")
        shutil.copyfile(image, target / "vmlinuz")
        shutil.copyfile(scratch / f"boot/config-{release}", target / "config")
        progress.step("decompressing the kernel")
        vmlinux = extract_vmlinux(image.read_bytes(), image.name)
        bootable = "vmlinux" if Elf(vmlinux, "vmlinux").has_pvh_entry() else "vmlinuz"
        if bootable == "vmlinux":
            (target / "vmlinux").write_bytes(vmlinux)
        size = _copy_modules(scratch, release, target / "modules")
        progress.step("packing the modules")
        layer = scratch / "layer"
        (layer / "usr/lib/modules").mkdir(parents=True)
        shutil.copytree(target / "modules", layer / f"usr/lib/modules/{release}")
        cpio.pack(layer, target / "modules.cpio")
        progress.step(f"{bootable} {megabytes((target / bootable).stat().st_size)}, modules {megabytes(size)}")
        return {"kernel": bootable}

    return workshop.make("kernel", str(package), inputs, fill, progress, force=force)


def _copy_modules(unpacked: Path, release: str, target: Path) -> int:
    """Copy the modules a guest may need, with modprobe's index; bytes copied."""
    root = next((p for p in (unpacked / f"{d}lib/modules/{release}" for d in ("", "usr/")) if p.is_dir()), None)
    if root is None:
        raise HostError(f"the kernel package holds no lib/modules/{release}")
    source = modules.ModuleSet(root)
    boot = source.closure((*modules.BOOT, *modules.IMAGE_BOOT), required=True)
    plain = {m.name for m in boot}
    chosen = {m.name: m for m in (*boot, *source.closure(modules.ON_DEMAND, required=False))}
    size = 0
    for name, module in chosen.items():
        data = (source.root / module.path).read_bytes()
        if name not in plain and len(data) > LARGE:
            # It stays in the guest's memory whether used or not; agent and modprobe unpack it.
            data = gzip.compress(data, 9, mtime=0)
            chosen[name] = replace(module, path=f"{module.path}.gz")
        path = target / chosen[name].path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        size += len(data)
    for name, text in modules.index_files(chosen.values()).items():
        (target / name).write_text(text)
    shutil.copyfile(source.root / "modules.builtin", target / "modules.builtin")
    return size
