"""Give a sandbox whose proxy is gone a new one."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from kata import state
from kata.errors import KataError, ProxyGone
from kata.wire import Client, UnixSocket

MARGIN = 30.0  #: beyond the boot timeout, seconds
MACHINE_GONE = 3  #: exit code of the program; the shim knows it


class MachineGone(ProxyGone):
    """There is nothing to take over."""


def revive(directory: str) -> None:
    """Make sure that a proxy answers for the sandbox; who comes first starts it.

    :raise MachineGone: the machine is gone too.
    :raise ProxyGone: no proxy came up.
    :raise HostError: none came up in time.
    """
    try:
        _revive(directory)
    except FileNotFoundError as e:
        raise MachineGone("the sandbox is gone") from e


def _revive(directory: str) -> None:
    with state.locked(directory):
        if _answers(f"{directory}/proxy.sock"):
            return
        record = state.read_json(f"{directory}/sandbox.json")
        qemu = record.get("qemu") or {"pid": 0, "start": 0}
        if not state.alive(qemu["pid"], qemu["start"]):
            raise MachineGone(f"the machine of sandbox {record['id']} is gone", "delete its containers with --force")
        # Late: a verb that finds its proxy alive needs none of this.
        from kata import cgroups
        from kata.daemons import start_proxy
        from kata.joining import network_of

        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/proxy.sock")
        network = os.open(network_of(directory, qemu["pid"]), os.O_RDONLY | os.O_CLOEXEC)
        try:
            start_proxy(directory, network, lambda: cgroups.join_like(qemu["pid"]), resume=True)
        finally:
            os.close(network)
        timeout = record["plan"]["boot_timeout"] + MARGIN
        try:
            with Client(f"{directory}/proxy.sock") as client:
                client.request("ready", timeout=timeout)
        except KataError as e:
            if state.alive(qemu["pid"], qemu["start"]):
                raise
            raise MachineGone(f"the machine of sandbox {record['id']} ended while it was taken over") from e


def _answers(path: str) -> bool:
    with UnixSocket() as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:
            return True  # somebody is there, who has much to do
        except OSError:
            return False
    return True


def main(directory: str) -> int:
    """For a shim, which has no library but the standard one; :data:`kata.shim.REVIVE` calls it."""
    try:
        revive(directory)
    except MachineGone:
        return MACHINE_GONE
    except KataError as e:
        sys.stderr.write(f"kata: {e}\n")
        return 1
    return 0
