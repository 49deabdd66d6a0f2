"""The agent's event loop: file descriptors, timers, ends of child processes.

One thread, so that os.fork() is safe anywhere.  A callback that raises is
logged and the loop goes on: PID 1 must not end.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT

from kata_agent import log
from kata_agent.linux.light import deque, signal

__all__ = ["EPOLLERR", "EPOLLET", "EPOLLHUP", "EPOLLIN", "EPOLLOUT", "Loop", "Timer"]

_MAX_UNCLAIMED = 256


class Timer:
    """A callback at a time; see :meth:`Loop.after`."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call; harmless when it has been called."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """epoll, a heap of timers, and SIGCHLD."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._children: dict[int, Callable[[int], None]] = {}
        self._unclaimed: dict[int, int] = {}
        self._running = False

    # --- descriptors ---------------------------------------------------------------

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` when ``fd`` is ready; level-triggered unless EPOLLET is given."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``; harmless when it is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        return fd in self._callbacks

    # --- time ----------------------------------------------------------------------

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` before the loop waits again."""
        self._soon.append(callback)

    # --- children ------------------------------------------------------------------

    def catch_children(self) -> None:
        """Reap every child from now on."""
        receive, send = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.siginterrupt(signal.SIGCHLD, False)
        signal.set_wakeup_fd(send, warn_on_full_buffer=False)

        def drain(_events: int) -> None:
            os.read(receive, 4096)
            self.reap()

        self.add(receive, EPOLLIN, drain)

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(status)`` when child ``pid`` has ended: 0-255, or 128 + n for signal n."""
        if pid in self._unclaimed:
            status = self._unclaimed.pop(pid)
            self.soon(lambda: callback(status))
        else:
            self._children[pid] = callback

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            status = os.WEXITSTATUS(raw) if os.WIFEXITED(raw) else 128 + os.WTERMSIG(raw)
            callback = self._children.pop(pid, None)
            if callback is not None:
                self._guard(lambda callback=callback, status=status: callback(status))  # type: ignore[misc]
                continue
            # Orphans of containers end here; a child whose parent has not named it yet, too.
            self._unclaimed[pid] = status
            if len(self._unclaimed) > _MAX_UNCLAIMED:
                del self._unclaimed[next(iter(self._unclaimed))]

    # --- running -------------------------------------------------------------------

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._running = True
        while self._running:
            self._run_soon()
            timeout = self._run_timers()
            if self._soon:
                continue
            for fd, events in self._epoll.poll(timeout, 64):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    self._guard(lambda callback=callback, events=events: callback(events))  # type: ignore[misc]

    def _run_soon(self) -> None:
        for _ in range(len(self._soon)):
            self._guard(self._soon.popleft())

    def _run_timers(self) -> float | None:
        """Call what is due; seconds until the next timer, None = no timer."""
        while self._timers:
            first = self._timers[0]
            if first.callback is None:
                heapq.heappop(self._timers)
                continue
            left = first.when - time.monotonic()
            if left > 0:
                return left
            heapq.heappop(self._timers)
            self._guard(first.callback)
        return None

    @staticmethod
    def _guard(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            log.exception("a callback failed", error)


def _ignore(_signum: int, _frame: object) -> None:
    """A handler, so that the signal wakes the loop."""
