"""Start long-lived processes: proxy, QEMU, shims, hooks.  The only file that forks.

Import-light, since hot verbs use it; :mod:`kata.process` runs commands to their
end.
"""

from __future__ import annotations

import os

from kata.errors import HostError

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
else:  # without the enumerations that the library wraps it in
    import _signal as signal

STDIO = (0, 1, 2)


def spawn(
    argv: Sequence[str],
    *,
    path: str = "",
    stdio: Sequence[int] = STDIO,
    keep: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    session: bool = False,
    before_exec: Callable[[], None] | None = None,
) -> int:
    """Fork and execute ``argv``; return the pid once the program is executing.

    :param path: the program; "" looks ``argv[0]`` up on PATH.
    :param stdio: descriptors that become 0, 1 and 2 (-1: /dev/null).
    :param keep: further descriptors that the program inherits, at their numbers.
    :param session: give it a session of its own.
    :param before_exec: runs in the child just before: joins namespaces, cgroups.
    :raise HostError: the child could not get as far as the program.
    """
    report_r, report_w = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            _child(argv, path, stdio, keep, env, cwd, session, before_exec)
        except BaseException as e:
            text = str(e) if isinstance(e, HostError) else f"{getattr(e, 'strerror', None) or e}"
            os.write(report_w, text.encode()[:4000] or b"failed")
        finally:
            os._exit(127)
    os.close(report_w)
    with os.fdopen(report_r, "rb") as report:
        failure = report.read()
    if failure:
        os.waitpid(pid, 0)
        raise HostError(f"cannot start {path or argv[0]}: {failure.decode(errors='replace')}")
    return pid


def _child(
    argv: Sequence[str],
    path: str,
    stdio: Sequence[int],
    keep: Sequence[int],
    env: Mapping[str, str] | None,
    cwd: str | None,
    session: bool,
    before_exec: Callable[[], None] | None,
) -> None:
    # Python ignores SIGPIPE and a caller may block signals; a program expects neither.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if session:
        os.setsid()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    # Above 2 first, so that no descriptor is overwritten before it is copied.
    copies = [os.dup(fd if fd >= 0 else null) for fd in stdio]
    high = [fd if fd > 2 else os.dup(fd) for fd in copies]
    if before_exec is not None:
        before_exec()
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=True)
    for fd in keep:
        os.set_inheritable(fd, True)
    if cwd is not None:
        os.chdir(cwd)
    environment = os.environ if env is None else env
    if path:
        os.execve(path, list(argv), environment)
    os.execvpe(argv[0], list(argv), environment)


def reap(pid: int) -> int:
    """Wait for a child's end and return its exit code, 128 + n for a signal n."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def stop(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
