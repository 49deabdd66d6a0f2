"""Build what is asked for, and select it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from kata.assets import options, packages, store, workshop
from kata.assets.image import FORMATS, build_image
from kata.assets.initrd import build_base, build_initrd
from kata.assets.kernel import build_kernel_stock
from kata.assets.minimal import build_kernel_minimal
from kata.assets.packages import StaleIndex
from kata.assets.progress import Progress
from kata.assets.store import Asset


def build(kinds: Iterable[str], progress: Progress, configuration: Collection[str], *, fmt: str = "",
          force: bool = False) -> list[Asset]:
    """The images of ``kinds`` (``initrd``, ``image``) for the kernel in use, and select them.

    A stock kernel, or none, is made or brought up to date first; a minimal one
    takes minutes to compile and is used as it is.  What exists for the same
    inputs is taken as it is.  An image of another kind that is selected for
    another kernel is made anew, too, so that everything selected fits together.

    :param configuration: files that may name assets by their paths: these stay.
    :param fmt: of the image: ``erofs`` or ``ext4``; by default that of the selected image, or erofs.
    :param force: make everything again, but a minimal kernel.
    :raise kata.errors.HostError: something cannot be made; what was selected stays.
    """
    def kernel() -> Asset:
        used = store.selected("kernel")
        return used if used is not None and used.variant == "minimal" else build_kernel_stock(progress, force=force)

    return _build(kernel, set(kinds), configuration, fmt, progress, force)


def build_kernel(variant: str, progress: Progress, configuration: Collection[str], *, kvm: bool = False,
                 force: bool = False) -> list[Asset]:
    """A kernel and an initrd for it (and a root image, if one is selected); select them.

    :param variant: one of :data:`kata.assets.store.KERNELS`.
    :param configuration: as above.
    :param kvm: make a minimal one for KVM although this host has none.
    :param force: make the kernel again.
    :raise kata.errors.KataError: it cannot be made, or lacks what the agent requires; what was selected stays.
    """
    def kernel() -> Asset:
        if variant == "minimal":
            return build_kernel_minimal(progress, kvm=kvm, force=force)
        return build_kernel_stock(progress, force=force)

    return _build(kernel, {"initrd"}, configuration, "", progress, False)


def _build(kernel: Callable[[], Asset], kinds: set[str], configuration: Collection[str], fmt: str, progress: Progress,
           force: bool) -> list[Asset]:
    with workshop.locked(progress):
        try:
            built = _build_all(kernel, kinds, fmt, progress, force)
        except StaleIndex:
            packages.update(progress)
            built = _build_all(kernel, kinds, fmt, progress, force)
        workshop.prune(configuration)
        return built


def _build_all(
    make_kernel: Callable[[], Asset], kinds: set[str], fmt: str, progress: Progress, force: bool
) -> list[Asset]:
    kernel = make_kernel()
    options.check(kernel)
    base = build_base(progress, force=force)
    for kind in ("initrd", "image"):
        now = store.selected(kind)
        if now is not None and now.inputs.get("kernel") != kernel.id:
            kinds.add(kind)
    built = [kernel]
    if "initrd" in kinds:
        built.append(build_initrd(kernel, base, progress, force=force))
    if "image" in kinds:
        now = store.selected("image")
        fmt = fmt or str(now.inputs.get("format", "") if now else "") or FORMATS[0]
        built.append(build_image(kernel, base, progress, fmt=fmt, force=force))
    for asset in built:
        for kind, name in asset.files.items():
            store.switch(kind, f"../{asset.id}/{name}")
    return built
