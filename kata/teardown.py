"""End processes and sandboxes that nobody answers for any more.

Idempotent: what is gone already is passed over.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from kata import state
from kata.errors import Damaged, HostError, KataError
from kata.wire import Client

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable, Mapping
    from typing import Any
else:  # without the enumerations that the library wraps it in
    import _signal as signal

END_TIMEOUT = 10.0  #: seconds for a killed process to be gone
LOCK_TIMEOUT = 30.0  #: seconds for whoever starts a proxy to see that there is no machine


def end_process(pid: int, started: int, number: int = signal.SIGKILL) -> None:
    """Kill the process that was ``pid`` when it started at ``started``; wait until it is gone."""
    if not state.alive(pid, started):
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if state.alive(pid, started):
            # By the descriptor: its number may be another process's by now.
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
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


def await_shim(pid: int, started: int, timeout: float = 2.0) -> None:
    """Let the shim end by itself: it may still be handing the last output to the engine."""
    if not state.alive(pid, started):
        return
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            with suppress(HostError):
                wait_end(pidfd, pid, timeout)
        finally:
            os.close(pidfd)


def destroy_sandbox(directory: str) -> None:
    """End a sandbox's machine and proxy and remove its directory.

    :raise HostError: something could not be ended or removed.
    :raise StateError: its record is of another version, so who lives in it is not known.
    """
    record = _read(directory)
    network = _network(directory, record)
    try:
        if _alive(record, "proxy"):
            # It takes its hands off the network namespace, which may outlive the sandbox.
            with suppress(KataError), Client(f"{directory}/proxy.sock", END_TIMEOUT) as client:
                client.request("abandon", timeout=END_TIMEOUT)
        # The machine first: without it nobody starts another proxy, but somebody may be at it already.
        _end(record, "qemu")
        with suppress(FileNotFoundError), state.locked(directory, LOCK_TIMEOUT):
            record = _read(directory) or record
            _end(record, "proxy")
            _end(record, "qemu")
            if network >= 0 and record.get("wires"):
                _detach(network, record["wires"].values())
            _remove_tree(directory)
    finally:
        if network >= 0:
            os.close(network)


def _remove_tree(directory: str) -> None:
    """Remove a sandbox's directory, as far as it goes; shutil imports three compressors for that."""
    for folder, below, files in os.walk(directory, topdown=False):
        for name in files:
            with suppress(OSError):
                os.unlink(f"{folder}/{name}")
        for name in below:
            with suppress(OSError):
                path = f"{folder}/{name}"
                remove = os.unlink if os.path.islink(path) else os.rmdir
                remove(path)
    with suppress(OSError):
        os.rmdir(directory)


def _read(directory: str) -> dict[str, Any]:
    try:
        return state.read_json(f"{directory}/sandbox.json")
    except (FileNotFoundError, Damaged):
        return {}


def _alive(record: Mapping[str, Any], name: str) -> bool:
    process = record.get(name) or {"pid": 0, "start": 0}
    return state.alive(process["pid"], process["start"])


def _end(record: Mapping[str, Any], name: str) -> None:
    process = record.get(name) or {"pid": 0, "start": 0}
    end_process(process["pid"], process["start"])


def _network(directory: str, record: Mapping[str, Any]) -> int:
    """The sandbox's network namespace, if it is still to be had and wires may be in it; else -1."""
    if not record.get("wires"):
        return -1
    from kata.joining import network_of

    paths = [network_of(directory, record[name]["pid"]) for name in ("qemu", "proxy") if _alive(record, name)]
    for path in (*paths, record.get("netns")):
        if path:
            with suppress(OSError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    return -1


def _detach(network: int, wires: Iterable[dict[str, Any]]) -> None:
    """What the proxy does when it is not killed."""
    from kata.network import netns, wire
    from kata_agent.linux.rtnl import Rtnl

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        netns.enter(network)
        try:
            with Rtnl() as rtnl:
                for data in wires:
                    wire.detach(rtnl, wire.Wire.from_json(data))
                wire.sweep(rtnl)
        finally:
            netns.enter(home)
    finally:
        os.close(home)
