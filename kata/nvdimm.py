"""A root image as an NVDIMM: the header by which a guest's Linux maps it with DAX, and whether a kernel can.

Linux calls the header an *info block* (``struct nd_pfn_sb``, drivers/nvdimm/pfn.h).  It says that the namespace has
struct pages, which DAX needs, and where its data begins.  Clear Containers' and Kata 1.x's images have one as well.

::

    0        nothing, or a partition table for those who read the file as a disk
    4096     the info block, 4 KiB
    2 MiB    what the guest has as /dev/pmem0: a file system, or a partition table
    ...      to the end, a multiple of 2 MiB
"""

from __future__ import annotations

import os
import stat
from io import FileIO

from kata.record import Record

INFO_BLOCK = 4096  #: bytes from the start of the file; also its size
SIGNATURE = b"NVDIMM_PFN_INFO\0"
VERSION = (1, 4)
DATA = 2 << 20  #: bytes before the data, where this module writes it
ALIGNMENT = 2 << 20  #: bytes; Linux maps persistent memory in sections of this size
PAGE = 4096
PAGE_STRUCT = 64  #: bytes of a struct page
RAM = 1  #: PFN_MODE_RAM: the struct pages are in the guest's memory

#: File systems that can be mounted with DAX, if their blocks are pages: where that is written (magic number, logarithm
#: of the block's size), and what.
FILE_SYSTEMS = {"erofs": {1024: b"\xe2\xe1\xf5\xe0", 1036: b"\x0c"}, "ext4": {1080: b"\x53\xef", 1048: b"\x02"}}
_FS_HEAD = 1082  #: bytes that show it
_SECTOR = 512
_CONFIG = 1 << 20  #: bytes at most that a kernel's configuration is read of; Debian's has 270 kB
_CPIO, _CPIO_HEAD = b"070701", 512  #: beginning of an entry of a cpio archive; bytes that show its name
_MBR = b"\x55\xaa"  #: ends the first sector of a disk with partitions

#: What a guest's kernel needs, built in or as a module (then the boot initrd has it), and for what.
_DRIVERS = {"CONFIG_ACPI_NFIT": "nfit", "CONFIG_BLK_DEV_PMEM": "nd_pmem"}
_OPTIONS = ("CONFIG_NVDIMM_PFN", "CONFIG_FS_DAX")


class Image(Record):
    """What there is to know of an image file."""

    size: int  #: bytes
    data: int = 0  #: where the data behind the header begins, bytes; 0: there is no header
    partitioned: bool = False  #: the file is a disk with partitions as it is, header or not
    root: str = ""  #: the guest's device with the root file system
    fstype: str = ""  #: of it
    unfit: str = ""  #: why it can be no NVDIMM; "" = it can


def read(path: str) -> Image:
    """What an image file says of itself; one that cannot be read, QEMU has its own words for."""
    try:
        with _opened(path) as f:
            size = os.fstat(f.fileno()).st_size
            first = f.read(2 * INFO_BLOCK)
            block = first[INFO_BLOCK:]
            partitioned = first[_SECTOR - 2 : _SECTOR] == _MBR
            if len(block) < INFO_BLOCK or not block.startswith(SIGNATURE):
                return Image(size, partitioned=partitioned, unfit="it has no NVDIMM header")
            data = int.from_bytes(block[56:64], "little")
            if checksum(block) != int.from_bytes(block[-8:], "little") or not 0 < data < size:
                return Image(size, partitioned=partitioned, unfit="its NVDIMM header is damaged")
            if size % ALIGNMENT:
                return Image(size, data, partitioned, unfit=f"its size, {size} bytes, is no multiple of 2 MiB")
            f.seek(data)
            start, root = f.read(_SECTOR), "/dev/pmem0"
            at = data
            if start[-2:] == _MBR:
                at, root = data + _SECTOR * int.from_bytes(start[454:458], "little"), "/dev/pmem0p1"
            f.seek(at)
            found = f.read(_FS_HEAD)
    except OSError as e:
        return Image(0, unfit=f"it cannot be read: {(e.strerror or str(e)).lower()}")
    fstype = next((name for name, marks in FILE_SYSTEMS.items()
                   if all(found.startswith(mark, place) for place, mark in marks.items())), "")
    unfit = "" if fstype else f"behind its NVDIMM header is no {' or '.join(FILE_SYSTEMS)} with blocks of 4 KiB"
    return Image(size, data, partitioned, root, fstype, unfit)


def kernel_lacks(kernel: str, initrd: str, fstype: str) -> tuple[str, list[str]]:
    """What keeps a kernel from a root image on an NVDIMM, "" if nothing does; the modules that it needs for it.

    The configuration lies beside each kernel of the asset store.

    :param initrd: the boot initrd, whose modules are loaded before the image is mounted; "" for none.
    """
    try:
        with _opened(os.path.join(os.path.dirname(kernel), "config")) as f:
            config = b"\n" + f.read(_CONFIG)
    except OSError:
        return "the kernel's configuration is not known", []
    lacks = [name for name in _OPTIONS if f"\n{name}=y\n".encode() not in config]
    modules = []
    for name, module in {**_DRIVERS, f"CONFIG_{fstype.upper()}_FS": fstype}.items():
        if f"\n{name}=m\n".encode() in config:
            modules.append(module)
        elif f"\n{name}=y\n".encode() not in config:
            lacks.append(name)
    if lacks:
        return f"the kernel lacks {', '.join(lacks)}", []
    return _initrd_lacks(initrd, modules) if modules else "", modules


def _initrd_lacks(initrd: str, modules: list[str]) -> str:
    """The boot initrd is a cpio archive that is not packed: only the names in it are read, not its files."""
    wanted = {f"{name}.ko".encode(): name for name in modules}
    try:
        with _opened(initrd) as f:
            at = 0
            while wanted and (head := os.pread(f.fileno(), _CPIO_HEAD, at)).startswith(_CPIO):
                size, length = int(head[54:62], 16), int(head[94:102], 16)  # of the file; of its name, which ends in 0
                wanted.pop(head[110 : 109 + length].rpartition(b"/")[2], None)
                at += -(-(110 + length) // 4) * 4 + -(-size // 4) * 4
    except (OSError, ValueError):
        pass
    return f"the boot initrd lacks the module {', '.join(wanted.values())}" if wanted else ""


def _opened(path: str) -> FileIO:
    """A regular file, open for reading.

    :raise OSError: it cannot be opened, or is something else; a FIFO is not waited for.
    """
    f = FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
        f.close()
        raise OSError("not a regular file")
    return f


def header(size: int, uuid: bytes) -> bytes:
    """The first :data:`DATA` bytes of an image file.

    :param size: bytes of the whole file, a multiple of :data:`ALIGNMENT`.
    :param uuid: 16 bytes that name it.
    """
    words = {
        48: (0, 4),  # flags
        52: (VERSION[0], 2), 54: (VERSION[1], 2),
        56: (DATA, 8),
        64: ((size - DATA) // PAGE, 8),  # pages
        72: (RAM, 4),
        76: (0, 4), 80: (0, 4),  # padding at start and end
        84: (ALIGNMENT, 4),
        88: (PAGE, 4), 92: (PAGE_STRUCT, 2),
    }  # fmt: skip
    block = bytearray(INFO_BLOCK)
    block[:16], block[16:32] = SIGNATURE, uuid
    for at, (value, length) in words.items():
        block[at : at + length] = value.to_bytes(length, "little")
    block[-8:] = checksum(block).to_bytes(8, "little")
    return bytes(INFO_BLOCK) + bytes(block) + bytes(DATA - 2 * INFO_BLOCK)


def checksum(block: bytes | bytearray) -> int:
    """Fletcher's, of 32-bit words with sums of 32 and 64 bits, over an info block without its own checksum."""
    low = high = 0
    for at in range(0, INFO_BLOCK - 8, 4):
        low = (low + int.from_bytes(block[at : at + 4], "little")) & 0xFFFFFFFF
        high += low
    return ((high + 2 * low) << 32 | low) & (1 << 64) - 1
