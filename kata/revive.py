"""Give a sandbox whose proxy is gone a new one."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from kata import state
from kata.errors import KataError, ProxyGone
from kata.wire import Client


def revive(directory: str, timeout: float = 30.0) -> None:
    """Make sure that a proxy answers for the sandbox; who comes first starts it.

    :raise ProxyGone: the machine is gone too, or no proxy came up in time.
    """
    with state.locked(f"{directory}/lock"):
        if _answers(f"{directory}/proxy.sock"):
            return
        record = state.read_json(f"{directory}/sandbox.json")
        qemu = record.get("qemu") or {"pid": 0, "start": 0}
        if not state.alive(qemu["pid"], qemu["start"]):
            raise ProxyGone(f"the machine of sandbox {record['id']} is gone", "delete its containers with --force")
        # Late: a verb that finds its proxy alive needs none of this.
        from kata import cgroups
        from kata.daemons import start_proxy

        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/proxy.sock")
        network = os.open(f"/proc/{qemu['pid']}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            start_proxy(directory, network, lambda: cgroups.join_like(qemu["pid"]), resume=True)
        finally:
            os.close(network)
        with Client(f"{directory}/proxy.sock", timeout) as client:
            client.request("ready", timeout=timeout)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def main(directory: str) -> int:
    """``python -m kata.revive SANDBOX-DIRECTORY``, for a shim, which has no library but the standard one."""
    try:
        revive(directory)
    except KataError as e:
        sys.stderr.write(f"kata: {e}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
