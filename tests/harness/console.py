"""The receiving end of --console-socket: it gets a terminal's master end."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import time
from pathlib import Path
from types import TracebackType

from .wait import Late


class Terminal:
    """The master end of a pseudo-terminal and all that came out of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Write as a keyboard would."""
        os.write(self.fd, text.encode())

    def expect(self, text: str, timeout: float = 30) -> str:
        """Read until ``text`` came; returns what came up to its end, and forgets it."""
        needle = text.encode()
        end = time.monotonic() + timeout
        while needle not in self.seen:
            if not self._read(end):
                raise Late(f"terminal: still waiting for {text!r}; it showed {self.seen!r}")
        before, _, self.seen = self.seen.partition(needle)
        return (before + needle).decode(errors="replace")

    def drain(self, timeout: float = 30) -> str:
        """Read to the end (hang-up)."""
        end = time.monotonic() + timeout
        try:
            while self._read(end):
                pass
        except EOFError:
            return self.seen.decode(errors="replace")
        raise Late(f"terminal: still waiting for its hang-up; it showed {self.seen!r}")

    def _read(self, end: float) -> bool:
        readable, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
        if not readable:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # EIO: the slave end is closed
            data = b""
        if not data:
            raise EOFError(f"terminal hung up; it showed {self.seen!r}")
        self.seen += data
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class ConsoleSocket:
    """A listening socket for --console-socket; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.bind(str(path))
        self.socket.listen(1)
        self.terminal: Terminal | None = None

    def __enter__(self) -> ConsoleSocket:
        return self

    def receive(self, timeout: float = 60) -> Terminal:
        """Wait for the runtime to hand the terminal over."""
        self.socket.settimeout(timeout)
        try:
            peer, _ = self.socket.accept()
            with peer:
                peer.settimeout(timeout)
                fds = array.array("i")
                data, ancillary, _, _ = peer.recvmsg(4096, socket.CMSG_SPACE(fds.itemsize * 4))
        except TimeoutError:
            raise Late(f"no terminal came over {self.path} within {timeout:g} s") from None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        assert len(fds) == 1, f"expected one descriptor over the console socket, got {len(fds)} with {data!r}"
        os.set_inheritable(fds[0], False)
        self.terminal = Terminal(fds[0])
        return self.terminal

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)
        if self.terminal:
            self.terminal.close()
