"""Start the two long-lived host programs of a sandbox: its proxy and the shims."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import kata
import kata_agent
from kata import cgroups, state
from kata.errors import HostError
from kata.jsontext import dumps
from kata.network import netns
from kata.spawn import spawn
from kata.wire import UnixSocket, listening_socket

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.py")
PROXY_LISTENER = 3
CONSOLE_TIMEOUT = 10.0  #: seconds


def start_proxy(directory: str, network: int, join_cgroup: Callable[[], None], *, resume: bool = False,
                pooled: bool = False) -> int:
    """Start a sandbox's proxy in its network namespace and cgroup; return its pid.

    Its control socket takes connections at once.  Its pid is recorded before
    it executes, so that it is found whatever is killed.

    :param resume: it takes over a machine whose proxy is gone.
    :param pooled: it makes a machine warm and waits for somebody to claim it.
    """
    listener = listening_socket(f"{directory}/proxy.sock")
    log = os.open(f"{directory}/proxy.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        def prepare() -> None:
            record = state.read_json(f"{directory}/sandbox.json")
            record["proxy"] = {"pid": os.getpid(), "start": state.start_time(os.getpid())}
            state.write_json(f"{directory}/sandbox.json", record)
            join_cgroup()
            netns.enter(network)
            os.dup2(listener.fileno(), PROXY_LISTENER, inheritable=True)

        argv = _program("kata.proxy.__main__", directory, *(["--resume"] if resume else []),
                        *(["--pooled"] if pooled else []))
        return spawn(argv, stdio=(-1, log, log), session=True, cwd="/", env=_environment(), before_exec=prepare)
    finally:
        os.close(log)
        listener.close()


def start_factory(plan: Mapping[str, Any], path: str, *, wait: bool = False) -> int:
    """Start making the template for a sandbox's plan below ``path``, in the background; return its pid.

    :param wait: if another one is at it, wait for it.

    It is the host's, not a sandbox's: it outlives the sandbox and its cgroup.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    log = os.open(f"{path}/factory.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    given = os.memfd_create("plan", os.MFD_CLOEXEC)
    try:
        os.write(given, dumps(plan).encode())
        os.lseek(given, 0, os.SEEK_SET)
        argv = _program("kata.proxy.factory", *(["--wait"] if wait else []))
        return spawn(argv, stdio=(given, log, log), session=True, cwd="/", env=_environment(),
                     before_exec=lambda: cgroups.join_like(1))
    finally:
        os.close(log)
        os.close(given)


def dial_console(path: str) -> UnixSocket:
    """A connection to a ``--console-socket``.

    :raise HostError: nobody listens there.
    """
    sock = UnixSocket()
    try:
        sock.dial(path, CONSOLE_TIMEOUT)
    except OSError as e:
        sock.close()
        raise HostError(f"cannot reach the console socket {path}: {e.strerror or e}") from e
    sock.settimeout(None)
    return sock


def start_shim(path: str, container: str, exec_id: str, args: Sequence[str], *, terminal: bool, console_socket: int,
               network: int, join_cgroup: Callable[[], None], console: str = "", foreground: bool = False,
               connection: int = -1) -> int:
    """Start a shim with the caller's stdio; return its pid.

    :param args: the process's arguments: how the shim looks in ``ps``.
    :param console_socket: what takes the terminal's master, connected; -1: the terminal is not the shim's to make.
    :param connection: an open connection to the proxy that it goes on with.
    """
    def prepare() -> None:
        join_cgroup()
        netns.enter(network)

    argv = [sys.executable, "-I", "-S", SHIM, path, container, exec_id, "1" if terminal else "0",
            str(console_socket) if console_socket >= 0 else "", console, str(connection) if connection >= 0 else "-",
            *args]
    stdio = (-1, -1, -1) if console_socket >= 0 else (0, 1, 2)
    return spawn(argv, stdio=stdio, keep=[fd for fd in (connection, console_socket) if fd >= 0],
                 session=not foreground, cwd="/", env=_environment(), before_exec=prepare)


def _program(module: str, *words: str) -> list[str]:
    """The command line of a program of ours: without :mod:`site`, which takes as long as the interpreter itself."""
    start = f"import sys; sys.path[:] = {places()}; from {module} import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-IS", "-c", start, *words]


def places() -> list[str]:
    """Where our modules and their libraries are, however this process has come to know it."""
    return list(dict.fromkeys([*sys.path, *(os.path.dirname(p.__path__[0]) for p in (kata, kata_agent))]))


def _environment() -> Mapping[str, str]:
    """KATA_PATH is for a shim, which has no library, but has to start a proxy when there is none."""
    return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8",
            "KATA_PATH": os.pathsep.join(places())}


def write_pid_file(path: str, pid: int) -> None:
    """Write ``pid`` aside and rename, so that a reader sees a whole number or no file.

    The folder may be anybody's: nothing that is there is written to.
    """
    aside = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}.{os.getpid()}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(fd, "w", encoding="ascii") as f:
                f.write(str(pid))
            os.rename(aside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise
    except OSError as e:
        raise HostError(f"cannot write the pid file {path}: {e.strerror}", state.full_disk(e)) from e


