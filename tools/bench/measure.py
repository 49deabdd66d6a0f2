"""Run commands and take the time: one at a time, or many at once.

The benchmark is the reaper of all that it starts (``PR_SET_CHILD_SUBREAPER``),
as an engine is of its containers; whatever ends meanwhile is reaped along.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kata_agent.linux import syscalls

DEADLINE = 120.0  #: seconds for a command to end


class Failed(Exception):
    """A command failed or did not end in time; the text has its words and its errors."""


class Timing(NamedTuple):
    """How a command ended."""

    seconds: float  #: from before it was started until it was reaped
    cpu: float  #: seconds of processor of it and of what it reaped
    began: float  #: time.monotonic()


def become_reaper() -> None:
    syscalls.set_child_subreaper()


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """:raise Failed: the block did not end in time."""

    def late(_number: int, _frame: object) -> None:
        raise Failed(f"{what} did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def together(
    commands: Sequence[Sequence[str]],
    env: Mapping[str, str] | None = None,
    timeout: float = DEADLINE,
    stdin: int | None = None,
    stdout: int | None = None,
) -> list[Timing]:
    """Start all commands at once and wait for all.

    :param stdin: a descriptor instead of /dev/null; likewise ``stdout``.
    :raise Failed: one ended with another code than 0, or the time is over.
    """
    what = " ".join(commands[0]) + (f" (and {len(commands) - 1} like it)" if len(commands) > 1 else "")
    environ = {**os.environ, "LANG": "C.UTF-8", **(env or {})}
    pids: dict[int, int] = {}
    began: list[float] = []
    ended: dict[int, Timing] = {}
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    errors = os.memfd_create("errors", os.MFD_CLOEXEC)
    actions = [
        (os.POSIX_SPAWN_DUP2, null if stdin is None else stdin, 0),
        (os.POSIX_SPAWN_DUP2, null if stdout is None else stdout, 1),
        (os.POSIX_SPAWN_DUP2, errors, 2),
    ]
    try:
        for number, argv in enumerate(commands):
            began.append(time.monotonic())
            pids[os.posix_spawnp(argv[0], list(argv), environ, file_actions=actions, setsid=True)] = number
        with deadline(timeout, what):
            while len(ended) < len(pids):
                pid, status, usage = os.wait4(-1, 0)
                now = time.monotonic()
                if pid not in pids:
                    continue
                if status:
                    said = os.pread(errors, 4000, 0).decode(errors="replace").strip() or "it said nothing"
                    raise Failed(f"{what} ended with code {os.waitstatus_to_exitcode(status)}: {said}")
                number = pids[pid]
                ended[number] = Timing(now - began[number], usage.ru_utime + usage.ru_stime, began[number])
    except FileNotFoundError as e:
        raise Failed(f"{commands[0][0]} is not installed") from e
    finally:
        os.close(null)
        os.close(errors)
    return [ended[number] for number in range(len(commands))]


def timed(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout: float = DEADLINE,
    stdin: int | None = None,
    stdout: int | None = None,
) -> Timing:
    """One command, to its end; see :func:`together`."""
    return together([argv], env, timeout, stdin, stdout)[0]


def output(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = DEADLINE) -> str:
    """What a command printed."""
    with os.fdopen(os.memfd_create("output", os.MFD_CLOEXEC), "r", errors="replace") as file:
        timed(argv, env, timeout, stdout=file.fileno())
        file.seek(0)
        return file.read()


def drain() -> None:
    """Reap what has ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def await_end(pid: int, what: str, timeout: float = DEADLINE) -> None:
    """Wait for the end of a process that is or is not a child.

    :raise Failed: it goes on.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([fd], [], [], timeout)[0]:
            raise Failed(f"{what} (pid {pid}) did not end within {timeout:g} s")
    finally:
        os.close(fd)
    drain()


def children(pid: int | str = "self") -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def descendants(pid: int | str = "self") -> list[int]:
    """All processes below one, parents first."""
    found, queue = [], children(pid)
    while queue:
        found += queue
        queue = [c for p in queue for c in children(p)]
    return found


def settle(keep: Sequence[int] = (), timeout: float = 60.0) -> float:
    """Wait until no child but ``keep`` is left; return the processor seconds of those that ended.

    :raise Failed: some go on.
    """
    cpu = 0.0
    with deadline(timeout, "what a container left running"):
        while set(children()) - set(keep):
            _pid, _status, usage = os.wait4(-1, 0)
            cpu += usage.ru_utime + usage.ru_stime
    return cpu


def load() -> float:
    return os.getloadavg()[0]
