"""Changes of files, for cgroup files that the kernel notifies about."""

from __future__ import annotations

import os
from collections.abc import Callable

from kata_agent.linux import syscalls as sc
from kata_agent.loop import EPOLLIN, Loop


class Inotify:
    """Calls back when a watched file was modified."""

    def __init__(self, loop: Loop) -> None:
        self._fd = sc.inotify_init()
        self._callbacks: dict[int, list[Callable[[], None]]] = {}
        loop.add(self._fd, EPOLLIN, self._readable)

    def watch(self, path: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each change of ``path``; the result ends that."""
        # The kernel gives one number per file, however often it is watched.
        number = sc.inotify_add_watch(self._fd, path, sc.IN_MODIFY)
        self._callbacks.setdefault(number, []).append(callback)

        def end() -> None:
            callbacks = self._callbacks.get(number)
            if callbacks is None or callback not in callbacks:
                return
            callbacks.remove(callback)
            if not callbacks:
                del self._callbacks[number]
                try:
                    sc.inotify_rm_watch(self._fd, number)
                except OSError:
                    pass  # the file is gone, and its watch with it

        return end

    def _readable(self, _events: int) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        for number in dict.fromkeys(watch for watch, _mask, _name in sc.inotify_events(data)):
            for callback in list(self._callbacks.get(number, ())):
                callback()
