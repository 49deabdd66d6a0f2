"""The first process of a pid namespace that all containers of the sandbox share."""

from __future__ import annotations

import os

from kata_agent.launch import PerProcess, set_oom_score
from kata_agent.linux import syscalls as sc
from kata_agent.linux.light import signal
from kata_agent.loop import Loop

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import NoReturn

_OOM_SCORE_ADJ = -998  # what Kubernetes gives to its pause process


class SharedPidNamespace:
    """Made when the first container wants it; made anew when its first process was killed."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pidfd = -1

    def pidfd(self) -> int:
        """A descriptor of its first process.

        :raise OSError: it cannot be made.
        """
        if self._pidfd >= 0:
            return self._pidfd
        per_process = PerProcess()
        per_process.new = sc.CLONE_NEWPID
        own = per_process.enter()
        try:
            pid = sc.fork()
            if pid == 0:
                _reap_forever()
        finally:
            per_process.leave(own)
        self._pidfd = os.pidfd_open(pid)
        set_oom_score(pid, _OOM_SCORE_ADJ)
        self._loop.on_exit(pid, self._ended)
        return self._pidfd

    def close(self) -> None:
        """End it, and with it every process in the namespace."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self, _status: int) -> None:
        os.close(self._pidfd)
        self._pidfd = -1


def _reap_forever() -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        os.closerange(0, 1 << 20)
        sc.set_name("pause")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while True:
            signal.sigwait({signal.SIGCHLD})
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
    finally:
        os._exit(1)
