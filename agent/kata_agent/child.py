"""What the first process of a container, and an exec'd one, does before its execve.

Runs in a child forked from the agent.  It talks to the agent over a
SOCK_SEQPACKET socket, one message at a time; the first byte is its kind.
"""

from __future__ import annotations

import errno
import gc
import os

from kata_agent import console, hooks, identity
from kata_agent.identity import ProcessPlan, StageError
from kata_agent.linux import syscalls as sc
from kata_agent.linux.light import signal, socket
from kata_agent.rootfs import Mounts

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import NoReturn

# Child to agent.
NEED_MAPS = b"U"  #: in a new user namespace: write my id maps
PID = b"P"  #: the pid (decimal) of the process that goes on in my place
TERMINAL = b"T"  #: carries the master's descriptor
READY = b"R"  #: all is prepared
EXEC = b"X"  #: execve is next; the socket's end means that it worked
ERROR = b"E"  #: stage NUL errno NUL text; I end now
# Agent to child.
GO = b"G"

_MAX_MESSAGE = 65536
_TERMINATING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class ChildPlan:
    """What a child needs to know.  Descriptors in it are the agent's and stay open over the fork."""

    __slots__ = (
        "cgroup", "cgroup_mount", "close",
        "domainname", "hostname", "idmaps", "join", "keyring", "mounts", "neighbour", "netns", "personality",
        "process", "start_hooks", "state", "stdio", "sub_cgroup", "sysctl", "unshare", "userns", "wait",
    )

    def __init__(self, process: ProcessPlan) -> None:
        self.process = process
        self.close: list[tuple[int, int]] = []  #: ranges of descriptors, see :meth:`keep_only`
        self.stdio: tuple[int, int, int] = (-1, -1, -1)  #: unless there is a terminal
        self.cgroup = ""  #: folder of the cgroup to be in, "" = none
        self.cgroup_mount = ""  #: of the whole hierarchy
        self.sub_cgroup = ""  #: below that one
        self.neighbour = 0  #: pid of the container's first process, for a process that joins it
        self.netns = -1  #: network namespace to join
        self.join: list[tuple[int, int]] = []  #: (pidfd or namespace descriptor, CLONE_NEW*)
        self.unshare = 0  #: CLONE_NEW* to make here; CLONE_NEWPID costs a second fork
        self.userns = False  #: a new user namespace comes first
        self.mounts: Mounts | None = None  #: None for a process that joins a container
        self.idmaps: dict[int, tuple[str, str]] = {}  #: mount -> uid and gid map of an idmapped mount
        self.hostname = ""
        self.domainname = ""
        self.sysctl: dict[str, str] = {}
        self.personality = 0
        self.keyring = ""
        self.start_hooks: list[hooks.Hook] = []
        self.state = b""  #: OCI state, stdin of the hooks
        self.wait = False  #: stop before execve until the agent says go

    def keep_only(self, *descriptors: int) -> None:
        """Have the child close all but these and those of the plan: others' pipes must end while it waits.

        Worked out before the fork: whatever a child does first, it does slowly, as no page is its own yet.
        """
        named = {0, 1, 2, *descriptors, self.netns, *self.stdio, *(fd for fd, _kind in self.join)} - {-1}
        keep = sorted(named)
        self.close = [(low + 1, high) for low, high in zip(keep, [*keep[1:], 1 << 20], strict=True) if high > low + 1]


def main(plan: ChildPlan, sync: socket.socket) -> NoReturn:
    """Never returns: execve or exit."""
    code = 1
    try:
        gc.disable()
        _run(plan, sync)
    except StageError as error:
        _report(sync, error)
    except OSError as error:
        _report(sync, StageError("set-up", error.errno or 0, f"{error.filename or ''} {error.strerror}".strip()))
    except _Terminated as end:
        code = 128 + end.signum
    except BaseException as error:  # whatever it is, this is not the agent's loop any more
        _report(sync, StageError("set-up", 0, f"{type(error).__name__}: {error}"))
    finally:
        os._exit(code)


class _Terminated(Exception):
    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def _run(plan: ChildPlan, sync: socket.socket) -> NoReturn:
    _reset_signals()
    for low, high in plan.close:
        os.closerange(low, high)
    os.setsid()
    if plan.mounts is not None:
        _make_container(plan, plan.mounts, sync)
    else:
        _join_container(plan)
    process = plan.process
    if process.terminal:
        _terminal(plan, sync)
    else:
        for target, fd in enumerate(plan.stdio):
            os.dup2(fd, target, inheritable=True)
    if plan.keyring:
        _keyring(plan.keyring)
    if plan.personality:
        sc.personality(plan.personality)
    stdio = (0,) if process.terminal else (0, 1, 2)
    path = identity.prepare(process, stdio, check=plan.wait, first=plan.mounts is not None)
    if plan.wait:
        _wait(sync)
    for hook in plan.start_hooks:
        hooks.run_here(hook, plan.state)
    sync.send(EXEC)
    identity.seal(process)
    identity.execute(process, path)


# --- containers ----------------------------------------------------------------------


def _make_container(plan: ChildPlan, mounts: Mounts, sync: socket.socket) -> None:
    if plan.cgroup:
        _enter_cgroup(plan.cgroup)
    if plan.netns >= 0:
        sc.setns(plan.netns, sc.CLONE_NEWNET)
    # Before a user namespace, whose root may not write them: the network namespace is the sandbox's.
    for name, value in plan.sysctl.items():
        if name.startswith("net."):
            _sysctl(name, value)
    mounts.collect({index: _idmap_userns(*maps) for index, maps in plan.idmaps.items()})
    for fd, kind in plan.join:
        try:
            sc.setns(fd, kind)
        except OSError as error:
            raise StageError("namespaces", error.errno or 0, f"cannot join a namespace: {error.strerror}") from None
    if plan.userns:
        _new_userns(sync)
    if plan.unshare & sc.CLONE_NEWPID:
        _fork_into_pidns(sync)
    try:
        sc.unshare(plan.unshare & ~sc.CLONE_NEWPID)
    except OSError as error:
        raise StageError("namespaces", error.errno or 0, f"cannot make namespaces: {error.strerror}") from None
    if plan.hostname:
        sc.sethostname(plan.hostname)
    if plan.domainname:
        sc.setdomainname(plan.domainname)
    mounts.build()
    for name, value in plan.sysctl.items():
        if not name.startswith("net."):
            _sysctl(name, value)
    mounts.enter()
    if plan.process.terminal:
        _terminal(plan, sync)
    mounts.finish()


def _new_userns(sync: socket.socket) -> None:
    """Become root of a new user namespace."""
    sc.unshare(sc.CLONE_NEWUSER)
    _ask(sync, NEED_MAPS)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _fork_into_pidns(sync: socket.socket) -> None:
    """Go on as pid 1 of a pid namespace that belongs to this user namespace.

    Without a user namespace the agent does it, and saves this second fork.
    """
    sc.unshare(sc.CLONE_NEWPID)
    pid = sc.fork()
    if pid:
        sync.send(PID + str(pid).encode())
        os._exit(0)
    os.setsid()


def _idmap_userns(uid_map: str, gid_map: str) -> int:
    """A user namespace that only carries the maps of an idmapped mount."""
    ours, theirs = socket.socketpair()
    pid = sc.fork()
    if pid == 0:
        try:
            ours.close()  # else its end would never be seen
            sc.unshare(sc.CLONE_NEWUSER)
            # /proc is of the agent's pid namespace, where this process has another number than fork says.
            socket.send_fds(theirs, [b"."], [os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)])
            theirs.recv(1)
        finally:
            os._exit(0)
    try:
        theirs.close()
        _data, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
        if not fds:
            raise StageError("mount", 0, "cannot make the user namespace of an idmapped mount")
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=fds[0])
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        userns = os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fds[0])
        os.close(fds[0])
        return userns
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _sysctl(name: str, value: str) -> None:
    path = "/proc/sys/" + (name if "/" in name else name.replace(".", "/"))
    try:
        _write(path, value.encode())
    except OSError as error:
        raise StageError("sysctl", error.errno or 0, f"sysctl {name} = {value!r}: {error.strerror}") from None


# --- exec ----------------------------------------------------------------------------


def _join_container(plan: ChildPlan) -> None:
    if plan.cgroup:
        neighbour = 0 if plan.sub_cgroup else plan.neighbour
        _enter_cgroup(f"{plan.cgroup}/{plan.sub_cgroup}".rstrip("/"), plan.cgroup_mount, neighbour)
    user = any(kind & sc.CLONE_NEWUSER for _fd, kind in plan.join)
    for fd, kind in plan.join:
        try:
            sc.setns(fd, kind)
        except OSError as error:
            raise StageError("namespaces", error.errno or 0, f"cannot join the container: {error.strerror}") from None
    if user:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _enter_cgroup(path: str, mount: str = "", neighbour: int = 0) -> None:
    """Move this process into a cgroup.

    One whose children have controllers takes no processes itself (cgroups(7),
    "no internal processes"; systemd in a container does that): then it is
    where the container's first process has moved to.
    """
    try:
        try:
            _write(f"{path}/cgroup.procs", b"0")
        except OSError as error:
            if error.errno != errno.EBUSY or not neighbour:
                raise
            with open(f"/proc/{neighbour}/cgroup", encoding="utf-8") as file:
                where = mount + file.read().strip().rpartition("::")[2]
            if not where.startswith(path):
                raise
            _write(f"{where}/cgroup.procs", b"0")
    except OSError as error:
        raise StageError("cgroup", error.errno or 0, f"cannot enter cgroup {path}: {error.strerror}") from None


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


# --- both ----------------------------------------------------------------------------


def _terminal(plan: ChildPlan, sync: socket.socket) -> None:
    """Open a terminal in the container's /dev/pts and hand its master to the agent."""
    if plan.stdio[0] >= 0:
        return  # done
    try:
        master, slave, path = console.open_pair()
    except OSError as error:
        raise StageError("terminal", error.errno or 0, f"cannot open a terminal: {error.strerror}") from None
    if plan.process.rows or plan.process.columns:
        console.resize(master, plan.process.rows, plan.process.columns)
    if plan.mounts is not None:
        _bind_console(path)
    socket.send_fds(sync, [TERMINAL], [master])
    os.close(master)
    console.take(slave)
    plan.stdio = (0, 1, 2)


def _bind_console(path: str) -> None:
    from kata_agent.devices import bind_path

    try:
        if not os.path.exists("/dev/console"):
            os.close(os.open("/dev/console", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        bind_path(path, "/dev/console")
    except OSError as error:
        raise StageError("terminal", error.errno or 0, f"cannot make /dev/console: {error.strerror}") from None


def _keyring(name: str) -> None:
    """A session keyring of the container's own, as runc makes it; kernels without keys have none to leak."""
    try:
        sc.join_session_keyring(name)
    except OSError:
        pass


def _wait(sync: socket.socket) -> None:
    """Tell the agent that all is ready, until it says go.

    The first process of a pid namespace ignores signals that it has no handler
    for; a container that was created but not started shall end by SIGTERM.
    """
    for signum in _TERMINATING:
        signal.signal(signum, _terminate)
    _ask(sync, READY)
    for signum in _TERMINATING:
        signal.signal(signum, signal.SIG_DFL)


def _terminate(signum: int, _frame: object) -> None:
    raise _Terminated(signum)


def _ask(sync: socket.socket, message: bytes) -> None:
    sync.send(message)
    if sync.recv(16) != GO:
        os._exit(1)  # the agent has given up on us


def _report(sync: socket.socket, error: StageError) -> None:
    text = error.text.encode("utf-8", "replace")[: _MAX_MESSAGE // 2]
    try:
        sync.send(b"\0".join((ERROR + error.stage.encode(), str(error.code).encode(), text)))
    except OSError:
        pass


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    # Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored over execve; one with a handler does not.
    sc.default_signal(signal.SIGPIPE)
    sc.default_signal(signal.SIGXFSZ)
