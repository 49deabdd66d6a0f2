"""The tree of mounts that QEMU exports to the guest by 9p.

It is a small tmpfs that holds only mount points: ``CONTAINER/NAME``.  QEMU gets
a read-only view of it, so the guest can make nothing outside of a container's
own mounts; the proxy makes the mount points through a writable view that is
attached nowhere.  The guest may hold any file of a share open: everything here
works with descriptors and openat2, and no name comes from the guest.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

from kata.errors import HostError, InUse
from kata_agent.linux import syscalls

_OPTIONS = {"size": "1m", "nr_inodes": "65536", "mode": "0700"}
_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_NOT_A_MOUNT = (errno.EINVAL, errno.ENOENT)


class ShareRoot:
    """The share of one sandbox, in the calling process's mount namespace (:mod:`kata.storage.mountns`)."""

    def __init__(self, path: str, writable: int, exported: int) -> None:
        self.path = path  #: what QEMU exports
        self._writable = writable
        self._exported = exported

    @classmethod
    def create(cls, path: str) -> ShareRoot:
        """Mount an empty share at the directory ``path`` (made if absent, mode 0700).

        :raise HostError: the kernel refuses.
        """
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            with ExitStack() as close:
                writable = _tmpfs()
                close.callback(os.close, writable)
                view = syscalls.open_tree(writable, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
                close.callback(os.close, view)
                attrs = (syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID
                         | syscalls.MOUNT_ATTR_NOEXEC)
                syscalls.mount_setattr(view, "", syscalls.AT_EMPTY_PATH, attr_set=attrs,
                                       propagation=syscalls.MS_PRIVATE)
                syscalls.move_mount(view, "", syscalls.AT_FDCWD, path, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
                close.pop_all()
            return cls(path, writable, view)
        except OSError as error:
            raise HostError(f"cannot make the share {path}: {error.strerror}",
                            "Linux 5.12 or newer, CAP_SYS_ADMIN and tmpfs are needed") from error

    @classmethod
    def reopen(cls, path: str) -> ShareRoot:
        """The share that is mounted at ``path`` already (after a restart of the proxy).

        :raise HostError: nothing is mounted there.
        """
        try:
            with ExitStack() as close:
                view = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                close.callback(os.close, view)
                if syscalls.statfs_type(view) != syscalls.TMPFS_MAGIC or not os.fstatvfs(view).f_flag & os.ST_RDONLY:
                    raise HostError(f"the share {path} is not mounted", "the sandbox has to be deleted")
                writable = syscalls.open_tree(view, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
                close.callback(os.close, writable)
                syscalls.mount_setattr(writable, "", syscalls.AT_EMPTY_PATH, attr_clr=syscalls.MOUNT_ATTR_RDONLY)
                close.pop_all()
            return cls(path, writable, view)
        except OSError as error:
            raise HostError(f"cannot open the share {path}: {error.strerror}") from error

    def close(self) -> None:
        """Unmount everything; the mounts go when QEMU has closed its files in them.  May be called again."""
        if self._exported < 0:
            return
        try:
            syscalls.umount2(self.path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in _NOT_A_MOUNT:
                raise HostError(f"cannot unmount the share {self.path}: {error.strerror}") from error
        self.release()

    def release(self) -> None:
        """Close the descriptors and leave the mounts: a proxy that hands over to another."""
        for fd in (self._writable, self._exported):
            if fd >= 0:
                os.close(fd)
        self._writable = self._exported = -1

    def add(self, container: str, name: str, fd: int, is_dir: bool) -> str:
        """Attach the detached mount ``fd`` as ``container/name``; returns that path.

        ``fd`` stays the caller's to close.  On failure nothing of it remains.

        :raise InUse: the name is taken.
        :raise HostError: a name is not usable, or the kernel refuses.
        """
        relative = f"{check_name(container)}/{check_name(name)}"
        try:
            with ExitStack() as undo, ExitStack() as close:
                if _mkdir(self._writable, container):
                    undo.callback(_rmdir, self._writable, container)
                folder = _open(self._writable, container, os.O_DIRECTORY)
                close.callback(os.close, folder)
                if is_dir:
                    os.mkdir(name, 0o700, dir_fd=folder)
                    undo.callback(_rmdir_at, self._writable, container, name)
                else:
                    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
                                     0o600, dir_fd=folder))
                    undo.callback(_unlink_at, self._writable, container, name)
                target = _open(self._exported, relative)
                close.callback(os.close, target)
                syscalls.move_mount(fd, "", target, "",
                                    syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH)
                undo.pop_all()
        except FileExistsError as error:
            raise InUse(f"the share already holds {relative}") from error
        except OSError as error:
            raise HostError(f"cannot share {relative} with the machine: {error.strerror}") from error
        return relative

    def read(self, container: str, path: str, limit: int) -> bytes:
        """The regular file ``path`` below ``container``; no link or FIFO of a guest is followed or waited for.

        :raise OSError: there is none, or a link is in the way.
        :raise ValueError: it is something else, or has more than ``limit`` bytes.
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = syscalls.openat2(self._exported, f"{check_name(container)}/{path}", flags, resolve=_RESOLVE)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                raise ValueError(f"{path} is no regular file of at most {limit} bytes")
            return os.read(fd, limit)
        finally:
            os.close(fd)

    def containers(self) -> list[str]:
        """Containers that have something in the share, sorted."""
        return sorted(self._list(self._writable))

    def names(self, container: str) -> list[str]:
        """What a container has in the share, sorted."""
        try:
            folder = _open(self._writable, check_name(container), os.O_DIRECTORY)
        except FileNotFoundError:
            return []
        try:
            return sorted(self._list(folder))
        finally:
            os.close(folder)

    def remove(self, container: str) -> None:
        """Unmount all of a container and remove its mount points; nothing there is no error.

        A file that QEMU holds open keeps its mount alive, detached, until it is closed.

        :raise HostError: the kernel refuses.
        """
        check_name(container)
        try:
            view = _open(self._exported, container, os.O_DIRECTORY)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"cannot open {container} in the share: {error.strerror}") from error
        try:
            folder = _open(self._writable, container, os.O_DIRECTORY)
            try:
                for name in self._list(folder):
                    _unmount(view, name)
                    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        os.rmdir(name, dir_fd=folder)
                    else:
                        os.unlink(name, dir_fd=folder)
            finally:
                os.close(folder)
            _rmdir(self._writable, container)
        except OSError as error:
            raise HostError(f"cannot remove {container} from the share: {error.strerror}") from error
        finally:
            os.close(view)

    @staticmethod
    def _list(fd: int) -> list[str]:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            return os.listdir(readable)
        finally:
            os.close(readable)


def check_name(name: str) -> str:
    """``name`` if it is one usable path component.

    :raise HostError: it is empty, dots, too long, or holds "/" or NUL.
    """
    if not name or name.strip(".") == "" or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise HostError(f"{name!r} cannot be a name in a share",
                        "it must be one path component of at most 255 bytes, not only dots")
    return name


def _tmpfs() -> int:
    context = syscalls.fsopen("tmpfs")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", "kata-share")
        for key, value in _OPTIONS.items():
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context)
    finally:
        os.close(context)


def _open(root: int, path: str, flags: int = 0) -> int:
    # NO_XDEV: a mount point that is in use is not entered.
    return syscalls.openat2(root, path, os.O_PATH | flags, resolve=_RESOLVE | syscalls.RESOLVE_NO_XDEV)


def _mkdir(root: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=root)
    except FileExistsError:
        return False
    return True


def _rmdir(root: int, name: str) -> None:
    os.rmdir(name, dir_fd=root)


def _at(root: int, container: str) -> int:
    return _open(root, container, os.O_DIRECTORY)


def _rmdir_at(root: int, container: str, name: str) -> None:
    folder = _at(root, container)
    try:
        os.rmdir(name, dir_fd=folder)
    finally:
        os.close(folder)


def _unlink_at(root: int, container: str, name: str) -> None:
    folder = _at(root, container)
    try:
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def _unmount(folder: int, name: str) -> None:
    # umount2 takes paths only; the folder's descriptor fixes all of it but the last component.
    path = f"/proc/self/fd/{folder}/{name}"
    while True:
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in _NOT_A_MOUNT:
                return
            raise
