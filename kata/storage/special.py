"""FIFOs, sockets and device nodes in a share, in spite of QEMU 7.2 to 9.2.

The fix of CVE-2023-2861 made QEMU's 9p server refuse to open anything that is
neither file nor directory.  Until 9.2.1 and 10.0 it also refuses itself: it
opens what it made with ``O_PATH`` to set the mode, so ``mkfifo``, ``mknod`` and
``bind`` of a unix socket fail in every share with ENXIO.  Debian 12's QEMU is
one of them, and hardly a server runs without a socket or a FIFO.

A seccomp filter hands two of QEMU's system calls to the proxy: that ``openat``
and the ``chmod`` that follows.  For a special file the proxy gives QEMU an
empty file in its place and sets the mode of the right one itself.  All other
calls go on as they are.  With a QEMU that needs none of this it is correct as
well.

What QEMU says is not trusted: one name in a directory QEMU has open, no links,
and nothing but the mode bits of a special file is ever changed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
from collections import OrderedDict
from contextlib import ExitStack

from kata.errors import HostError
from kata_agent.linux import syscalls

#: QEMU's own descriptor of the listener: a restarted proxy takes it from there.
LISTENER_FD = 250

_ARCH_X86_64 = 0xC000003E
_NR_CHMOD, _NR_OPENAT = 90, 257
_O_PATH_FILE = os.O_PATH | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY  # of QEMU's openat_file(O_PATH)
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000

_NOTIF_RECV, _NOTIF_SEND, _NOTIF_ADDFD = 0xC0502100, 0xC0182101, 0x40182103
_NOTIF = struct.Struct("=QIIiIQ6Q")  # id, pid, flags; nr, arch, ip, args
_CONTINUE = 1
_ADDFD_SEND = 2
_REMEMBERED = 64  # special files between openat and chmod; QEMU has few threads


def _statement(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def program() -> bytes:
    """The filter: ``openat`` of just those flags, and ``chmod``."""
    load, jump_eq, and_k, ret = 0x20, 0x15, 0x54, 0x06
    return b"".join([
        _statement(load, 4), _statement(jump_eq, _ARCH_X86_64, 0, 6),
        _statement(load, 0), _statement(jump_eq, _NR_CHMOD, 5, 0), _statement(jump_eq, _NR_OPENAT, 0, 3),
        _statement(load, 32), _statement(and_k, _O_PATH_FILE | os.O_DIRECTORY),
        _statement(jump_eq, _O_PATH_FILE, 1, 0),
        _statement(ret, _ALLOW), _statement(ret, _USER_NOTIF),
    ])


def install() -> None:
    """In the child that will be QEMU, as the last thing before it is executed.

    :raise OSError: the kernel refuses (before Linux 5.5, or without no_new_privs and CAP_SYS_ADMIN).
    """
    if os.uname().machine != "x86_64":
        return
    listener = syscalls.seccomp_set_filter(program(), syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER)
    os.dup2(listener, LISTENER_FD, inheritable=True)
    if listener != LISTENER_FD:
        os.close(listener)


class SpecialFiles:
    """Answers the system calls of one QEMU: call :meth:`handle` when :meth:`fileno` is readable."""

    def __init__(self, pid: int) -> None:
        """Take the listener from QEMU, which runs as ``pid`` and went through :func:`install`.

        :raise HostError: it has none, or the kernel refuses.
        """
        self._targets: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()
        try:
            with ExitStack() as close:
                pidfd = syscalls.pidfd_open(pid)
                close.callback(os.close, pidfd)
                self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                close.callback(os.close, self._memory)
                self._listener = syscalls.pidfd_getfd(pidfd, LISTENER_FD)
                close.pop_all()
                os.close(pidfd)
        except OSError as error:
            raise HostError(f"cannot follow QEMU's special files: {error.strerror}",
                            "CAP_SYS_PTRACE over QEMU is needed, and Linux 5.9 or newer") from error

    def fileno(self) -> int:
        return self._listener

    def close(self) -> None:
        """Stop; QEMU's calls wait for the next one that takes the listener."""
        os.close(self._listener)
        os.close(self._memory)
        for scratch, target in self._targets.values():
            os.close(scratch)
            os.close(target)
        self._targets.clear()

    def handle(self) -> bool:
        """Answer one system call; False when QEMU is gone and there will be no more."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        events = poll.poll(0)
        if not events or not events[0][1] & select.POLLIN:  # receiving would wait
            return not events
        buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self._listener, _NOTIF_RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # its thread was killed meanwhile
                return True
            raise
        number, pid, _flags, nr, _arch, _ip, *args = _NOTIF.unpack(buffer)
        try:
            if nr == _NR_CHMOD:
                done = self._chmod(number, pid, args[0], args[1])
            else:
                done = self._openat(number, pid, args[0], args[1])
        except (OSError, ValueError):
            done = False
        if not done:
            self._answer(number, 0, _CONTINUE)
        return True

    def _openat(self, number: int, pid: int, dirfd: int, name_at: int) -> bool:
        name = self._string(name_at)
        if not name or "/" in name or name in (".", ".."):
            return False
        path = f"/proc/{pid}/fd/{dirfd & 0xFFFFFFFF}/{name}"  # AT_FDCWD, which it never uses, is no such file
        if not _is_special(os.lstat(path).st_mode):
            return False
        with ExitStack() as close:
            target = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            close.callback(os.close, target)
            if not _is_special(os.fstat(target).st_mode):
                return False
            scratch = os.memfd_create("special-file", os.MFD_CLOEXEC)
            close.callback(os.close, scratch)
            self._remember(scratch, target)
            close.pop_all()
        # Adds the descriptor to QEMU and makes it the result of the call, in one step.
        request = struct.pack("=QIIII", number, _ADDFD_SEND, scratch, 0, os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._listener, _NOTIF_ADDFD, request)
        except OSError as error:
            return error.errno == errno.ENOENT  # gone: nobody waits for an answer
        return True

    def _remember(self, scratch: int, target: int) -> None:
        self._targets[_identity(scratch)] = (scratch, target)
        if len(self._targets) > _REMEMBERED:
            _key, old = self._targets.popitem(last=False)
            for fd in old:
                os.close(fd)

    def _chmod(self, number: int, pid: int, path_at: int, mode: int) -> bool:
        if not self._targets:
            return False
        prefix, _, fd = self._string(path_at).rpartition("/")
        if prefix != "/proc/self/fd" or not fd.isdecimal():
            return False
        status = os.stat(f"/proc/{pid}/fd/{fd}")
        found = self._targets.pop((status.st_dev, status.st_ino), None)
        if found is None:
            return False
        scratch, target = found
        try:
            os.chmod(f"/proc/self/fd/{target}", mode & 0o7777)
            self._answer(number, 0, 0)
        except OSError as error:
            self._answer(number, -(error.errno or errno.EIO), 0)
        finally:
            os.close(scratch)
            os.close(target)
        return True

    def _string(self, address: int) -> str:
        # Up to the end of the page at first: the next one may not be mapped.
        data = os.pread(self._memory, 4096 - address % 4096, address)
        if b"\0" not in data:
            data += os.pread(self._memory, 4096, address + len(data))
        text, end, _ = data.partition(b"\0")
        return os.fsdecode(text) if end else ""

    def _answer(self, number: int, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self._listener, _NOTIF_SEND, struct.pack("=QqiI", number, 0, error, flags))
        except OSError as failure:
            if failure.errno != errno.ENOENT:
                raise


def _is_special(mode: int) -> bool:
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
