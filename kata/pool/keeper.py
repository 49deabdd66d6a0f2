"""Keeps the pool filled: one process per pool, ``kata factory run``.

It makes machines one at a time and at low priority, when no sandbox is being
started, and ends those that died, serve no plan any more, or are too many.
What it knows is in the pool's directory, so it can be killed and started again
at any time: machines that are whole stay, what is half made is removed.

It waits for events only: the pool's directory by inotify (a claim takes a
machine out of it), the machines' proxies by pidfd.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from kata import pool, state, template
from kata.contract import ContainerPlan, SandboxPlan
from kata.daemons import start_factory, start_proxy
from kata.errors import HostError, InUse, KataError
from kata.log import Log
from kata.network import netns
from kata.oci import Bundle
from kata.planjson import to_json
from kata.spawn import reap
from kata.teardown import destroy_sandbox
from kata.wire import Client
from kata_agent.linux import syscalls

NICE = 10  #: of a machine that is being made
READY_MARGIN = 60.0  #: beyond the boot timeout, for the rest of a machine's making, seconds
RETRY = 30.0  #: seconds until the next try after one that failed
RESERVE = 10  #: percent of the host's memory that the pool leaves free
SOCKET_PATH_MAX = 107  #: bytes of a unix socket's path, unix(7)
_FLOCK = "hhqqi4x"  #: struct flock

#: Executes a program with a linker and a library that lie in a share, as a container's own do: the guest's C library,
#: which prints its name.
_FROM_SHARE = ("cd /guest; for f in lib64/ld-* lib/ld-* lib/*/libc.so.6; do mkdir -p /${f%/*}; cp $f /$f; done; "
               "/lib/*/libc.so.6 >/dev/null")

#: What the warm-up runs: the shape of any engine's container, its programs those of the guest.
WARM_UP = {
    "ociVersion": "1.0.2",
    "process": {"args": ["/bin/busybox", "sh", "-c", f"read x; case $x in share) {_FROM_SHARE};; esac; echo warm"],
                "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": True,
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
                "capabilities": {kind: ["CAP_KILL", "CAP_CHOWN"] for kind in ("bounding", "effective", "permitted")}},
    "root": {"path": "rootfs"},
    "hostname": "warm",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
    },
}


class Wanted(NamedTuple):
    """What the configuration asks for now."""

    plan: SandboxPlan
    warm_up: ContainerPlan
    size: int


def warm_up_bundle() -> Bundle:
    """The container that makes a machine warm."""
    return Bundle("warm-up", "/", dict(WARM_UP), "/", ())


def keeper_of(path: str) -> int:
    """The keeper's pid, 0 if none is at work on the pool at ``path``: by the kernel, which knows who holds the lock."""
    try:
        fd = os.open(f"{path}/{pool.LOCK}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _whence, _start, _length, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return 0 if kind == fcntl.F_UNLCK else pid


@contextmanager
def kept(path: str) -> Iterator[None]:
    """Be the one keeper of the pool at ``path``.

    :raise InUse: there is another one.
    :raise HostError: no machine could live there.
    """
    longest = f"{path}/{pool.MAKING}{'0' * 30}/channel.sock"
    if len(os.fsencode(longest)) > SOCKET_PATH_MAX:
        raise HostError(f"the path of the pool is too long for sockets: {path}", "shorten vm_cache_endpoint")
    try:
        for folder in (state.RUN_DIR, path):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        lock = os.open(f"{path}/{pool.LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise HostError(f"cannot make the pool {path}: {e.strerror}", state.full_disk(e)) from e
    try:
        if os.stat(path).st_dev != os.stat(state.RUN_DIR).st_dev:
            raise HostError(f"the pool {path} is on another file system than {state.RUN_DIR}",
                            "machines are claimed by a rename: set vm_cache_endpoint accordingly")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"the pool {path} has a keeper already (pid {keeper_of(path)})") from None
        yield
    finally:
        os.close(lock)


def end_machine(machine: str) -> None:
    """End a machine of the pool, unless somebody claims it first.

    :raise HostError: it could not be ended.
    """
    folder, name = os.path.split(machine)
    aside = machine
    if not name.startswith("."):
        aside = f"{folder}/{pool.ENDING}{name}"
        try:
            os.rename(machine, aside)
        except FileNotFoundError:
            return
    destroy_sandbox(aside)


def lives(machine: str) -> bool:
    """Whether a machine can be claimed."""
    return bool(_proxy(machine))


def _proxy(machine: str) -> int:
    """Pid of its proxy, 0 when it or QEMU is gone."""
    try:
        record = state.read_json(f"{machine}/sandbox.json")
        proxy, qemu = record["proxy"], record["qemu"]
    except (OSError, KeyError, KataError):
        return 0
    alive = state.alive(proxy["pid"], proxy["start"]) and state.alive(qemu["pid"], qemu["start"])
    return int(proxy["pid"]) if alive else 0


class Keeper:
    """One run of the service; :meth:`run` in a process of its own."""

    def __init__(self, path: str, wanted: Callable[[], Wanted], log: Log) -> None:
        """:param wanted: reads the configuration; called anew whenever something has happened."""
        self.path = path
        self.log = log
        self._read = wanted
        self._wanted: Wanted | None = None
        self._numbers = itertools.count()
        self._pidfds: dict[int, tuple[int, int]] = {}  #: pid of a proxy -> its start time, pidfd

    def run(self) -> None:
        """Keep the pool until the process is told to end; then machines stay as they are.

        :raise InUse: another process is at it.
        """
        with kept(self.path), ExitStack() as close:
            events = syscalls.inotify_init()
            close.callback(os.close, events)
            os.close(os.open(f"{self.path}/{pool.WANTED}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            syscalls.inotify_add_watch(
                events, self.path, syscalls.IN_MOVED_FROM | syscalls.IN_DELETE | syscalls.IN_CLOSE_WRITE)
            for machine in pool.half_made(self.path):  # of a keeper that was killed
                self._end(machine, "it was not whole")
            while True:
                self._wait(events, self._settle())

    # --- one round ------------------------------------------------------------------------

    def _settle(self) -> float | None:
        """Bring the pool nearer to what is wanted, by one machine at most: meanwhile something else may be.

        :return: seconds after which to go on at the latest; None: it is as it should be.
        :raise HostError: the pool's folder was removed.
        """
        pool.await_starts()
        if not os.path.isdir(self.path):
            raise HostError(f"the pool {self.path} was removed", "start its keeper again")
        try:
            self._wanted = self._read()
        except KataError as e:
            self.log.error(f"the pool stays as it was configured: {e}")
        wanted = self._wanted
        if wanted is None:
            return None  # until somebody misses a machine
        key = pool.key(wanted.plan)
        whole: list[str] = []
        for machine in pool.machines(self.path):
            if not lives(machine):
                self._end(machine, "it died")
            elif pool.key_of(machine) != key:
                self._end(machine, "it serves no sandbox of this configuration any more")
            elif len(whole) >= wanted.size:
                self._end(machine, f"{wanted.size} are wanted")
            else:
                whole.append(machine)
        if len(whole) >= wanted.size:
            return None
        if not self._room():
            return RETRY
        try:
            self._make(wanted, key)
        except KataError as e:
            self.log.error(f"a machine of the pool could not be made: {e}")
            return RETRY
        return 0.0

    def _room(self) -> bool:
        with open("/proc/meminfo", encoding="ascii") as f:
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in f}
        if sizes["MemAvailable"] * 100 >= sizes["MemTotal"] * RESERVE:
            return True
        self.log.warning(f"less than {RESERVE} % of the host's memory is free: no further machine is made")
        return False

    def _make(self, wanted: Wanted, key: str) -> None:
        """Make one machine.  On failure nothing of it is left.

        :raise KataError: why it could not be made.
        """
        self._template(wanted.plan)
        name = f"{key}.{os.getpid()}-{next(self._numbers)}"
        making = f"{self.path}/{pool.MAKING}{name}"
        with ExitStack() as undo:
            os.mkdir(making, 0o700)
            undo.callback(self._end, making, "it was not whole")
            os.mkdir(f"{making}/warm-up", 0o755)
            plan = pool.base_plan(wanted.plan)
            state.write_json(f"{making}/sandbox.json", {
                "version": state.VERSION, "id": plan.id, "root": "", "flavor": plan.flavor, "plan": to_json(plan),
                "containers": {}, "netns": "", "warm_up": to_json(wanted.warm_up)})
            network = netns.create()
            try:
                proxy = start_proxy(making, network, _low_priority, pooled=True)
            finally:
                os.close(network)
            with Client(f"{making}/proxy.sock") as client:
                client.request("ready", timeout=plan.boot_timeout + READY_MARGIN)
            self._watch(proxy)
            os.rename(making, f"{self.path}/{name}")
            undo.pop_all()
        self.log.info(f"machine {name} is ready")

    def _template(self, plan: SandboxPlan) -> None:
        """Have the template that machines are cloned from; without one they boot."""
        if not plan.template_path:
            return
        found = template.open_template(plan)
        if found is not None:
            found.close()
        elif reap(start_factory(to_json(plan), plan.template_path, wait=True)) != 0:
            self.log.warning(f"the template could not be made: see {plan.template_path}/factory.log")

    def _end(self, machine: str, why: str) -> None:
        self.log.info(f"ending machine {os.path.basename(machine)}: {why}")
        try:
            end_machine(machine)
        except KataError as e:
            self.log.error(f"machine {os.path.basename(machine)}: {e}")

    # --- waiting -----------------------------------------------------------------------------

    def _wait(self, events: int, timeout: float | None) -> None:
        """Wait until the pool changes, a proxy ends, or ``timeout`` seconds are over."""
        for machine in pool.machines(self.path):
            self._watch(_proxy(machine))
        poll = select.poll()
        poll.register(events, select.POLLIN)
        for _start, pidfd in self._pidfds.values():
            poll.register(pidfd, select.POLLIN)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = [fd for fd, _events in poll.poll(remaining)]
            if ready != [events] or _concerns(events):
                break
        for pid, (start, pidfd) in list(self._pidfds.items()):
            if not state.alive(pid, start):
                with suppress(ChildProcessError):  # an earlier keeper's
                    os.waitpid(pid, os.WNOHANG)
                os.close(pidfd)
                del self._pidfds[pid]

    def _watch(self, pid: int) -> None:
        """Watch a proxy to its end, claimed or not: it is our child."""
        start = state.start_time(pid) if pid else 0
        if start and self._pidfds.get(pid, (0, -1))[0] != start:
            with suppress(ProcessLookupError):
                self._pidfds[pid] = (start, syscalls.pidfd_open(pid))


def _concerns(events: int) -> bool:
    """Whether one of the events is of a machine that can be claimed, or of somebody who found none."""
    found = False
    with suppress(BlockingIOError):
        for _watch, _mask, name in syscalls.inotify_events(os.read(events, 1 << 16)):
            found |= not name.startswith(".")
    return found


def _low_priority() -> None:
    os.nice(NICE)


def stop(path: str, timeout: float = 60.0) -> int:
    """End the keeper of the pool at ``path``, if there is one, and all machines in it; return how many.

    :raise HostError: one of them does not end.
    """
    pid = keeper_of(path)
    if pid:
        with suppress(ProcessLookupError):
            pidfd = syscalls.pidfd_open(pid)
            try:
                if keeper_of(path) == pid:  # still: the descriptor is the keeper's
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                    poll = select.poll()
                    poll.register(pidfd, select.POLLIN)
                    if not poll.poll(timeout * 1000):
                        raise HostError(f"the pool's keeper (pid {pid}) did not end within {timeout:g} s")
            finally:
                os.close(pidfd)
    machines = [*pool.machines(path), *pool.half_made(path)]
    for machine in machines:
        end_machine(machine)
    return len(machines)


def left_over(path: str) -> list[str]:
    """Machines that died, and those that no keeper will ever finish."""
    if keeper_of(path):
        return []  # it sees to them
    return [*pool.half_made(path), *(machine for machine in pool.machines(path) if not lives(machine))]
