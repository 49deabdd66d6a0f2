"""The minimal guest kernel: everything built in, compiled from Debian's source package and ``configs/kernel``.

On a host without KVM it is compiled for emulated processors: these do not speculate, and guards against that cost
each boot and each start.  Such a kernel has a file name of its own, by which machines with KVM refuse it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from kata import hostfacts
from kata.assets import cpio, options, packages, workshop
from kata.assets.elf import Elf
from kata.assets.packages import Package
from kata.assets.progress import Progress, megabytes
from kata.assets.store import Asset
from kata.contract import TCG_KERNEL
from kata.errors import HostError
from kata.process import follow, run

SOURCE = "linux-source-6.1"
LIMIT = 4_100_000  #: bytes of the bzImage
TIMEOUT = 3 * 3600.0  #: seconds for one make

#: What compiles it: a file that tells whether the package is there.
TOOLS = {
    "gcc": "usr/bin/gcc", "libc6-dev": "usr/include/stdlib.h", "make": "usr/bin/make", "flex": "usr/bin/flex",
    "bison": "usr/bin/bison", "bc": "usr/bin/bc", "libelf-dev": "usr/include/libelf.h", "xz-utils": "usr/bin/xz",
    "perl": "usr/bin/perl",
}  # fmt: skip

#: "rep stosb" and "rep movsb", which gcc else makes of some memset and memcpy, an emulated processor does byte by byte.
CFLAGS = "-mstringop-strategy=libcall"
#: Equal inputs make equal kernels.
ENVIRONMENT = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970", "KBUILD_BUILD_USER": "kata",
    "KBUILD_BUILD_HOST": "kata", "KBUILD_BUILD_VERSION": "1", "LOCALVERSION": "", "LC_ALL": "C",
}  # fmt: skip
#: Parts of the source that no guest needs; their Kconfig files are read all the same.
LEFT_OUT = ("*/drivers/gpu/*.[ch]", "*/sound/*.[ch]")
EVERY = 100  #: compiled files between two lines of progress


def build_kernel_minimal(progress: Progress, *, kvm: bool = False, force: bool = False) -> Asset:
    """The minimal kernel as an asset with the files of a stock one; its ``modules/`` lists what is built in.

    :param kvm: make one for KVM although this host has none.
    :raise HostError: packages are missing, the source cannot be had or
        compiled, an option is not taken over, or the result is over :data:`LIMIT`.
    """
    (package,) = packages.candidates([SOURCE], progress)
    kvm = kvm or hostfacts.collect().kvm_usable
    bootable = "vmlinux" if kvm else TCG_KERNEL
    wanted = options.fragments(kvm=kvm)
    settings = "".join(f"{o.name}={o.value}\n" for o in sorted(wanted))
    local = next((o.value.strip('"') for o in wanted if o.name == "CONFIG_LOCALVERSION"), "")
    release = package.version.partition("-")[0] + local
    _require_tools()
    inputs = {
        "variant": "minimal",
        "package": str(package),
        "kernel_release": release,
        "options": hashlib.sha256(settings.encode()).hexdigest(),
        "compiler": run(["gcc", "--version"], timeout=30).text.partition("\n")[0],
    }

    def fill(target: Path, scratch: Path) -> dict[str, str]:
        source, out = _unpack(package, scratch, progress), scratch / "out"
        out.mkdir()
        (scratch / "settings").write_text(settings)
        make = ["make", "-C", str(source), f"O={out}", f"KCFLAGS={CFLAGS}", f"-j{len(os.sched_getaffinity(0))}"]
        progress.step("configuring the kernel")
        _follow([*make, f"KCONFIG_ALLCONFIG={scratch / 'settings'}", "allnoconfig"], progress)
        config = (out / ".config").read_text()
        _check(config, wanted)
        progress.step("compiling the kernel: some 20 minutes of one processor")
        _follow([*make, "bzImage"], progress)
        made = (out / "include/config/kernel.release").read_text().strip()
        if made != release:
            raise HostError(f"the kernel calls itself {made}, not {release}")
        shutil.copyfile(out / "arch/x86/boot/bzImage", target / "vmlinuz")
        run(["strip", "-o", target / bootable, out / "vmlinux"], timeout=120)
        if not Elf((target / bootable).read_bytes(), bootable).has_pvh_entry():
            raise HostError("the kernel has no PVH entry", "set CONFIG_PVH=y")
        (target / "config").write_text(config)
        _list_builtin(target, out, scratch / "layer", release)
        size = (target / "vmlinuz").stat().st_size
        progress.step(f"bzImage {megabytes(size)}, {bootable} {megabytes((target / bootable).stat().st_size)}")
        if size > LIMIT:
            raise HostError(f"the bzImage has {megabytes(size)}; {megabytes(LIMIT)} are allowed",
                            "take options out of configs/kernel")
        return {"kernel": bootable}

    name = f"minimal, {package}" + ("" if kvm else ", for emulated processors")
    return workshop.make("kernel", name, inputs, fill, progress, builder="minimal", force=force)


def _require_tools() -> None:
    lacks = [name for name, file in TOOLS.items() if not Path("/", file).exists()]
    if lacks:
        raise HostError(f"the kernel cannot be compiled: these packages are missing: {', '.join(lacks)}",
                        f"apt-get install {' '.join(lacks)}")


def _unpack(package: Package, scratch: Path, progress: Progress) -> Path:
    """The kernel's source tree."""
    (deb,) = packages.fetch([package], progress)
    progress.step(f"unpacking {package}")
    packages.extract(deb, scratch / "package")
    archive = scratch / f"package/usr/src/{SOURCE}.tar.xz"
    if not archive.exists():
        raise HostError(f"{package} holds no usr/src/{archive.name}")
    run(["tar", "-C", scratch, "-xf", archive, *(f"--exclude={p}" for p in LEFT_OUT)], timeout=900,
        hint="apt-get install xz-utils")
    return scratch / SOURCE


def _check(config: str, wanted: Sequence[options.Option]) -> None:
    """
    :raise HostError: Kconfig has left out or changed an option.
    """
    have = options.parse(config)
    for option in wanted:
        if have.get(option.name, "n") != option.value:
            raise HostError(
                f"{option.place}: {option.name}={option.value} is not taken over: "
                f"the kernel's configuration has {have.get(option.name, 'n')}",
                "set what it depends on, too, or take it out")


def _follow(argv: Sequence[str], progress: Progress) -> None:
    env = {**os.environ, **ENVIRONMENT}
    follow(argv, _reporter(progress), timeout=TIMEOUT, env=env)


def _reporter(progress: Progress) -> Callable[[str], None]:
    """Writes each line of make to the log and says how far it is now and then."""
    compiled = 0

    def line(text: str) -> None:
        nonlocal compiled
        progress.note(text)
        what, _, path = text.strip().partition(" ")
        if what in ("CC", "AS"):
            compiled += 1
            if compiled % EVERY == 0:
                progress.step(f"{compiled} files compiled, now {path.strip()}")

    return line


def _list_builtin(target: Path, out: Path, layer: Path, release: str) -> None:
    """``modules/`` and the layer of an initrd, as a kernel with modules has them, with no module in them."""
    place = layer / f"usr/lib/modules/{release}"
    place.mkdir(parents=True)
    shutil.copyfile(out / "modules.builtin", place / "modules.builtin")
    for name in ("modules.dep", "modules.alias", "modules.softdep"):
        (place / name).write_text("")
    shutil.copytree(place, target / "modules")
    cpio.pack(layer, target / "modules.cpio")
