"""A terminal for a process, made inside its container."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios

_TIOCGPTPEER = 0x5441
_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430


def open_pair() -> tuple[int, int, str]:
    """``(master, slave, path of the slave)`` of a new terminal of the present root's /dev/pts."""
    master = -1
    for path in ("/dev/pts/ptmx", "/dev/ptmx"):
        try:
            master = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENODEV, errno.ENOTDIR) or path == "/dev/ptmx":
                raise
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))
    # By descriptor, as /dev/pts may be anything in a container.
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return master, slave, f"/dev/pts/{number}"


def resize(fd: int, rows: int, columns: int) -> None:
    """Set the size in character cells; the foreground process group gets SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def take(slave: int) -> None:
    """Make ``slave`` the controlling terminal and stdin, stdout, stderr of this session leader."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd, inheritable=True)
    if slave > 2:
        os.close(slave)
