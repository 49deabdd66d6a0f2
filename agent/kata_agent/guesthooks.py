"""Hooks that lie in the guest's image (Kata 1.x, ``guest_hook_path``).

Below the folder are prestart, poststart and poststop; each executable in them
runs in the guest, outside of containers, with the container's state on stdin.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from kata_agent.errors import AgentError, internal
from kata_agent.hooks import Hook, run_here
from kata_agent.identity import StageError
from kata_agent.linux import syscalls as sc
from kata_agent.loop import EPOLLIN, Loop

KINDS = ("prestart", "poststart", "poststop")
_TIMEOUT = 10.0  # seconds for each


def find(folder: str) -> dict[str, list[Hook]]:
    """The hooks below ``folder`` by kind, in order of their names."""
    found: dict[str, list[Hook]] = {}
    for kind in KINDS:
        try:
            names = sorted(os.listdir(f"{folder}/{kind}"))
        except OSError:
            continue
        paths = [f"{folder}/{kind}/{name}" for name in names]
        hooks = [Hook(p, [p, kind], ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], _TIMEOUT)
                 for p in paths if os.path.isfile(p) and os.access(p, os.X_OK)]
        if hooks:
            found[kind] = hooks
    return found


def run(loop: Loop, hooks: list[Hook], state: bytes, done: Callable[[AgentError | None], None]) -> None:
    """Run ``hooks`` one after the other in a child; ``done`` gets the first failure."""
    if not hooks:
        done(None)
        return
    receive, send = os.pipe()
    pid = sc.fork()
    if pid == 0:
        _run_all(hooks, state, send)
    os.close(send)
    output = bytearray()

    def readable(_events: int) -> None:
        data = os.read(receive, 4096)
        output.extend(data)
        if not data:
            loop.remove(receive)

    loop.add(receive, EPOLLIN, readable)

    def ended(status: int) -> None:
        loop.remove(receive)
        os.set_blocking(receive, False)
        try:
            output.extend(os.read(receive, 4096))
        except BlockingIOError:
            pass
        os.close(receive)
        text = output.decode(errors="replace").strip()
        done(internal(f"guest hook: {text or f'exit status {status}'}") if status else None)

    loop.on_exit(pid, ended)


def _run_all(hooks: list[Hook], state: bytes, report: int) -> None:
    code = 1
    try:
        import signal

        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for hook in hooks:
            run_here(hook, state)
        code = 0
    except StageError as error:
        os.write(report, error.text.encode(errors="replace")[:4096])
    except OSError as error:
        os.write(report, str(error).encode(errors="replace")[:4096])
    finally:
        os._exit(code)
