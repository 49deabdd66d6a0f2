"""One cgroup in all hierarchies."""

from __future__ import annotations

import errno
import os
import select
import time
from contextlib import ExitStack, suppress

from kata.cgroups.paths import Hierarchy, decode, mounted
from kata.errors import HostError, InUse

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:  # without the enumerations that the library wraps it in
    import _signal as signal

#: Controllers of cgroup v2 that engines read statistics from.
_V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma")
#: Child of a v2 cgroup that holds its processes once the cgroup has other children (:mod:`kata.cgroups.oom`).
NESTED = "members"
#: Suffix of the v1 cgroup beside it where its members are for a moment (same place).
ASIDE = ".aside"
_REMOVE_TIMEOUT = 10.0  #: seconds for killed processes to leave


class Cgroup:
    """The cgroup ``path`` (as in /proc/PID/cgroup) of every hierarchy.

    :ivar path: a string that makes the same object again, in any process.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._directories: dict[Hierarchy, str] | None = None

    @property
    def directories(self) -> dict[Hierarchy, str]:
        """Its directory by hierarchy.

        :raise HostError: no cgroup file system is mounted.
        """
        if self._directories is None:
            self._directories = decode(self.path, mounted())
        return self._directories

    def directory(self, controller: str) -> str:
        """The directory with the files of ``controller``; "" if it is in no hierarchy."""
        for hierarchy, directory in self.directories.items():
            if controller in hierarchy.controllers or hierarchy.unified:
                return directory
        return ""

    @property
    def unified(self) -> bool:
        """Whether this is cgroup v2."""
        return any(h.unified for h in self.directories)

    # --- make and remove -------------------------------------------------------------

    def create(self) -> None:
        """Make it in every hierarchy; an empty one that exists is taken.

        On failure nothing of it remains.  Parents that were missing stay, as
        with runc: engines keep them for the next container.

        :raise InUse: it holds processes.
        :raise HostError: the kernel or the rights do not allow it.
        """
        inside = self.procs()
        if inside:
            raise InUse(f"cgroup {self.path!r} already holds processes {_some(inside)}",
                        "another container uses the same linux.cgroupsPath")
        with ExitStack() as undo:
            for hierarchy, directory in self.directories.items():
                self._make(hierarchy, directory, undo)
            undo.pop_all()

    def _make(self, hierarchy: Hierarchy, directory: str, undo: ExitStack) -> None:
        parents = _between(hierarchy.mount, directory)
        for parent, child in zip([hierarchy.mount, *parents], parents, strict=False):
            try:
                if hierarchy.unified:
                    _enable_controllers(parent)
                try:
                    os.mkdir(child, 0o755)
                    if child == directory:
                        undo.callback(_remove_quietly, child)
                except FileExistsError:
                    pass
                if "cpuset" in hierarchy.controllers:
                    _inherit_cpuset(parent, child)
            except OSError as error:
                raise _refused("make", child, error) from error

    def remove(self, *, kill: bool = False, move_to: Cgroup | None = None) -> None:
        """Remove it with the cgroups below it; one that is not there is no error.

        :param kill: end the processes in it first.
        :param move_to: take the processes in it there first: a machine that other containers still use.
        :raise InUse: it holds processes.
        :raise HostError: the kernel refuses, or killed processes do not go.
        """
        if kill:
            self.kill()
        elif move_to is not None:
            for pid in self.procs():
                with suppress(ProcessLookupError):
                    move_to.add(pid)
        for directory in self.directories.values():
            for folder in _tree(directory):
                _remove_one(folder, wait=kill or move_to is not None)  # who could not be moved is ending

    def kill(self) -> None:
        """Kill every process in it and wait until they are gone.

        :raise HostError: they are still there after a while.
        """
        deadline = time.monotonic() + _REMOVE_TIMEOUT
        while pids := self.procs():
            with ExitStack() as close:
                poll = select.poll()
                for pid in pids:
                    try:
                        fd = os.pidfd_open(pid)
                    except ProcessLookupError:
                        continue
                    close.callback(os.close, fd)
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                    poll.register(fd, select.POLLIN)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise HostError(f"processes {_some(pids)} in cgroup {self.path!r} do not end")
                poll.poll(remaining * 1000)

    # --- processes -------------------------------------------------------------------

    def join(self) -> None:
        """Move the calling process into it.

        :raise HostError: the kernel refuses.
        """
        self.add(0)

    def add(self, pid: int) -> None:
        """Move a process into it; 0 is the calling one.

        :raise ProcessLookupError: there is no such process.
        :raise HostError: the kernel refuses.
        """
        for hierarchy, directory in self.directories.items():
            nested = f"{directory}/{NESTED}"
            target = nested if hierarchy.unified and os.path.isdir(nested) else directory
            try:
                write(f"{target}/cgroup.procs", str(pid))
            except ProcessLookupError:
                raise
            except OSError as error:
                raise _refused("put a process into", directory, error) from error

    def procs(self) -> list[int]:
        """Processes in it and below it, in any hierarchy, sorted."""
        found: set[int] = set()
        for directory in self.directories.values():
            for folder in _tree(directory):
                found.update(pids_of(folder))
        return sorted(found)


def write(path: str, text: str) -> None:
    """Write a control file in one system call; errors are the kernel's verdict on ``text``."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(path: str) -> str:
    """A control file, stripped."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def pids_of(directory: str) -> list[int]:
    """Processes directly in a cgroup; none if it is gone."""
    try:
        return [int(line) for line in read(f"{directory}/cgroup.procs").split()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed while it was open
            return []
        if error.errno == errno.EOPNOTSUPP:  # threaded: its processes are listed further up
            return []
        raise


def _between(top: str, directory: str) -> list[str]:
    """Directories from below ``top`` down to ``directory``."""
    found = []
    while directory not in (top, "/", ""):
        found.append(directory)
        directory = os.path.dirname(directory)
    return found[::-1]


def _tree(directory: str) -> list[str]:
    """A cgroup directory and those below and aside of it, innermost first."""
    return [path for top in (directory + ASIDE, directory) for path, _names, _files in os.walk(top, topdown=False)]


def _enable_controllers(directory: str) -> None:
    """Let children of a v2 cgroup have the controllers it has itself, as far as the kernel agrees."""
    path = f"{directory}/cgroup.subtree_control"
    missing = set(read(f"{directory}/cgroup.controllers").split()) - set(read(path).split())
    for controller in _V2_CONTROLLERS:
        if controller in missing:
            try:
                write(path, f"+{controller}")
            except OSError as error:
                # A parent that holds processes, or a controller whose v1 hierarchy is in use: the statistics
                # of this controller are then those of the parent, and nothing else depends on it.
                if error.errno not in (errno.EBUSY, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                    raise


def _inherit_cpuset(parent: str, child: str) -> None:
    """A new v1 cpuset has no processors and no memory nodes and takes no process: give it its parent's."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read(f"{child}/{name}"):
            write(f"{child}/{name}", read(f"{parent}/{name}"))


def _remove_quietly(directory: str) -> None:
    with suppress(OSError):
        os.rmdir(directory)


def _remove_one(directory: str, *, wait: bool) -> None:
    deadline = time.monotonic() + _REMOVE_TIMEOUT
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise _refused("remove", directory, error) from error
            pids = pids_of(directory)
            if pids and not wait:
                raise InUse(f"cgroup {directory} still holds processes {_some(pids)}") from error
            if time.monotonic() > deadline or not _until_empty(directory, deadline):
                raise HostError(f"cannot remove cgroup {directory}: it stays busy") from error


def _until_empty(directory: str, deadline: float) -> bool:
    """Wait for the kernel to take ended processes out of a cgroup; False at the deadline."""
    remaining = max(0.0, deadline - time.monotonic())
    events = f"{directory}/cgroup.events"
    if os.path.exists(events):
        with open(events, encoding="utf-8") as file:
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            return "populated 0" in file.read() or bool(poll.poll(remaining * 1000))
    # cgroup v1 tells nobody.  A process leaves a moment after it can be waited for.
    time.sleep(min(0.001, remaining))
    return remaining > 0


def _refused(what: str, directory: str, error: OSError) -> HostError:
    hint = {
        errno.EROFS: "the cgroup file system is read-only here: mount it read-write",
        errno.EACCES: "run as root, on a cgroup that was delegated to you",
        errno.EPERM: "run as root, on a cgroup that was delegated to you",
        errno.ENOSPC: "its cpuset is empty, or a cgroup limit is reached (cgroup.max.descendants)",
        errno.EAGAIN: "a limit of pids.max above it is reached",
        errno.ENOENT: "a cgroup above it is gone",
    }.get(error.errno or 0, "")
    return HostError(f"cannot {what} cgroup {directory}: {error.strerror}", hint)


def _some(pids: list[int]) -> str:
    return ", ".join(map(str, pids[:5])) + (" ..." if len(pids) > 5 else "")
