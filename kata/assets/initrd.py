"""The initrd: the guest's root tree and its kernel modules, in the guest's memory.

It is made of three layers, so that a changed agent costs a second and not a
minute: the base (Python, libraries, busybox; an asset of its own), the
kernel's modules (part of the kernel asset), the agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kata.assets import cpio, guest, packages, workshop
from kata.assets.modules import BOOT, ModuleSet
from kata.assets.progress import Progress, megabytes
from kata.assets.store import Asset
from kata.errors import HostError

LIMIT = 10_000_000  #: bytes the zstd initrd may have beyond the kernel's modules


def build_base(progress: Progress, *, force: bool = False) -> Asset:
    """The guest's root tree without agent and modules: ``tree/``, ``base.cpio``, ``base.cpio.zst``."""
    chosen = packages.candidates(guest.PACKAGES, progress)
    protobuf = guest.protobuf_version()
    inputs = {"packages": [str(p) for p in chosen], "protobuf": protobuf}

    def fill(target: Path, scratch: Path) -> Mapping[str, str]:
        debs = packages.fetch(chosen, progress)
        wheel = packages.fetch_wheel("protobuf", protobuf, progress)
        progress.step("unpacking the guest's packages")
        for deb in debs:
            packages.extract(deb, scratch)
        progress.step("compiling the guest's Python modules")
        (target / "tree").mkdir()
        guest.build_base(target / "tree", scratch, wheel)
        progress.step("packing the guest's base")
        cpio.pack(target / "tree", target / "base.cpio", devices=cpio.DEVICES)
        return {}

    return workshop.make("base", "guest root tree without agent", inputs, fill, progress, force=force)


def build_initrd(kernel: Asset, base: Asset, progress: Progress, *, force: bool = False) -> Asset:
    """The initrd for ``kernel``.

    :raise HostError: an input cannot be had, or the result is over :data:`LIMIT`.
    """
    agent = guest.agent_sources()
    inputs = {
        "kernel": kernel.id,
        "kernel_release": kernel.kernel_release,
        "base": base.id,
        "agent": guest.sources_hash(agent),
        "boot_modules": list(BOOT),
    }

    def fill(target: Path, scratch: Path) -> Mapping[str, str]:
        progress.step("compiling the agent")
        guest.build_agent(scratch, Path(base.path) / "tree", agent)
        list_modules(kernel, BOOT, scratch / guest.MODULE_LIST)
        layer = target / "agent.cpio"
        cpio.pack(scratch, layer)
        parts = [Path(base.path) / "base.cpio", Path(kernel.path) / "modules.cpio", layer]
        cpio.join(parts, target / "initrd.cpio")
        zipped = [p.with_name(p.name + ".zst") for p in parts]
        cpio.join(zipped, target / "initrd.zst")
        beyond = zipped[0].stat().st_size + zipped[2].stat().st_size
        for path in (layer, zipped[2]):
            path.unlink()
        plain, packed = ((target / n).stat().st_size for n in ("initrd.cpio", "initrd.zst"))
        progress.step(
            f"initrd {megabytes(plain)}; with zstd {megabytes(packed)}, {megabytes(beyond)} beyond the modules"
        )
        if beyond > LIMIT:
            raise HostError(f"the initrd has {megabytes(beyond)} beyond the modules; {megabytes(LIMIT)} are allowed")
        return {"initrd": "initrd.cpio"}

    return workshop.make("initrd", f"initrd for {kernel.kernel_release}", inputs, fill, progress, force=force)


def list_modules(kernel: Asset, wanted: tuple[str, ...], listing: Path, *, required: bool = True) -> None:
    """Write which modules load at boot: one absolute path in the guest a line, each after its dependencies.

    :param required: raise if the kernel lacks one; otherwise it is left out.
    """
    order = ModuleSet(Path(kernel.path) / "modules").closure(wanted, required=required)
    listing.parent.mkdir(parents=True, exist_ok=True)
    place = f"/usr/lib/modules/{kernel.kernel_release}"
    listing.write_text("".join(f"{place}/{m.path}\n" for m in order))
