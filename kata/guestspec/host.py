"""What the rules for mounts and devices ask the host, in one object that a test can replace."""

from __future__ import annotations

import os
import stat

from kata.guestspec import rootdisk
from kata.guestspec.rootdisk import RootDisk
from kata.record import Record


class FileSystem(Record):
    """``kind`` as in /proc/filesystems; ``size`` in bytes, 0 = no limit."""

    kind: str
    size: int


class Host:
    """The host as the caller's mount namespace shows it."""

    def stat(self, path: str) -> os.stat_result:
        """:raise OSError: the path cannot be reached."""
        return os.stat(path)

    def file_system(self, path: str) -> FileSystem:
        """The file system that ``path`` lies on; kind "" if it is not known."""
        device = self.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        sizes = os.statvfs(path)
        with open("/proc/self/mountinfo", "rb") as f:
            for line in f:
                left, _dash, right = line.decode(errors="replace").partition(" - ")
                if left.split(" ", 3)[2] == number:
                    return FileSystem(right.split(" ", 1)[0], sizes.f_blocks * sizes.f_frsize)
        return FileSystem("", sizes.f_blocks * sizes.f_frsize)

    def read(self, path: str, limit: int) -> bytes:
        """At most ``limit`` bytes of a regular file; nothing of anything else."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return b""
        with os.fdopen(fd, "rb") as f:
            return f.read(limit)

    def block_device(self, major: int, minor: int) -> str:
        """Path of a block device that has a size, "" if the host has none by this number."""
        at = f"/sys/dev/block/{major}:{minor}"
        try:
            with open(f"{at}/size") as f:
                if int(f.read()) == 0:
                    return ""
            with open(f"{at}/uevent") as f:
                names = [line[8:].strip() for line in f if line.startswith("DEVNAME=")]
        except (OSError, ValueError):
            return ""
        path = f"/dev/{names[0]}" if names else ""
        try:
            found = os.stat(path) if path else None
        except OSError:
            return ""
        if found and stat.S_ISBLK(found.st_mode) and found.st_rdev == os.makedev(major, minor):
            return path
        return ""

    def root_disk(self, path: str) -> RootDisk | None:
        """The disk that holds the root file system ``path`` and that nobody here can write to, if it is one."""
        try:
            if not os.statvfs(path).f_flag & os.ST_RDONLY or not os.major(os.stat(path).st_dev):
                return None  # as nearly all are
        except OSError:
            return None
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            found = rootdisk.mounted_whole(f, os.path.realpath(path))
        if found is None:
            return None
        major, minor, kind = found
        source = self.block_device(major, minor)
        if not source or not rootdisk.guest_reads(kind, rootdisk.read_superblock(source)):
            return None
        if kind != rootdisk.ALWAYS_READ_ONLY and not _refuses_writing(major, minor):
            return None
        return RootDisk(source=source, kind=kind)


def _refuses_writing(major: int, minor: int) -> bool:
    try:
        with open(f"/sys/dev/block/{major}:{minor}/ro") as f:
            return f.read().strip() == "1"
    except OSError:
        return False
