"""The initrd: the guest's root tree and its kernel modules, in the guest's memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kata.assets import cpio, guest, packages, workshop
from kata.assets.modules import BOOT, ModuleSet
from kata.assets.progress import Progress, megabytes
from kata.assets.store import Asset
from kata.errors import HostError
from kata.process import run

LIMIT = 10_000_000  #: bytes the zstd initrd may have beyond the kernel's modules


def guest_inputs(kernel: Asset, progress: Progress) -> tuple[dict[str, Any], list[packages.Package]]:
    """What the guest tree is made of, and the packages of it."""
    chosen = packages.candidates(guest.PACKAGES, progress)
    inputs = {
        "kernel": kernel.id,
        "kernel_release": kernel.kernel_release,
        "packages": [str(p) for p in chosen],
        "protobuf": guest.protobuf_version(),
        "agent": guest.sources_hash(guest.agent_sources()),
        "boot_modules": list(BOOT),
    }
    return inputs, chosen


def guest_tree(kernel: Asset, chosen: list[packages.Package], scratch: Path, progress: Progress) -> Path:
    """Build the guest's root tree with the modules of ``kernel`` below ``scratch``."""
    debs = packages.fetch(chosen, progress)
    wheel = packages.fetch_wheel("protobuf", guest.protobuf_version(), progress)
    progress.step("unpacking the guest's packages")
    unpacked = scratch / "unpacked"
    for deb in debs:
        packages.extract(deb, unpacked)
    progress.step("compiling the guest's Python modules")
    tree = scratch / "tree"
    tree.mkdir()
    guest.build_tree(tree, unpacked, wheel, guest.agent_sources())
    guest.check_imports(tree)
    add_modules(tree, kernel, BOOT, tree / guest.MODULE_LIST)
    return tree


def add_modules(tree: Path, kernel: Asset, boot: tuple[str, ...], listing: Path, *, only: bool = False) -> None:
    """Copy the modules of ``kernel`` into ``tree`` and list those to load at boot, in order.

    :param only: copy just those.
    """
    source = ModuleSet(Path(kernel.path) / "modules")
    place = f"/usr/lib/modules/{kernel.kernel_release}"
    order = source.closure(boot, required=True)
    for module in order if only else ():
        path = tree / place[1:] / module.path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.root / module.path, path)
    if not only:
        shutil.copytree(source.root, tree / place[1:], dirs_exist_ok=True)
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{place}/{m.path}\n" for m in order))


def build_initrd(kernel: Asset, progress: Progress, *, force: bool = False) -> Asset:
    """The initrd for ``kernel``.

    :raise HostError: an input cannot be had, or the result is over :data:`LIMIT`.
    """
    inputs, chosen = guest_inputs(kernel, progress)

    def fill(target: Path, scratch: Path) -> Mapping[str, str]:
        tree = guest_tree(kernel, chosen, scratch, progress)
        progress.step("packing the initrd")
        plain = target / "initrd.cpio"
        with plain.open("wb") as out:
            cpio.write_tree(tree, out)
        run(["zstd", "-19", "-T0", "-q", plain, "-o", target / "initrd.zst"], timeout=600, hint="apt-get install zstd")
        progress.step("measuring the initrd without modules")
        check_size(tree, target / "initrd.zst", scratch, progress)
        return {"initrd": "initrd.cpio"}

    return workshop.make("initrd", f"initrd for {kernel.kernel_release}", inputs, fill, progress, force=force)


def check_size(tree: Path, packed: Path, scratch: Path, progress: Progress) -> None:
    """Hold the initrd to :data:`LIMIT`: what it has beyond the modules' share of it."""
    shutil.rmtree(tree / "usr/lib/modules")
    with (scratch / "bare.cpio").open("wb") as out:
        cpio.write_tree(tree, out)
    run(["zstd", "-19", "-T0", "-q", scratch / "bare.cpio", "-o", scratch / "bare.zst"], timeout=600)
    bare, whole = (scratch / "bare.zst").stat().st_size, packed.stat().st_size
    progress.step(f"initrd {megabytes(whole)} with zstd, {megabytes(bare)} of it without the kernel's modules")
    if bare > LIMIT:
        raise HostError(f"the initrd has {megabytes(bare)} beyond the kernel's modules; {megabytes(LIMIT)} are allowed")
