"""Hooks: programs that are run with the container's state on their stdin."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

from kata_agent.identity import StageError
from kata_agent.linux import syscalls as sc
from kata_agent.linux.light import signal

_MAX_OUTPUT = 4096  # bytes of stderr that go into an error


class Hook:
    """One hook (runtime-spec, config.md, "POSIX-platform Hooks")."""

    __slots__ = ("args", "env", "path", "timeout")

    def __init__(self, path: str, args: Sequence[str], env: Sequence[str], timeout: float) -> None:
        self.path = path
        self.args = list(args) or [path]
        self.env = list(env)
        self.timeout = timeout  #: seconds, 0 = none


def run_here(hook: Hook, state: bytes) -> None:
    """Run ``hook`` with this process's namespaces, root and user, and wait for it.

    :raise StageError: it cannot be run, fails, or takes longer than its timeout.
    """
    state_read, state_write = os.pipe()
    error_read, error_write = os.pipe()
    pid = sc.fork()
    if pid == 0:
        _exec(hook, state_read, error_write)
    os.close(state_read)
    os.close(error_write)
    deadline = time.monotonic() + hook.timeout if hook.timeout else None
    output, in_time = _converse(pid, state_write, error_read, state, deadline)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    _pid, status = os.waitpid(pid, 0)
    if not in_time:
        raise StageError("hook", 0, f"hook {hook.path} took longer than {hook.timeout:g} s")
    code = os.waitstatus_to_exitcode(status)
    if code:
        how = f"exit status {code}" if code > 0 else f"signal {-code}"
        detail = output.decode(errors="replace").strip()
        raise StageError("hook", 0, f"hook {hook.path} failed: {how}" + (f": {detail}" if detail else ""))


def _exec(hook: Hook, stdin: int, stderr: int) -> None:
    try:
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(stdin, 0)
        os.dup2(null, 1)
        os.dup2(stderr, 2)
        os.closerange(3, 1 << 20)
        env = dict(entry.split("=", 1) for entry in hook.env if "=" in entry[1:])
        os.execve(hook.path, hook.args, env)
    except OSError as error:
        os.write(2, f"{error.strerror}".encode())
    finally:
        os._exit(127)


def _converse(pid: int, stdin: int, stderr: int, state: bytes, deadline: float | None) -> tuple[bytes, bool]:
    """Feed the state and collect stderr until the hook ends; (stderr, ended in time)."""
    pidfd = os.pidfd_open(pid)
    os.set_blocking(stdin, False)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(stderr, select.POLLIN)
    poll.register(stdin, select.POLLOUT)
    output = b""
    todo = memoryview(state)
    ended = False
    open_ends = {stdin, stderr}
    try:
        while not ended:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = poll.poll(left)
            if not ready:
                return output, False
            for fd, _events in ready:
                if fd == pidfd:
                    ended = True
                elif fd == stderr:
                    data = os.read(stderr, 4096)
                    output = (output + data)[:_MAX_OUTPUT]
                    if not data:
                        poll.unregister(stderr)
                elif fd == stdin:
                    try:
                        todo = todo[os.write(stdin, todo) :] if todo else todo
                    except (BrokenPipeError, BlockingIOError):
                        todo = todo[:0]
                    if not todo:
                        poll.unregister(stdin)
                        os.close(stdin)
                        open_ends.discard(stdin)
        os.set_blocking(stderr, False)
        try:
            output = (output + os.read(stderr, 4096))[:_MAX_OUTPUT]
        except BlockingIOError:
            pass
        return output, True
    finally:
        os.close(pidfd)
        for fd in open_ends:
            os.close(fd)
