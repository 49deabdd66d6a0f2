"""Build what is asked for, and select it."""

from __future__ import annotations

from collections.abc import Iterable

from kata.assets import packages, store, workshop
from kata.assets.image import FORMATS, build_image
from kata.assets.initrd import build_base, build_initrd
from kata.assets.kernel import build_kernel_stock
from kata.assets.packages import StaleIndex
from kata.assets.progress import Progress
from kata.assets.store import Asset


def build(kinds: Iterable[str], progress: Progress, *, fmt: str = "", force: bool = False) -> list[Asset]:
    """The kernel and, made for it, the images of ``kinds`` (``initrd``, ``image``); select them all.

    What exists for the same inputs is taken as it is.  An image of another
    kind that is selected for another kernel is made anew, too, so that
    everything selected fits together.

    :param fmt: of the image: ``erofs`` or ``ext4``; by default that of the selected image, or erofs.
    :param force: make everything again.
    :raise kata.errors.HostError: something cannot be made; what was selected stays.
    """
    with workshop.locked(progress):
        try:
            return _build(set(kinds), fmt, progress, force)
        except StaleIndex:
            packages.update(progress)
            return _build(set(kinds), fmt, progress, force)


def _build(kinds: set[str], fmt: str, progress: Progress, force: bool) -> list[Asset]:
    kernel = build_kernel_stock(progress, force=force)
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
    workshop.prune()
    return built
