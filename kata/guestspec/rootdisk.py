"""A root file system that is a disk of its own: the guest reads the disk instead of asking for every file.

Two kernels may have one file system mounted as long as neither writes.  So the
disk is given only where nobody on this host can write to it while it is
mounted: the kind of file system knows no writing, or the device refuses it.
A disk that is mounted read-write stays a share, even if the container itself
gets its root read-only: the kernel here may change it at any time, and its
journal may hold what is not yet in place.  (Kata 1.x gave such a disk to the
guest as well, for containers of docker's devicemapper.)

It must hold the container's root and nothing else, with nothing mounted below:
the guest's kernel can read all of it.
"""

from __future__ import annotations

import os

from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterable

ALWAYS_READ_ONLY = "erofs"
#: That every guest kernel has (configs/kernel/storage.config).
KINDS = ("erofs", "ext4")

SUPERBLOCK = 1024  #: where it begins, in both
_SIZE = 256  #: bytes of it that are looked at
# What Linux 6.1, the oldest of our guests, reads (fs/erofs/erofs_fs.h, fs/ext4/ext4.h).
_EROFS_MAGIC, _EROFS_FEATURES, _EROFS_COMPRESSION_LISTED, _EROFS_LZ4 = 0xE0F5E1E2, 0x3F, 0x2, 0x1
_EXT4_MAGIC = 0xEF53
#: filetype, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data; not "needs recovery".
_EXT4_FEATURES = 0x2 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000


class RootDisk(Record):
    source: str  #: path of the block device
    kind: str  #: of the file system


def mounted_whole(mounts: Iterable[str], path: str) -> tuple[int, int, str] | None:
    """(major, minor, kind) of the file system whose root is mounted read-only at ``path``, and nothing below it.

    :param mounts: lines of /proc/PID/mountinfo (proc(5)).
    :param path: absolute, without links.
    """
    # A folder's name with a blank or a backslash is written in another way there, and stays a share.
    found, below = None, path.rstrip("/") + "/"
    for line in mounts:
        left, _dash, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        if fields[4] == path:  # the last one lies on top
            whole = fields[3] == "/" and "ro" in rest[2].strip().split(",") and rest[0] in KINDS
            major, _colon, minor = fields[2].partition(":")
            found = (int(major), int(minor), rest[0]) if whole else None
        elif fields[4].startswith(below):
            return None
    return found


def guest_reads(kind: str, superblock: bytes) -> bool:
    """Whether every guest kernel can mount the file system that has this superblock, as it is."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(superblock[at : at + size], "little")

    if len(superblock) < _SIZE:
        return False
    if kind == "erofs":
        features, compression = number(80, 4), number(84, 2)
        return (number(0, 4) == _EROFS_MAGIC and features & ~_EROFS_FEATURES == 0
                and 1 << superblock[12] == 4096  # a page
                and number(86, 2) == 0  # further devices
                and (not features & _EROFS_COMPRESSION_LISTED or compression & ~_EROFS_LZ4 == 0))
    return number(56, 2) == _EXT4_MAGIC and number(96, 4) & ~_EXT4_FEATURES == 0


def read_superblock(device: str) -> bytes:
    """Nothing if it cannot be read."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, _SIZE, SUPERBLOCK)
        finally:
            os.close(fd)
    except OSError:
        return b""
