"""Waiting for devices: the kernel's announcements on a netlink socket."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kata_agent import log
from kata_agent.linux.light import socket
from kata_agent.loop import EPOLLIN, Loop, Timer

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL = 1  # multicast group of the kernel's own events
_BUFFER = 1 << 20  # bytes

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")


class Uevents:
    """Runs checks again whenever a device appeared or vanished in this network namespace's view."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._checks: list[Callable[[], bool]] = []
        #: called after memory was plugged in or out
        self.on_memory: Callable[[], None] | None = None
        #: called after a device came that may need a driver
        self.on_device: Callable[[], None] | None = None
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT)
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.bind((0, _KERNEL))
        except OSError as error:
            log.warning(f"no device events: {error.strerror}")
            return
        loop.add(self._socket.fileno(), EPOLLIN, self._readable)

    def wait(self, find: Callable[[], T | None], seconds: float, done: Callable[[T | None], None]) -> None:
        """Call ``done`` with the first result of ``find`` that is not None, or with None after ``seconds``.

        ``find`` is called now and after each event.
        """
        found = find()
        if found is not None:
            done(found)
            return
        timer: list[Timer] = []

        def check() -> bool:
            result = find()
            if result is None:
                return False
            timer[0].cancel()
            done(result)
            return True

        def late() -> None:
            self._checks.remove(check)
            done(None)

        timer.append(self._loop.after(seconds, late))
        self._checks.append(check)

    def _readable(self, _events: int) -> None:
        memory = device = False
        while True:
            try:
                event = self._socket.recv(65536)
                memory = memory or b"SUBSYSTEM=memory\0" in event
                device = device or (event.startswith(b"add@") and b"\0MODALIAS=" in event)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost, so look anyway
                    raise
                memory = device = True
        for happened, callback in ((memory, self.on_memory), (device, self.on_device)):
            if happened and callback is not None:
                self._loop.soon(callback)
        checks, self._checks = self._checks, []
        for index, check in enumerate(checks):
            try:
                if not check():
                    self._checks.append(check)
            except BaseException:
                self._checks += checks[index + 1 :]
                raise


def exists(path: str) -> str | None:
    """``path`` if it is there: a check for :meth:`Uevents.wait`."""
    return path if os.path.exists(path) else None
