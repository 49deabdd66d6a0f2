"""One process of a container: its streams, its end, and who waits for that."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from kata_agent import console
from kata_agent.child import ChildPlan
from kata_agent.errors import AgentError, precondition
from kata_agent.identity import ProcessPlan
from kata_agent.launch import Launch, PerProcess
from kata_agent.loop import Loop
from kata_agent.streams import InStream, OutStream

_CREATING, _READY, _RUNNING, _EXITED = range(4)


class Process:
    """A process from before its fork until it is released.

    :param pipe_size: capacity of its pipes in bytes, 0 = the kernel's default.
    """

    def __init__(self, loop: Loop, exec_id: str, plan: ProcessPlan, pipe_size: int) -> None:
        self._loop = loop
        self._pipe_size = pipe_size
        self._phase = _CREATING
        self._waiters: list[Callable[[], None]] = []
        self._master = -1  # of its terminal, for its size
        self._size: tuple[int, int] | None = None
        self.exec_id = exec_id
        self.plan = plan
        self.launch: Launch | None = None
        self.stdin = InStream(loop, plan.terminal)
        self.stdout = OutStream(loop)
        self.stderr = OutStream(loop)
        self.status = 0  #: 0-255, once :attr:`exited`
        self.exited_at = 0  #: CLOCK_REALTIME, nanoseconds
        self.oom_killed = False
        self.was_running = False  #: its program was executed
        self.wait_asked = False  #: a Kata 1.x client has got the status; it never releases a process
        if plan.terminal:
            self.stderr.eof = True

    # --- what it is doing ------------------------------------------------------------

    @property
    def pid(self) -> int:
        """In the agent's pid namespace; 0 before it was forked."""
        return self.launch.pid if self.launch is not None else 0

    @property
    def exited(self) -> bool:
        return self._phase == _EXITED

    @property
    def ready(self) -> bool:
        """It waits for :meth:`go`."""
        return self._phase == _READY

    @property
    def running(self) -> bool:
        return self._phase == _RUNNING

    # --- life ------------------------------------------------------------------------

    def fork(
        self,
        plan: ChildPlan,
        per_process: PerProcess,
        id_maps: tuple[str, str],
        *,
        oom_score_adj: int,
        on_ready: Callable[[], None],
        on_done: Callable[[AgentError | None], None],
        on_exit: Callable[[], None],
    ) -> None:
        """Fork it.

        :param on_ready: it is prepared and waits for :meth:`go`.
        :param on_done: it has executed its program (None), or could not.
        :param on_exit: it has ended; comes before those who wait for that.
        :raise OSError: there is no child.
        """
        theirs: list[int] = []
        ours: list[int] = []
        try:
            if not plan.process.terminal:
                for number in range(3):
                    receive, send = self._pipe()
                    theirs.append(send if number else receive)
                    ours.append(receive if number else send)
                plan.stdio = (theirs[0], theirs[1], theirs[2])

            def ready() -> None:
                self._phase = _READY
                on_ready()

            def done(error: AgentError | None) -> None:
                if error is None:
                    self._phase = _RUNNING
                    self.was_running = True
                on_done(error)

            def exited(status: int) -> None:
                self._end(status)
                on_exit()
                self._tell()

            self.launch = Launch(
                self._loop, plan, per_process, id_maps, on_ready=ready, on_done=done, on_exit=exited,
                on_terminal=self._take_terminal, oom_score_adj=oom_score_adj,
            )
        except BaseException:
            for fd in ours:
                os.close(fd)
            self.stdin.close()
            self.stdout.close()
            self.stderr.close()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        if ours:
            self.stdin.open(ours[0])
            self.stdout.open(ours[1])
            self.stderr.open(ours[2])

    def _pipe(self) -> tuple[int, int]:
        import fcntl

        receive, send = os.pipe()
        if self._pipe_size:
            fcntl.fcntl(send, fcntl.F_SETPIPE_SZ, self._pipe_size)
        return receive, send

    def _take_terminal(self, master: int) -> None:
        os.set_inheritable(master, False)
        self._master = master
        if self._size is not None:
            console.resize(master, *self._size)
        self.stdout.open(os.dup(master))
        self.stdin.open(os.dup(master))

    def go(self) -> None:
        """Let a prepared process execute its program."""
        assert self.launch is not None
        self._phase = _CREATING
        self.launch.go()

    def end_unforked(self, status: int, on_exit: Callable[[], None]) -> None:
        """It ends before it was forked.

        :param on_exit: as for :meth:`fork`.
        """
        self.stdout.close()
        self.stderr.close()
        self._end(status)
        on_exit()
        self._tell()

    def kill(self) -> None:
        """End it at once, in whatever phase it is."""
        if self.launch is not None and not self.exited:
            self.launch.kill()

    def _end(self, status: int) -> None:
        self._phase = _EXITED
        self.status = status
        self.exited_at = time.time_ns()
        self.stdin.broken = True
        self.stdin.close()

    def _tell(self) -> None:
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            waiter()

    def when_exited(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` as soon as it has ended."""
        if self.exited:
            callback()
        else:
            self._waiters.append(callback)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal.

        :raise AgentError: FAILED_PRECONDITION, it has none.
        """
        if not self.plan.terminal:
            raise precondition("the process has no terminal")
        self._size = (rows, columns)
        if self._master >= 0:
            console.resize(self._master, rows, columns)

    def release(self) -> None:
        """Close what it holds; its streams end."""
        self.stdin.close()
        self.stdout.close()
        self.stderr.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
