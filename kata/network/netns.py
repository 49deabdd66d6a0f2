"""Network namespaces: make, open, compare.

A namespace is held by descriptor, never by a name: it lives as long as a
descriptor or a process is in it, so a verb that fails leaves none behind.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct

from kata.errors import BundleError, HostError
from kata_agent.linux import syscalls

_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_SIOCSIFFLAGS = 0x8914  # netdevice(7)
_IFF_UP = 1
_OWN = "/proc/thread-self/ns/net"


def create() -> int:
    """A new network namespace with its loopback up; returns its descriptor.

    The calling thread is in its own namespace again afterwards.

    :raise HostError: the kernel refuses (not enough rights, ``user.max_net_namespaces``).
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    made = -1
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            made = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            loopback_up()
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    except OSError as error:
        if made >= 0:
            os.close(made)
        raise HostError(f"cannot make a network namespace: {error.strerror}",
                        "run as root; see /proc/sys/user/max_net_namespaces for the limit") from error
    finally:
        os.close(home)
    return made


def loopback_up() -> None:
    """Set up the loopback of the calling thread's namespace."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    finally:
        sock.close()


def open_path(path: str) -> int:
    """The network namespace that ``path`` names, as a descriptor.

    :raise BundleError: it does not exist or is not a network namespace.
    """
    try:
        # O_NONBLOCK: a fifo in its place must not block the verb.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BundleError(f"cannot open network namespace {path!r}: {reason}",
                          "linux.namespaces names a network namespace that must exist") from error
    try:
        is_netns = (syscalls.statfs_type(fd) == syscalls.NSFS_MAGIC
                    and fcntl.ioctl(fd, _NS_GET_NSTYPE) == syscalls.CLONE_NEWNET)
    except OSError as error:
        os.close(fd)
        raise BundleError(f"cannot use network namespace {path!r}: {error.strerror}") from error
    if not is_netns:
        os.close(fd)
        raise BundleError(f"{path!r} is not a network namespace",
                          "linux.namespaces has a path of type network that is something else")
    return fd


def pin(fd: int, path: str) -> None:
    """Keep the namespace ``fd`` for as long as the calling thread's mount namespace lives, to be opened at ``path``.

    :raise HostError: the kernel refuses.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        syscalls.mount(f"/proc/self/fd/{fd}", path, "", syscalls.MS_BIND)
    except OSError as error:
        raise HostError(f"cannot keep the network namespace at {path}: {error.strerror}") from error


def identity(fd: int) -> tuple[int, int]:
    """Device and inode: equal for descriptors of the same namespace."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_host(fd: int) -> bool:
    """Whether ``fd`` is the namespace of the calling thread or of the host's init.

    A runtime is called in its engine's namespace, which is "the host" to the
    engine even where that engine is itself inside a container.
    """
    wanted = identity(fd)
    for path in (_OWN, "/proc/1/ns/net"):
        try:
            status = os.stat(path)
        except OSError:
            continue  # init's namespaces are not readable everywhere, ours always are
        if (status.st_dev, status.st_ino) == wanted:
            return True
    return False


def same(fd: int, path: str) -> bool:
    """Whether ``path`` (``/proc/PID/ns/net``) is the namespace ``fd``; False if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == identity(fd)


def enter(fd: int) -> None:
    """Move the calling thread into the network namespace ``fd``.

    :raise HostError: the kernel refuses.
    """
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    except OSError as error:
        raise HostError(f"cannot enter the network namespace: {error.strerror}") from error
