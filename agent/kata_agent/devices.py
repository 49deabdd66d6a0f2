"""Device nodes of a container (runtime-spec, config-linux.md, "Default Devices")."""

from __future__ import annotations

import errno
import os
import stat

from kata_agent.errors import invalid
from kata_agent.linux import syscalls as sc
from kata_agent.protocol import oci_pb2
from kata_agent.resolve import ensure

_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_LINKS = (
    ("/proc/self/fd", "fd"), ("/proc/self/fd/0", "stdin"), ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"), ("/proc/kcore", "core"), ("pts/ptmx", "ptmx"),
)


class DeviceNode:
    """A device that shall exist in the container."""

    __slots__ = ("gid", "major", "minor", "mode", "path", "source", "uid")

    def __init__(
        self, path: str, kind: str, major: int, minor: int, permissions: int = 0o666, uid: int = 0, gid: int = 0,
        source: str = "",
    ) -> None:
        if kind not in _TYPES:
            raise invalid(f"device {path}: unknown type {kind!r}")
        if not path.startswith("/"):
            raise invalid(f"device path {path!r} is not absolute")
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise invalid(f"device {path}: {major}:{minor} is no device number")
        self.path = path
        self.mode = _TYPES[kind] | permissions & 0o7777
        self.major = major
        self.minor = minor
        self.uid = uid
        self.gid = gid
        self.source = source or path  #: the guest's own node, for where mknod(2) is not allowed


DEFAULTS = tuple(
    DeviceNode(f"/dev/{name}", "c", major, minor)
    for name, major, minor in (
        ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)
    )
)


def from_spec(device: oci_pb2.LinuxDevice) -> DeviceNode:
    """A device of ``linux.devices``.

    :raise AgentError: INVALID_ARGUMENT, it is none.
    """
    permissions = device.FileMode & 0o7777 or 0o666
    major, minor = (0, 0) if device.Type == "p" else (device.Major, device.Minor)
    return DeviceNode(device.Path, device.Type, major, minor, permissions, device.UID, device.GID)


def make(root: int, node: DeviceNode) -> None:
    """Make ``node`` below ``root``; where the kernel refuses that, bind the guest's own there.

    Runs with umask 0.
    """
    folder, _, name = node.path.rstrip("/").rpartition("/")
    parent = ensure(root, folder or "/", True)
    try:
        try:
            os.mknod(name, node.mode, os.makedev(node.major, node.minor), dir_fd=parent)
        except FileExistsError:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            same_type = stat.S_IFMT(info.st_mode) == stat.S_IFMT(node.mode)
            same = same_type and info.st_rdev == os.makedev(node.major, node.minor)
            if same or node in DEFAULTS:
                return
            os.unlink(name, dir_fd=parent)
            os.mknod(name, node.mode, os.makedev(node.major, node.minor), dir_fd=parent)
        os.chown(name, node.uid, node.gid, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EROFS, errno.EACCES):
            raise
        _bind(root, node)
    finally:
        os.close(parent)


def _bind(root: int, node: DeviceNode) -> None:
    """User namespaces and shared folders know no mknod."""
    tree = sc.open_tree(sc.AT_FDCWD, node.source, sc.OPEN_TREE_CLONE)
    target = ensure(root, node.path, False)
    try:
        sc.move_mount(tree, "", target, "", sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH)
    finally:
        os.close(tree)
        os.close(target)


def make_links(root: int, ptmx: bool) -> None:
    """The symbolic links of /dev; ``ptmx`` False leaves /dev/ptmx out."""
    dev = ensure(root, "/dev", True)
    try:
        for target, name in _LINKS:
            if name == "ptmx":
                if not ptmx:
                    continue
                try:
                    os.unlink(name, dir_fd=dev)
                except FileNotFoundError:
                    pass
            try:
                os.symlink(target, name, dir_fd=dev)
            except FileExistsError:
                pass
    finally:
        os.close(dev)


def bind_path(source: str, target: str) -> None:
    """Bind file ``source`` over file ``target``, both in the present root."""
    tree = sc.open_tree(sc.AT_FDCWD, source, sc.OPEN_TREE_CLONE)
    try:
        fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
        try:
            sc.move_mount(tree, "", fd, "", sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH)
        finally:
            os.close(fd)
    finally:
        os.close(tree)


