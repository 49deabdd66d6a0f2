"""Paths inside a container's root, looked up so that no link leads out of it.

A container's image may hold any symbolic link.  Everything here starts from a
descriptor of the root and hands out descriptors, never paths.
"""

from __future__ import annotations

import errno
import os
import stat

from kata_agent.linux import syscalls as sc

_MAX_LINKS = 40
_RESOLVE = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS


def open_in_root(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open ``path`` as a process whose root is ``root`` would.

    :raise OSError: as open(2).
    """
    return sc.openat2(root, path or ".", flags, 0, _RESOLVE)


def ensure(root: int, path: str, directory: bool, mode: int = 0o755) -> int:
    """A descriptor (O_PATH) of ``path`` below ``root``; what is missing is made.

    :param directory: whether the last component becomes a directory or an
        empty file, when it is missing.
    :param mode: of directories that are made.
    :raise OSError: ELOOP, ENOTDIR, EROFS...; ``filename`` is the path in the container.
    """
    try:
        return open_in_root(root, path)
    except FileNotFoundError:
        return _make(root, path, directory, mode)


def _make(root: int, path: str, directory: bool, mode: int) -> int:
    """Walk component by component with held descriptors, as links may point to what is missing too."""
    todo = [c for c in path.split("/") if c not in ("", ".")]
    todo.reverse()
    held = [os.dup(root)]
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(held) > 1:
                    os.close(held.pop())
                continue
            here = held[-1]
            try:
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                if todo or directory:
                    os.mkdir(name, mode, dir_fd=here)
                else:
                    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=here))
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(name, dir_fd=here)
                if target.startswith("/"):
                    while len(held) > 1:
                        os.close(held.pop())
                todo += reversed(target.split("/"))
                continue
            # O_NOFOLLOW: the container may swap the name meanwhile when its root is shared.
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_DIRECTORY if todo else 0)
            held.append(os.open(name, flags, dir_fd=here))
        return held.pop()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        for fd in held:
            os.close(fd)


def fd_path(fd: int) -> str:
    """A path that stands for an open descriptor, for calls that take only paths."""
    return f"/proc/self/fd/{fd}"


def components_ok(name: str) -> bool:
    """Whether ``name`` is one plain path component."""
    return 0 < len(name) <= 255 and name not in (".", "..") and "/" not in name and "\0" not in name
