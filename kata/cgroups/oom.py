"""Telling an engine that a container ran out of memory.

The guest's kernel kills in the guest; engines watch the host cgroup of the
shim for the host's OOM killer.  So that ``OOMKilled`` and the ``oom`` event are
true, that cgroup gets an OOM of its own, at the cost of a process made for it.

cgroup v2
    Events count upwards: a child cgroup with a tiny ``memory.max`` and one
    process that outgrows it.  Members move into a sibling first, because a
    cgroup that holds processes cannot give its children a memory controller.
    No other process is ever near a limit.
cgroup v1
    Notifications go to the cgroup that reaches its limit, and below it, so the
    container's own cgroup needs one for a moment.  A system call in a cgroup at
    its limit may fail with ENOMEM, and the OOM killer looks for somebody:
    meanwhile its members are in one beside it, and our process is alone.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from contextlib import ExitStack, contextmanager, suppress

from kata.cgroups.group import ASIDE, NESTED, Cgroup, pids_of, read, write
from kata.errors import HostError
from kata.spawn import spawn, stop

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator
else:  # without the enumerations that the library wraps it in
    import _signal as signal

TIMEOUT = 10.0  #: seconds for each step
_SLACK = 4 << 20  #: bytes between use and the momentary limit
_TINY = 24 << 20  #: bytes for the victim's cgroup: an interpreter fits, what it then takes does not
_VICTIM = "oom"

# Memory that cannot be swapped out or reclaimed, taken by page faults: only those count as an OOM.
_PROGRAM = """
import ctypes, mmap, os, sys
if sys.argv[1]:
    try:
        with open(sys.argv[1], "w") as f: f.write("0")
    except OSError: pass
os.write(1, b"r")
if os.read(0, 1) != b"g": raise SystemExit
ctypes.CDLL(None).mlockall(6)
size = int(sys.argv[2])
m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(0, size, 4096): m[i] = 1
os.read(0, 1)
"""


def signal_oom(path: str) -> None:
    """Let the cgroup ``path`` (:attr:`Cgroup.path`) have an OOM event; blocks for some 0.1 s.

    Afterwards everything is as before, and no process but our own was harmed.

    :raise HostError: there is no memory controller, or no event came about.
    """
    cgroup = Cgroup(path)
    directory = cgroup.directory("memory")
    if not directory or not os.path.isdir(directory):
        raise HostError(f"cannot report an OOM: cgroup {path!r} has no memory controller")
    try:
        if cgroup.unified:
            _signal_v2(directory)
        else:
            _signal_v1(directory)
    except OSError as error:
        raise HostError(f"cannot report an OOM in cgroup {directory}: {error.strerror}") from error


def release_limit(path: str) -> None:
    """Take away what a :func:`signal_oom` left that was killed midway; harmless otherwise.

    :raise HostError: the kernel refuses.
    """
    cgroup = Cgroup(path)
    directory = cgroup.directory("memory")
    if not directory:
        return
    try:
        if cgroup.unified:
            for pid in pids_of(f"{directory}/{_VICTIM}"):
                stop(pid, signal.SIGKILL)
        else:
            write(f"{directory}/memory.limit_in_bytes", "-1")
            _bring_back(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot release the memory limit of cgroup {directory}: {error.strerror}") from error


# --- the victim --------------------------------------------------------------------


class _Victim:
    """Our own process in cgroup ``directory`` that will take ``size`` bytes."""

    def __init__(self, directory: str, size: int, force_empty: str = "") -> None:
        with ExitStack() as close:
            ours_in, theirs_out = os.pipe2(os.O_CLOEXEC)
            theirs_in, ours_out = os.pipe2(os.O_CLOEXEC)
            for fd in (ours_in, theirs_out, theirs_in, ours_out):
                close.callback(os.close, fd)
            self._stack = ExitStack()
            argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, force_empty, str(size)]
            self.pid = spawn(argv, stdio=(theirs_in, theirs_out, -1), env={},
                             before_exec=lambda: _become_victim(directory))
            self._stack.callback(self._reap)
            self.pidfd = os.pidfd_open(self.pid)
            self._stack.callback(os.close, self.pidfd)
            self._out, self._in = os.dup(ours_out), os.dup(ours_in)
            self._stack.callback(os.close, self._out)
            self._stack.callback(os.close, self._in)

    def __enter__(self) -> _Victim:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _reap(self) -> None:
        stop(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def ready(self) -> None:
        """Wait until it has started and freed what can be freed."""
        if not _readable(self._in) or os.read(self._in, 1) != b"r":
            raise HostError("cannot report an OOM: the helper process did not start")

    def go(self) -> None:
        """Let it take its memory."""
        os.write(self._out, b"g")

    def ended(self) -> bool:
        """Wait for its end; False when it does not end."""
        return _readable(self.pidfd)


def _become_victim(directory: str) -> None:
    write("/proc/self/oom_score_adj", "1000")
    write(f"{directory}/cgroup.procs", "0")
    from kata_agent.linux import syscalls  # late: whoever makes or removes a cgroup pays for this module

    syscalls.set_pdeathsig(signal.SIGKILL)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(TIMEOUT * 1000))


# --- cgroup v1 -----------------------------------------------------------------------


def _signal_v1(directory: str) -> None:
    with ExitStack() as undo:
        seen = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        undo.callback(os.close, seen)
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, control)
        # The engine's registration is the same call with its own eventfd.
        write(f"{directory}/cgroup.event_control", f"{seen} {control}")
        undo.enter_context(_set_aside(directory))
        victim = undo.enter_context(_Victim(directory, 4 * _SLACK, f"{directory}/memory.force_empty"))
        undo.enter_context(_kept(directory, "memory.swappiness", "0"))
        victim.ready()
        undo.enter_context(_limit(directory))
        victim.go()
        if not _readable(seen) or not victim.ended():
            raise HostError(f"cannot report an OOM: cgroup {directory} did not reach its limit")


@contextmanager
def _set_aside(directory: str) -> Iterator[None]:
    """The members of a cgroup stay beside it for a while."""
    aside = directory + ASIDE
    with suppress(FileExistsError):
        os.mkdir(aside, 0o755)
    try:
        _move_members(directory, aside)
        yield
    finally:
        _bring_back(directory)


def _bring_back(directory: str) -> None:
    _move_members(directory + ASIDE, directory)
    with suppress(FileNotFoundError):
        os.rmdir(directory + ASIDE)


def _move_members(source: str, target: str) -> None:
    while pids := pids_of(source):  # again for children that were made meanwhile
        for pid in pids:
            with suppress(ProcessLookupError):
                write(f"{target}/cgroup.procs", str(pid))


@contextmanager
def _kept(directory: str, name: str, value: str) -> Iterator[None]:
    """A control file set for a while; one that does not exist or cannot be set is left."""
    path = f"{directory}/{name}"
    try:
        before = read(path)
        write(path, value)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        write(path, before)


@contextmanager
def _limit(directory: str) -> Iterator[None]:
    path = f"{directory}/memory.limit_in_bytes"
    before = read(path)
    for attempt in range(5):
        try:
            write(path, str(int(read(f"{directory}/memory.usage_in_bytes")) + _SLACK))
            break
        except OSError as error:
            # EBUSY: what is in use grew past the limit before it was set.
            if error.errno != errno.EBUSY or attempt == 4:
                raise
    try:
        yield
    finally:
        write(path, before)


# --- cgroup v2 -----------------------------------------------------------------------


def _signal_v2(directory: str) -> None:
    _make_room(directory)
    child = f"{directory}/{_VICTIM}"
    before = _kills(directory)
    with ExitStack() as undo:
        with suppress(FileExistsError):
            os.mkdir(child, 0o755)
        undo.callback(_rmdir, child)
        write(f"{child}/memory.max", str(_TINY))
        with suppress(FileNotFoundError):  # no swap accounting, or no swap
            write(f"{child}/memory.swap.max", "0")
        with _Victim(child, 2 * _TINY) as victim:
            victim.ready()
            victim.go()
            if not victim.ended() or _kills(directory) == before:
                raise HostError(f"cannot report an OOM: nothing was killed in cgroup {child}")


def _make_room(directory: str) -> None:
    """Move the members of a cgroup one level down, and give its children the memory controller."""
    path = f"{directory}/cgroup.subtree_control"
    if "memory" in read(path).split():
        return
    if "memory" not in read(f"{directory}/cgroup.controllers").split():
        raise HostError(f"cannot report an OOM: cgroup {directory} has no memory controller",
                        "cgroup.subtree_control of the cgroups above has to hold memory")
    nested = f"{directory}/{NESTED}"
    with suppress(FileExistsError):
        os.mkdir(nested, 0o755)
    _move_members(directory, nested)
    write(path, "+memory")


def _kills(directory: str) -> int:
    events = dict(line.split() for line in read(f"{directory}/memory.events").splitlines())
    return int(events.get("oom_kill", 0))


def _rmdir(directory: str) -> None:
    with suppress(OSError):
        os.rmdir(directory)
