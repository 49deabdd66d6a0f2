"""End processes and sandboxes that nobody answers for any more.

Idempotent: what is gone already is passed over.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from contextlib import suppress

from kata import state
from kata.errors import HostError, KataError
from kata.spawn import stop
from kata.wire import Client
from kata_agent.linux import syscalls

END_TIMEOUT = 10.0  #: seconds for a killed process to be gone


def end_process(pid: int, started: int, number: int = signal.SIGKILL) -> None:
    """Kill the process that was ``pid`` when it started at ``started``; wait until it is gone."""
    if not state.alive(pid, started):
        return
    try:
        pidfd = syscalls.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if state.alive(pid, started):
            stop(pid, number)
            wait_end(pidfd, pid)
    finally:
        os.close(pidfd)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def wait_end(pidfd: int, pid: int, timeout: float = END_TIMEOUT) -> None:
    """:raise HostError: the process is still there after ``timeout`` seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(timeout * 1000):
        raise HostError(f"process {pid} did not end within {timeout:g} s")


def destroy_sandbox(directory: str) -> None:
    """End a sandbox's machine and proxy and remove its directory."""
    try:
        record = state.read_json(f"{directory}/sandbox.json")
    except (FileNotFoundError, KataError):
        record = {}
    proxy = record.get("proxy") or {"pid": 0, "start": 0}
    if state.alive(proxy["pid"], proxy["start"]):
        # It takes its hands off the network namespace, which may outlive the sandbox.
        with suppress(KataError), Client(f"{directory}/proxy.sock", END_TIMEOUT) as client:
            client.request("abandon", timeout=END_TIMEOUT)
    for name in ("proxy", "qemu"):
        process = record.get(name) or {"pid": 0, "start": 0}
        end_process(process["pid"], process["start"])
    shutil.rmtree(directory, ignore_errors=True)
