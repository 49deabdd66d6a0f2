"""Forking a process, and following it until it has executed its program."""

from __future__ import annotations

import os
from collections.abc import Callable

from kata_agent import child, log
from kata_agent.child import ChildPlan
from kata_agent.errors import AgentError
from kata_agent.linux import syscalls as sc
from kata_agent.linux.light import signal, socket
from kata_agent.loop import EPOLLIN, Loop, Timer
from kata_agent.protocol import codes

_PER_PROCESS = sc.CLONE_NEWPID | sc.CLONE_NEWTIME  # what unshare(2) and setns(2) give to children only
_SETUP_TIMEOUT = 60.0  # seconds until a child must have prepared itself, or executed its program

#: Stages whose failure is the request's fault.
_CALLER = frozenset({"exec", "user", "cwd", "rlimit", "sysctl", "identity"})


class PerProcess:
    """Namespaces that a forked child shall be in: a new pid or time namespace, or another's."""

    __slots__ = ("join", "new", "time_offsets")

    def __init__(self) -> None:
        self.new = 0
        self.join: list[tuple[int, int]] = []  # (descriptor, CLONE_NEW*)
        self.time_offsets = ""

    def enter(self) -> list[tuple[int, int]]:
        """Change what this process's next child gets; the result is for :meth:`leave`."""
        own: list[tuple[int, int]] = []
        wanted = self.new
        for _fd, kind in self.join:
            wanted |= kind
        for flag, name in ((sc.CLONE_NEWPID, "pid"), (sc.CLONE_NEWTIME, "time")):
            if wanted & flag:
                own.append((os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), flag))
        try:
            for fd, kind in self.join:
                sc.setns(fd, kind)
            if self.new:
                sc.unshare(self.new)
            if self.time_offsets:
                with open("/proc/self/timens_offsets", "w", encoding="ascii") as file:
                    file.write(self.time_offsets)
        except BaseException:
            self.leave(own)
            raise
        return own

    @staticmethod
    def leave(own: list[tuple[int, int]]) -> None:
        """Undo :meth:`enter`."""
        for fd, flag in own:
            try:
                sc.setns(fd, flag)
            finally:
                os.close(fd)


class Launch:
    """One child on its way to execve.

    :param plan: what the child does.
    :param per_process: see :class:`PerProcess`.
    :param id_maps: uid and gid map of a new user namespace.
    :param on_ready: it waits for :meth:`go` (only if ``plan.wait``).
    :param on_done: called once: with None after its execve, else with why it failed.
    :param on_terminal: called with the master of its terminal.
    """

    def __init__(
        self,
        loop: Loop,
        plan: ChildPlan,
        per_process: PerProcess,
        id_maps: tuple[str, str],
        *,
        on_ready: Callable[[], None],
        on_done: Callable[[AgentError | None], None],
        on_exit: Callable[[int], None],
        on_terminal: Callable[[int], None],
        oom_score_adj: int,
    ) -> None:
        self._loop = loop
        self._id_maps = id_maps
        self._on_ready = on_ready
        self._on_done = on_done
        self._on_exit = on_exit
        self._on_terminal = on_terminal
        self._execing = False
        self._ended = False
        self.pid = 0
        self._sync, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plan.keep_only(theirs.fileno())
        try:
            own = per_process.enter()
            try:
                self.pid = sc.fork()
                if self.pid == 0:
                    child.main(plan, theirs)
            finally:
                per_process.leave(own)
        except BaseException:
            self._sync.close()
            raise
        finally:
            theirs.close()
        self._sync.setblocking(False)
        set_oom_score(self.pid, oom_score_adj)
        loop.add(self._sync.fileno(), EPOLLIN, self._readable)
        self._watch(self.pid)
        self._timer: Timer | None = loop.after(_SETUP_TIMEOUT, self._too_slow)

    def go(self) -> None:
        """Let a waiting child execute its program."""
        self._timer = self._loop.after(_SETUP_TIMEOUT, self._too_slow)
        self._answer()

    def kill(self) -> None:
        """End the child, whatever it does."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    # --- messages --------------------------------------------------------------------

    def _readable(self, _events: int) -> None:
        data, fds, _flags, _address = socket.recv_fds(self._sync, 65536, 1)
        kind = data[:1]
        if kind == child.TERMINAL and fds:
            self._on_terminal(fds[0])
        elif kind == child.NEED_MAPS:
            self._write_maps()
        elif kind == child.PID:
            self.pid = int(data[1:])
            self._watch(self.pid)
        elif kind == child.READY:
            self._stop_timer()
            self._on_ready()
        elif kind == child.EXEC:
            self._execing = True
        elif kind == child.ERROR:
            self._fail(data)
        elif not data:
            self._end_of_talk()

    def _write_maps(self) -> None:
        try:
            for name, text in zip(("uid_map", "gid_map"), self._id_maps, strict=True):
                with open(f"/proc/{self.pid}/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        except OSError as error:
            self._finish(AgentError(codes.INVALID_ARGUMENT, f"cannot map user ids: {error.strerror}"))
            self.kill()
            return
        self._answer()

    def _answer(self) -> None:
        try:
            self._sync.send(child.GO)
        except OSError:
            pass  # it is dead: the end of the socket says so

    def _fail(self, data: bytes) -> None:
        stage, _, rest = data[1:].partition(b"\0")
        _number, _, text = rest.partition(b"\0")
        code = codes.INVALID_ARGUMENT if stage.decode() in _CALLER else codes.INTERNAL
        self._finish(AgentError(code, text.decode(errors="replace")))

    def _end_of_talk(self) -> None:
        if self._execing:
            self._finish(None)
        else:
            self._finish(AgentError(codes.INTERNAL, "the process was ended while it was being set up"))

    def _too_slow(self) -> None:
        self._finish(AgentError(codes.DEADLINE_EXCEEDED, f"the process was not set up within {_SETUP_TIMEOUT:g} s"))
        self.kill()

    def _finish(self, error: AgentError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._stop_timer()
        self._loop.remove(self._sync.fileno())
        self._sync.close()
        self._on_done(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, pid: int) -> None:
        self._loop.on_exit(pid, lambda status: self._exited(pid, status))

    def _exited(self, pid: int, status: int) -> None:
        # What it said before its end is still in the socket, and comes first.
        try:
            while not self._ended and pid == self.pid:
                self._readable(0)
        except BlockingIOError:
            pass
        if pid != self.pid:
            return  # it only made way for another
        if not self._ended:
            self._end_of_talk()
        self._on_exit(status)


def set_oom_score(pid: int, value: int) -> None:
    """Set the badness of a process; children inherit the agent's own -1000, which no container may keep."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(value))
    except OSError as error:
        log.warning(f"oom_score_adj {value} of process {pid}: {error.strerror}")
