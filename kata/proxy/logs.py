"""Keep the logs of a sandbox small, whatever its guest writes.

The guest's console, what QEMU says and the proxy's own log are files that
others append to, so they survive a restart of the proxy.  When one has grown
beyond LIMIT its end is kept beside it as ``NAME.1`` and it starts anew.
"""

from __future__ import annotations

import asyncio
import os

from kata.proxy.log import log
from kata_agent.linux import syscalls

LIMIT = 1 << 20  #: bytes
KEPT = 256 << 10  #: bytes of its end that stay readable
NAMES = ("console.log", "qemu.log", "proxy.log")
#: A guest that floods its console does not get a look for each byte, seconds.
REST = 0.5

_IN_MODIFY = 0x2


class BoundedLogs:
    """Watches the logs in a sandbox's directory from now on."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._loop = asyncio.get_running_loop()
        self._inotify = syscalls.inotify_init()
        self._rest: asyncio.TimerHandle | None = None
        for name in NAMES:
            try:
                syscalls.inotify_add_watch(self._inotify, f"{directory}/{name}", _IN_MODIFY)
            except FileNotFoundError:
                log(f"{name} is not there and not watched")
        self._look()

    def _look(self) -> None:
        """Bound what is too long now, then wait for the next write."""
        for name in NAMES:
            try:
                bound(f"{self.directory}/{name}")
            except OSError as e:
                log(f"cannot shorten {name}: {e.strerror}")
        self._rest = None
        self._loop.add_reader(self._inotify, self._modified)

    def _modified(self) -> None:
        self._loop.remove_reader(self._inotify)
        try:
            while os.read(self._inotify, 1 << 16):
                pass
        except BlockingIOError:
            pass
        self._rest = self._loop.call_later(REST, self._look)

    def close(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        else:
            self._loop.remove_reader(self._inotify)
        os.close(self._inotify)


def bound(path: str) -> None:
    """Shorten a log whose writers append, if it is too long.  A line written meanwhile may be lost."""
    with open(path, "r+b") as f:
        size = f.seek(0, os.SEEK_END)
        if size <= LIMIT:
            return
        f.seek(size - KEPT)
        end = f.read(KEPT)
        f.truncate(0)
    fd = os.open(f"{path}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as kept:
        kept.write(end)
