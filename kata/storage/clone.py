"""Taking a mount along as a file descriptor.

The path is resolved once, here, in the mount namespace of whoever called the
runtime; what is sent to the proxy is the mount itself.
"""

from __future__ import annotations

import errno
import os
import stat

from kata.errors import BundleError, HostError
from kata.record import Record
from kata_agent.linux import syscalls

#: How mounts made later below the source reach the clone; "shared" has no way back out of a machine.
PROPAGATION = {"private": syscalls.MS_PRIVATE, "slave": syscalls.MS_SLAVE}

_KINDS = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFSOCK: "socket", stat.S_IFIFO: "fifo",
          stat.S_IFCHR: "char", stat.S_IFBLK: "block", stat.S_IFLNK: "link"}

# What only matters to host processes: none may run a program of the guest's, open a device node it made,
# or follow a link it set.  The guest sees no difference: it applies mount options of its own.
_HARDENED = syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC


class Clone(Record):
    """A detached copy of a mount; it vanishes when ``fd`` is closed before it was attached."""

    fd: int
    kind: str  #: dir | file | socket | fifo | char | block

    @property
    def is_dir(self) -> bool:
        return self.kind == "dir"


def clone_mount(
    source: str, what: str, *, recursive: bool = True, read_only: bool = False, propagation: str = "private"
) -> Clone:
    """Copy the mount (tree) at ``source``; symbolic links in the path are followed as open(2) does.

    :param what: how the error names it, as ``rootfs`` or ``mount /data``.
    :param recursive: with the mounts below it.
    :param read_only: writing is refused on the host, in all of the tree.
    :param propagation: ``private``, or ``slave`` for mounts to come.
    :raise BundleError: there is no such file, or it cannot be bind mounted.
    :raise HostError: the kernel or the rights do not allow it.
    """
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    try:
        fd = syscalls.open_tree(syscalls.AT_FDCWD, source, flags)
    except ValueError as error:
        raise BundleError(f"{what}: source {source!r}: {error}") from error
    except OSError as error:
        raise _refused(error, source, what) from error
    try:
        kind = _KINDS[stat.S_IFMT(os.fstat(fd).st_mode)]
        tree = syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
        attrs = _HARDENED | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)
        syscalls.mount_setattr(fd, "", tree, attr_set=attrs, propagation=PROPAGATION[propagation])
        _stop_links(fd, tree)
    except OSError as error:
        os.close(fd)
        raise HostError(f"{what}: cannot set mount attributes of {source!r}: {error.strerror}",
                        "Linux 5.12 or newer and CAP_SYS_ADMIN are needed") from error
    except BaseException:
        os.close(fd)
        raise
    return Clone(fd, kind)


def _stop_links(fd: int, tree: int) -> None:
    try:
        syscalls.mount_setattr(fd, "", tree, attr_set=syscalls.MOUNT_ATTR_NOSYMFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 5.14; QEMU does not follow links by itself either
            raise


def _refused(error: OSError, source: str, what: str) -> BundleError | HostError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return BundleError(f"{what}: source {source!r} does not exist")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES):
        return BundleError(f"{what}: source {source!r}: {os.strerror(error.errno)}")
    if error.errno == errno.EINVAL:
        return BundleError(f"{what}: source {source!r} cannot be bind mounted",
                           "it lies on an unbindable mount, or in another mount namespace")
    return HostError(f"{what}: cannot take the mount of {source!r} along: {error.strerror}",
                     "Linux 5.2 or newer and CAP_SYS_ADMIN are needed")
