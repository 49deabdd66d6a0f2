"""OCI hooks that run on the host (runtime-spec, "POSIX-platform Hooks").

``startContainer`` hooks run in the guest, by the agent.
"""

from __future__ import annotations

import os
import select
import time

from kata.errors import HostError
from kata.jsontext import dumps
from kata.spawn import reap, spawn, stop
from kata_agent.linux import syscalls

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any
else:  # without the enumerations that the library wraps it in
    import _signal as signal

OUTPUT_LIMIT = 4096  #: bytes of a failed hook's output that its error repeats


def run_hooks(kind: str, hooks: Sequence[Mapping[str, Any]], state: Mapping[str, Any],
              before_exec: Callable[[], None] | None = None) -> None:
    """Run hooks one after the other, the container's state on their standard input.

    :param before_exec: runs in each hook's process: enters the container's namespaces.
    :raise HostError: one failed or ran out of time; those after it did not run.
    """
    for hook in hooks:
        _run(kind, hook, dumps(state).encode(), before_exec)


def _run(kind: str, hook: Mapping[str, Any], state: bytes, before_exec: Callable[[], None] | None) -> None:
    path, timeout = hook["path"], hook.get("timeout")
    env = dict(pair.partition("=")[::2] for pair in hook.get("env") or ())
    given = os.memfd_create("state", os.MFD_CLOEXEC)
    output_r, output_w = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(given, state)
        os.lseek(given, 0, os.SEEK_SET)
        try:
            pid = spawn(hook.get("args") or [path], path=path, stdio=(given, output_w, output_w), env=env,
                        session=True, before_exec=before_exec)
        except HostError as e:
            raise HostError(f"{kind} hook {path}: {e.text}") from e
        os.close(output_w)
        output_w = -1
        output = _wait(kind, path, pid, output_r, timeout)
        code = reap(pid)
    finally:
        for fd in (given, output_r, output_w):
            if fd >= 0:
                os.close(fd)
    if code != 0:
        said = output.decode(errors="replace").strip()
        raise HostError(f"{kind} hook {path} failed with exit code {code}" + (f": {said}" if said else ""))


def _wait(kind: str, path: str, pid: int, output: int, timeout: int | None) -> bytes:
    """Read the hook's output until it has ended; its process is left to be reaped.

    :raise HostError: ``timeout`` (seconds) is over; the hook was killed and reaped.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pidfd = syscalls.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(output, select.POLLIN)
    data = b""
    try:
        while True:
            left = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
            ready = dict(poll.poll(left))
            if not ready:
                stop(-pid, signal.SIGKILL)  # its session, so that children go too
                reap(pid)
                raise HostError(f"{kind} hook {path} did not end within its timeout of {timeout} s and was killed")
            if output in ready:
                piece = os.read(output, 1 << 16)
                data = (data + piece)[-OUTPUT_LIMIT:]
                if not piece:
                    poll.unregister(output)
                if piece:
                    continue
            if pidfd in ready:
                return data
    finally:
        os.close(pidfd)
