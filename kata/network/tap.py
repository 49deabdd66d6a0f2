"""Tap devices: the machine's end of an interface.

A tap lives as long as its descriptor is open here or in QEMU.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from kata.errors import HostError

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_DEVICE = "/dev/net/tun"


def open_tap(name: str) -> int:
    """A new tap with a virtio-net header, one queue, down; returns its descriptor.

    It is in the calling thread's network namespace and stays there.

    :raise HostError: there is no tun driver, or ``name`` is taken.
    """
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError(f"cannot open {_DEVICE}: {error.strerror}",
                        "load the kernel module tun, and let this process use character device 10:200") from error
    # struct ifreq: the name, the flags, and padding to its 40 bytes.
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    request = struct.pack("16sH22x", name.encode(), flags)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
            raise HostError(f"cannot make tap {name}: an interface of that name is in use",
                            "another sandbox or a leftover process holds it in this network namespace") from error
        raise HostError(f"cannot make tap {name}: {error.strerror}") from error
    return fd
