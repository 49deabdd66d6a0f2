"""The mount namespace of a sandbox's proxy and QEMU.

It holds what these two need and nothing else.  A copy of all the host's mounts
would keep every file system busy that was mounted when the sandbox was made:
an engine could unmount the overlay of another container and mount it anew,
while the old one lives on in here.
"""

from __future__ import annotations

import errno
import os

from kata.errors import HostError
from kata_agent.linux import syscalls

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Trees whose mounts stay, whatever lies in them.
SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr")


def enter_private(keep: Iterable[str]) -> None:
    """Give the calling thread a mount namespace of its own, with the mounts that ``keep`` and SYSTEM need.

    Afterwards nothing mounted in it appears outside, and nothing from outside in it.

    :param keep: absolute paths that must stay reachable: programs, modules,
        kernels and images, the sandbox's folder.
    :raise HostError: the kernel refuses.
    """
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        # First, so that the unmounting below stays in here.
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        _drop(needed(keep))
    except OSError as error:
        raise HostError(f"cannot make a mount namespace: {error.strerror}",
                        "run as root, with CAP_SYS_ADMIN") from error


def join(pid: int) -> None:
    """Enter the mount namespace of process ``pid`` (QEMU's, for a proxy that was restarted).

    :raise HostError: there is no such process, or the kernel refuses.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNS)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot enter the mount namespace of process {pid}: {error.strerror}") from error


def needed(keep: Iterable[str]) -> frozenset[str]:
    """``keep`` as given and with its links resolved: both ways must stay open."""
    paths = [os.path.abspath(path) for path in keep if path]
    return frozenset([*paths, *(os.path.realpath(path) for path in paths)])


def is_kept(mount_point: str, paths: frozenset[str]) -> bool:
    """Whether the mount at ``mount_point`` is on the way to a needed path, or part of the system."""
    if mount_point == "/" or any(_within(mount_point, tree) for tree in SYSTEM):
        return True
    return any(_within(path, mount_point) for path in paths)


def _within(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")


def mount_points(mountinfo: str) -> list[str]:
    """Mount points in the text of /proc/PID/mountinfo, in its order (parents first)."""
    found = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 4:
            found.append(unescape(fields[4]))
    return found


def unescape(text: str) -> str:
    r"""A field of mountinfo with its ``\040`` escapes undone (proc(5))."""
    if "\\" not in text:
        return text
    raw = os.fsencode(text)
    out = bytearray()
    at = 0
    while at < len(raw):
        digits = raw[at + 1 : at + 4]
        if raw[at] == 0x5C and len(digits) == 3 and all(0x30 <= d <= 0x37 for d in digits):
            out.append(int(digits, 8) & 0xFF)
            at += 4
        else:
            out.append(raw[at])
            at += 1
    return os.fsdecode(bytes(out))


def _drop(paths: frozenset[str]) -> None:
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = mount_points(file.read())
    for point in reversed(points):  # the innermost and the latest first
        if is_kept(point, paths):
            continue
        try:
            syscalls.umount2(point, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            # EINVAL, ENOENT: it lies under another mount and went with, or is hidden by, that one.
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EACCES, errno.ENOTDIR):
                raise
