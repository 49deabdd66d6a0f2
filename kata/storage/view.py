"""What an engine sees of a container's files: the mount namespace of its first shim.

Tools enter the mount namespace of a container's pid to copy files (``podman
cp``).  That pid is the shim's, so its namespace must show the container and not
the host.  The container's tree is mounted over "/" of a namespace of the shim's
own: whoever enters it gets the tree, while the shim itself, whose root
directory lies beneath, goes on seeing the host.

Mounts that exist in the guest only (tmpfs, proc, ...) are empty and read-only
here, so that what is copied to them fails and is not lost.
"""

from __future__ import annotations

import os

from kata.contract import ContainerPlan, Share
from kata.errors import HostError
from kata.record import Record
from kata.storage import mountns
from kata_agent.linux import syscalls

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class Piece(Record):
    """A mount of the view, in the order of mounting; ``fd`` -1: empty and read-only."""

    fd: int
    destination: str
    is_dir: bool


def open_view(plan: ContainerPlan, shared: str) -> list[Piece]:
    """Copies of the container's mounts, the root first; the descriptors are the caller's to close.

    :param shared: the guest's folder with the shares of the container.
    :raise HostError: the kernel refuses.
    """
    shares = {f"{shared}/{share.name}": share for share in plan.shares}
    pieces: list[Piece] = []
    try:
        for source, destination in [(f"{shared}/rootfs", "/"), *_mounts(plan)]:
            share = Share("/proc", "proc", True, True) if source == "proc" else shares.get(source)
            if share is None:
                pieces.append(Piece(-1, destination, True))
                continue
            fd = syscalls.open_tree(syscalls.AT_FDCWD, share.source,
                                    syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if share.recursive else 0))
            pieces.append(Piece(fd, destination, share.is_dir))
            syscalls.mount_setattr(fd, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE,
                                   attr_set=syscalls.MOUNT_ATTR_RDONLY if share.read_only else 0,
                                   propagation=syscalls.MS_PRIVATE)
    except OSError as error:
        close_view(pieces)
        raise HostError(f"cannot copy the container's mounts: {error.strerror}") from error
    return pieces


def _mounts(plan: ContainerPlan) -> Iterable[tuple[str, str]]:
    """(source, destination); of /proc the host's is shown, where tools look the shim's pid up."""
    mounts: Sequence[Mapping[str, Any]] = plan.spec.get("mounts", ())
    for mount in mounts:
        yield "proc" if mount.get("type") == "proc" else mount.get("source", ""), mount["destination"]


def close_view(pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        if piece.fd >= 0:
            os.close(piece.fd)


def enter_view(pieces: Sequence[Piece], keep: Iterable[str]) -> None:
    """Give the calling process a mount namespace that shows ``pieces`` to whoever enters it.

    :param keep: paths of the host that the process itself still needs.
    :raise HostError: the kernel refuses.
    """
    mountns.enter_private(keep)
    root = pieces[0].fd
    try:
        syscalls.move_mount(root, "", syscalls.AT_FDCWD, "/", syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    except OSError as error:
        raise HostError(f"cannot mount the container's tree: {error.strerror}") from error
    for piece in pieces[1:]:
        fd = piece.fd if piece.fd >= 0 else _nothing()
        try:
            target = _target(root, piece.destination, piece.is_dir)
            try:
                syscalls.move_mount(fd, "", target, "",
                                    syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH)
            finally:
                os.close(target)
        except FileNotFoundError:
            continue  # below an empty mount, or the guest has yet to make the place: nothing can be copied there
        except OSError as error:
            raise HostError(f"cannot show {piece.destination} of the container: {error.strerror}") from error
        finally:
            if piece.fd < 0:
                os.close(fd)


def _target(root: int, path: str, is_dir: bool) -> int:
    """The mount point ``path`` below ``root``, made if it is not there, as the guest will do.

    :raise FileNotFoundError: it is not there and cannot be made.
    """
    try:
        return syscalls.openat2(root, path, os.O_PATH | os.O_CLOEXEC, resolve=_IN_ROOT)
    except FileNotFoundError:
        parent_path, _, name = path.rstrip("/").rpartition("/")
        if not name or name == "..":
            raise
        parent = _target(root, parent_path or "/", True)
        try:
            if is_dir:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
        except OSError as error:
            raise FileNotFoundError(path) from error
        finally:
            os.close(parent)
        return syscalls.openat2(root, path, os.O_PATH | os.O_CLOEXEC, resolve=_IN_ROOT)


def _nothing() -> int:
    """An empty, read-only file system."""
    context = syscalls.fsopen("tmpfs")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "size", "4k")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)
