"""The header of an image, read by a second hand; what becomes an NVDIMM, and why something does not."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import pytest

from kata import machineplan, nvdimm
from kata.assets import cpio
from kata.config import check_assets
from kata.contract import InvocationOptions, MachinePlan, RuntimeConfig
from kata.errors import ConfigError
from kata.record import replace
from kata.vm.argv import qemu_argv
from unit.test_argv import ENDS, PLAN

MIB = 1 << 20
UUID = bytes(range(16))
#: struct nd_pfn_sb, little-endian and without padding (Linux 6.1, drivers/nvdimm/pfn.h).
LAYOUT = "<16s16s16sIHHQQIIIIIH3994sQ"
#: Beginnings of file systems with blocks of 4 KiB, by place (fs/erofs/erofs_fs.h, fs/ext4/ext4.h).
EROFS = {1024: b"\xe2\xe1\xf5\xe0" + bytes(8) + b"\x0c"}
EXT4 = {1048: b"\x02", 1080: b"\x53\xef"}
OTHER = "behind its NVDIMM header is no erofs or ext4 with blocks of 4 KiB"
CONFIG = {"ACPI_NFIT": "y", "BLK_DEV_PMEM": "y", "NVDIMM_PFN": "y", "FS_DAX": "y", "EROFS_FS": "y", "EXT4_FS": "y"}


@pytest.fixture(scope="module")
def header() -> bytes:
    return nvdimm.header(6 * MIB, UUID)


def image(path: Path, header: bytes, start: dict[int, bytes] = EROFS, *, at: int = 2 * MIB, size: int = 6 * MIB,
          more: dict[int, bytes] | None = None) -> str:
    with path.open("wb") as f:
        f.write(header[:8192])
        for place, content in [*((at + k, v) for k, v in start.items()), *(more or {}).items()]:
            f.seek(place)
            f.write(content)
        f.truncate(size)
    return str(path)


def options(folder: Path, initrd: str = "", **kernel: str) -> InvocationOptions:
    """A host whose kernel has these options instead of :data:`CONFIG`'s."""
    (folder / "config").write_text("# CONFIG_ACPI is not set\n" + "".join(
        f"CONFIG_{name}={value}\n" for name, value in {**CONFIG, **kernel}.items() if value != "n"))
    return InvocationOptions(kernel_asset=f"{folder}/vmlinux", boot_initrd_asset=initrd)


def boot_initrd(folder: Path, *files: str) -> str:
    """A boot initrd with these files, which name other modules inside."""
    tree = folder / "tree"
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"/nfit.ko\0")
    with (folder / "boot-initrd").open("wb") as out:
        cpio.write_tree(tree, out, cpio.DEVICES)
    return out.name


def boot(path: str, host: InvocationOptions, **config: object) -> machineplan.Boot:
    return machineplan.boot(RuntimeConfig(image=path, **config), host)


# --- the header ---------------------------------------------------------------------------------


def test_the_info_block_by_the_kernels_structure(header: bytes) -> None:
    assert len(header) == 2 * MIB and not any(header[:4096]) and not any(header[8192:])
    block = header[4096:8192]
    assert struct.calcsize(LAYOUT) == 4096
    *fields, padding, checksum = struct.unpack(LAYOUT, block)
    assert fields == [
        b"NVDIMM_PFN_INFO\0", UUID, bytes(16), 0, 1, 4, 2 * MIB, 4 * MIB // 4096, 1, 0, 0, 2 * MIB, 4096, 64]
    assert not any(padding)
    low = high = 0
    for word in struct.unpack("<1024I", block[:-8] + bytes(8)):
        low = (low + word) % 2**32
        high = (high + low) % 2**64
    assert checksum == (high << 32) % 2**64 + low


@pytest.mark.parametrize(("start", "fstype"), [(EROFS, "erofs"), (EXT4, "ext4")])
def test_reading(tmp_path: Path, header: bytes, start: dict[int, bytes], fstype: str) -> None:
    found = nvdimm.read(image(tmp_path / "i", header, start))
    assert found == nvdimm.Image(6 * MIB, 2 * MIB, False, "/dev/pmem0", fstype, "")


def test_an_image_with_partitions_before_and_behind_the_header(tmp_path: Path, header: bytes) -> None:
    """As Kata 1.x's and Clear Containers' are: one table for a disk, one for an NVDIMM."""
    table = bytes(8) + (2048).to_bytes(4, "little") + bytes(52) + b"\x55\xaa"
    path = image(tmp_path / "i", header, at=3 * MIB, more={446: table, 2 * MIB + 446: table})
    assert nvdimm.read(path) == nvdimm.Image(6 * MIB, 2 * MIB, True, "/dev/pmem0p1", "erofs", "")
    source = boot(path, options(tmp_path))
    assert source.nvdimm == 6 * MIB and "root=/dev/pmem0p1" in source.params
    source = boot(path, options(tmp_path), kernel_params=("root=/dev/vda1",))
    assert (source.nvdimm, source.image_offset) == (0, 0), "its own table says where its partitions are"


# --- the choice -----------------------------------------------------------------------------------


def test_it_is_an_nvdimm_where_it_can_be(tmp_path: Path, header: bytes) -> None:
    source = boot(image(tmp_path / "i", header), options(tmp_path))
    assert source.params == ("root=/dev/pmem0", "rootfstype=erofs", "rootflags=dax", "rootwait", "ro")
    assert (source.nvdimm, source.image_offset, source.no_nvdimm) == (6 * MIB, 0, "")


@pytest.mark.parametrize(("changes", "config", "why", "offset"), [
    ({}, {"disable_image_nvdimm": True}, "disable_image_nvdimm is set", 2 * MIB),
    ({}, {"kernel_params": ("quiet", "root=/dev/vda")}, "kernel_params name the root device", 2 * MIB),
    ({"header": bytes(8192)}, {}, "it has no NVDIMM header", 0),
    ({"header": b""}, {}, "it has no NVDIMM header", 0),
    ({"more": {8190: b"x"}}, {}, "its NVDIMM header is damaged", 0),
    ({"more": {4096 + 56: bytes(8)}}, {}, "its NVDIMM header is damaged", 0),
    ({"size": 6 * MIB - 4096}, {}, f"its size, {6 * MIB - 4096} bytes, is no multiple of 2 MiB", 2 * MIB),
    ({"start": {0: b"hsqs"}}, {}, OTHER, 2 * MIB),
    ({"start": {**EXT4, 1048: b"\0"}}, {}, OTHER, 2 * MIB),
])
def test_why_an_image_is_a_disk(tmp_path: Path, header: bytes, changes: dict[str, object], config: dict[str, object],
                                why: str, offset: int) -> None:
    path = image(tmp_path / "i", **{"header": header, **changes})  # type: ignore[arg-type]
    source = boot(path, options(tmp_path), **config)
    assert source.params == ("root=/dev/vda", "ro")
    assert (source.nvdimm, source.image_offset, source.no_nvdimm) == (0, offset, why)


@pytest.mark.parametrize(("kernel", "initrd", "why"), [
    ({"FS_DAX": "n"}, (), "the kernel lacks CONFIG_FS_DAX"),
    ({"ACPI_NFIT": "n", "NVDIMM_PFN": "m"}, (), "the kernel lacks CONFIG_NVDIMM_PFN, CONFIG_ACPI_NFIT"),
    ({"EROFS_FS": "n"}, (), "the kernel lacks CONFIG_EROFS_FS"),
    ({"EXT4_FS": "n"}, (), ""),
    ({"BLK_DEV_PMEM": "m", "EROFS_FS": "m"}, (), "the boot initrd lacks the module nd_pmem, erofs"),
    ({"BLK_DEV_PMEM": "m"}, ("drivers/and_pmem.ko", "fs/erofs.ko"), "the boot initrd lacks the module nd_pmem"),
    ({"ACPI_NFIT": "m"}, ("drivers/nd_pmem.ko",), "the boot initrd lacks the module nfit"),
    ({"BLK_DEV_PMEM": "m", "EROFS_FS": "m"}, ("drivers/nd_pmem.ko", "fs/erofs.ko"), ""),
    ({}, ("drivers/nd_pmem.ko",), ""),
])
def test_what_the_kernel_must_have(tmp_path: Path, header: bytes, kernel: dict[str, str], initrd: tuple[str, ...],
                                   why: str) -> None:
    source = boot(image(tmp_path / "i", header),
                  options(tmp_path, boot_initrd(tmp_path, *initrd) if initrd else "", **kernel))
    assert source.no_nvdimm == why and bool(source.nvdimm) == (not why)
    # A kernel that has all of it built in mounts the image itself.
    assert bool(source.initrd) == (bool(initrd) and "m" in kernel.values())


def test_a_boot_initrd_that_is_none(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "boot-initrd").write_bytes(b"070701" + b"x" * 200)
    source = boot(image(tmp_path / "i", header), options(tmp_path, f"{tmp_path}/boot-initrd", EROFS_FS="m"))
    assert source.no_nvdimm == "the boot initrd lacks the module erofs"


def test_of_a_kernel_of_somebody_else_nothing_is_known(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "elsewhere").mkdir()
    source = boot(image(tmp_path / "i", header), options(tmp_path), kernel=f"{tmp_path}/elsewhere/vmlinuz")
    assert source.no_nvdimm == "the kernel's configuration is not known"


@pytest.mark.parametrize("field", ["kernel", "image", "initrd", "firmware"])
def test_a_fifo_is_refused_by_name(tmp_path: Path, field: str) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "f")
    with pytest.raises(ConfigError, match=rf"^{field} = '{tmp_path}/f': it is not a regular file"):
        check_assets(RuntimeConfig(**{field: f"{tmp_path}/f"}), "")  # type: ignore[arg-type]


def test_a_fifo_is_not_waited_for(tmp_path: Path, header: bytes) -> None:
    """One that took an image's place after it was checked, or that lies where a kernel's configuration would."""
    os.mkfifo(tmp_path / "config")
    assert nvdimm.read(f"{tmp_path}/config").unfit == "it cannot be read: not a regular file"
    source = boot(image(tmp_path / "i", header), InvocationOptions(kernel_asset=f"{tmp_path}/vmlinux"))
    assert source.no_nvdimm == "the kernel's configuration is not known"


# --- QEMU -----------------------------------------------------------------------------------------


def after(argv: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(argv) if name == option]


@pytest.mark.parametrize(("plan", "memory"), [
    (replace(PLAN, max_memory=256), "256M,slots=1,maxmem=262M"),
    (PLAN, "256M,slots=3,maxmem=1030M"),
])
def test_the_machine(plan: MachinePlan, memory: str) -> None:
    argv = qemu_argv(replace(plan, image="/a,b", nvdimm=6 * MIB), ENDS)
    assert "nvdimm=on" in after(argv, "-machine")[0].split(",")
    assert after(argv, "-m") == [memory]
    assert (f"memory-backend-file,id=image,mem-path=/a,,b,size={6 * MIB},share=on,readonly=on"
            in after(argv, "-object"))
    assert "nvdimm,id=image,memdev=image,unarmed=on" in after(argv, "-device")
    assert "-blockdev" not in argv


def test_the_machine_of_a_disk() -> None:
    argv = qemu_argv(replace(PLAN, image="/i", image_offset=2 * MIB), ENDS)
    assert "nvdimm" not in " ".join(argv)
    (disk,) = after(argv, "-blockdev")
    assert {"driver=raw", f"offset={2 * MIB}", "file.filename=/i", "read-only=on"} < set(disk.split(","))
