"""Control groups, version 2 (cgroups(7), the kernel's cgroup-v2.rst).

Every container has a folder below one parent, which itself is limited so that
containers together cannot starve the agent.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from kata_agent import log
from kata_agent.errors import internal, invalid, precondition
from kata_agent.inotify import Inotify
from kata_agent.linux.light import signal
from kata_agent.loop import Loop, Timer
from kata_agent.resolve import components_ok

_RESERVE = 24 << 20  # bytes of memory that containers never get
_RESERVED_PIDS = 128
_MAX_PIDS_LISTED = 65536


def read(path: str) -> str:
    """Contents of a small file, without the final line end."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().rstrip("\n")


def write(path: str, value: str) -> None:
    """Write ``value`` in one write(2), as cgroup files want it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {value!r})", path) from None
    finally:
        os.close(fd)


def key_values(text: str) -> dict[str, int]:
    """Lines of "key number"; "max" and other words are left out."""
    result = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            result[key] = int(value)
    return result


class Cgroups:
    """The hierarchy, and the parent of all containers.

    :param mount: where cgroup2 is mounted, "" for a guest without it.
    :param parent: name of the parent folder below ``mount``.
    """

    def __init__(self, loop: Loop, inotify: Inotify, mount: str, parent: str) -> None:
        self.loop = loop
        self.inotify = inotify
        self.mount = mount
        self.base = f"{mount}/{parent}" if mount else ""
        self.controllers: frozenset[str] = frozenset()
        self._taken = 0  # bytes that were no container's before the first one

    def setup(self) -> None:
        """Make the parent and hand it every controller."""
        if not self.mount:
            return
        os.makedirs(self.base, 0o755, exist_ok=True)
        delegate(self.mount)
        delegate(self.base)
        total, available = memory()
        self._taken = total - available
        self.controllers = frozenset(read(f"{self.base}/cgroup.subtree_control").split())
        self.guard()

    def guard(self) -> None:
        """Limit all containers together; again after memory was added."""
        if "memory" in self.controllers:
            free = memory()[0] - self._taken
            write(f"{self.base}/memory.max", str(max(free - _RESERVE, free // 2)))
        if "pids" in self.controllers:
            most = min(int(read("/proc/sys/kernel/pid_max")), int(read("/proc/sys/kernel/threads-max")))
            write(f"{self.base}/pids.max", str(max(most - _RESERVED_PIDS, most // 2)))

    def container(self, container_id: str) -> Cgroup:
        """A new cgroup for a container."""
        return Cgroup(self, container_id)


def delegate(folder: str) -> None:
    """Let children of ``folder`` use every controller it has."""
    for name in read(f"{folder}/cgroup.controllers").split():
        try:
            write(f"{folder}/cgroup.subtree_control", f"+{name}")
        except OSError as error:
            log.warning(f"cgroup controller {name}: {error.strerror}")


def memory() -> tuple[int, int]:
    """Memory of the guest: all, and what processes could still get; bytes."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    return found["MemTotal"], found["MemAvailable"]


class Cgroup:
    """The cgroup of one container."""

    def __init__(self, parent: Cgroups, container_id: str) -> None:
        self._parent = parent
        self.path = f"{parent.base}/{container_id}" if parent.base else ""
        self._end_oom_watch: Callable[[], None] | None = None
        self._oom_kills = 0

    @property
    def exists(self) -> bool:
        return bool(self.path)

    def make(self) -> None:
        """Make the folder."""
        if not self.path:
            return
        try:
            os.mkdir(self.path, 0o755)
        except FileExistsError:
            # Left by a container of this name whose removal failed.
            remove_tree(self.path)
            os.mkdir(self.path, 0o755)

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def has(self, name: str) -> bool:
        """Whether the kernel has file ``name`` for this cgroup."""
        return bool(self.path) and os.path.exists(self.file(name))

    def set(self, name: str, value: str, what: str) -> None:
        """Write a control file.

        :raise AgentError: FAILED_PRECONDITION, the controller is missing; INTERNAL, the kernel refuses.
        """
        if not self.has(name):
            raise precondition(f"cannot set {what}: this guest's kernel has no {name}")
        try:
            write(self.file(name), value)
        except OSError as error:
            raise internal(f"cannot set {what}: {name}: {error.strerror}") from None

    # --- processes -----------------------------------------------------------------

    def pids(self) -> list[int]:
        """Every process in it and below, in this agent's pid namespace."""
        found: list[int] = []
        for folder in self._folders():
            try:
                found += [int(pid) for pid in read(f"{folder}/cgroup.procs").split()]
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                    raise
            if len(found) > _MAX_PIDS_LISTED:
                break
        return found

    def _folders(self) -> Iterator[str]:
        if self.path:
            for folder, _names, _files in os.walk(self.path):
                yield folder

    def kill(self) -> None:
        """SIGKILL to everything in it."""
        if self.has("cgroup.kill"):
            write(self.file("cgroup.kill"), "1")
            return
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> int:
        """Send a signal to every process; the number of those that got it."""
        count = 0
        for pid in self.pids():
            try:
                os.kill(pid, signum)
                count += 1
            except ProcessLookupError:
                pass
        return count

    def when_empty(self, seconds: float, done: Callable[[bool], None]) -> None:
        """Call ``done(True)`` as soon as no process is left, ``done(False)`` after ``seconds``."""
        self._when("populated", 0, seconds, done)

    def freeze(self, frozen: bool, seconds: float, done: Callable[[bool], None]) -> None:
        """Freeze or thaw; ``done(True)`` when every process is in that state."""
        self.set("cgroup.freeze", str(int(frozen)), "the frozen state")
        self._when("frozen", int(frozen), seconds, done)

    def _when(self, key: str, value: int, seconds: float, done: Callable[[bool], None]) -> None:
        if not self.path:
            done(True)
            return
        path = self.file("cgroup.events")
        timer: list[Timer] = []
        ends: list[Callable[[], None]] = []

        def check() -> None:
            try:
                reached = key_values(read(path)).get(key) == value
            except FileNotFoundError:
                reached = True
            if reached and ends:
                finish(True)

        def finish(result: bool) -> None:
            for end in ends:
                end()
            ends.clear()
            timer[0].cancel()
            done(result)

        timer.append(self._parent.loop.after(seconds, lambda: finish(False) if ends else None))
        ends.append(self._parent.inotify.watch(path, check))
        check()

    # --- out of memory ---------------------------------------------------------------

    def watch_oom(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the kernel killed a process in it for want of memory."""
        if not self.has("memory.events"):
            return

        def check() -> None:
            if self.oom_kills() > self._oom_kills:
                self._oom_kills = self.oom_kills()
                callback()

        self._end_oom_watch = self._parent.inotify.watch(self.file("memory.events"), check)

    def oom_kills(self) -> int:
        """How many processes were killed for want of memory so far."""
        try:
            return key_values(read(self.file("memory.events"))).get("oom_kill", 0)
        except OSError:
            return self._oom_kills

    # --- end -------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove it with what containers made below it; it must be empty of processes."""
        if self._end_oom_watch is not None:
            self._end_oom_watch()
            self._end_oom_watch = None
        if self.path:
            remove_tree(self.path)


def remove_tree(path: str) -> None:
    """Remove cgroup folders, the deepest first."""
    for folder, _names, _files in os.walk(path, topdown=False):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass


def check_unified(values: dict[str, str]) -> None:
    """Refuse keys that are no names of cgroup files.

    :raise AgentError: INVALID_ARGUMENT.
    """
    for key in values:
        if not components_ok(key) or "." not in key:
            raise invalid(f"unified cgroup key {key!r} is no name of a cgroup file")
