"""Give a template's state to a machine that waits for it, and let it go on.

Synchronous and light, unlike :mod:`kata.vm.qmp`: a clone is up before asyncio is imported, and runs its
first steps while the proxy imports the rest.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from kata.errors import VmError
from kata.jsontext import dumps, loads
from kata.wire import UnixSocket

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any

TIMEOUT = 60.0  #: seconds for all of it
#: Memory in a file is not part of the stream; QEMU tells the end of a migration.
CAPABILITIES = ("x-ignore-shared", "events")
CHUNK = 1 << 16  #: bytes of state at a time


def restore(path: str, state: int) -> None:
    """Load a saved state into the QEMU that listens for QMP at ``path``, and continue it.

    :param state: file descriptor of the saved state.
    :raise VmError: QEMU is gone, does not take the state, or not in time.
    """
    sock, deadline = UnixSocket(), time.monotonic() + TIMEOUT
    try:
        sock.dial(path, TIMEOUT)
        qemu = _Monitor(sock, deadline)
        qemu.execute("qmp_capabilities")
        qemu.execute("migrate-set-capabilities", {
            "capabilities": [{"capability": name, "state": True} for name in CAPABILITIES]})
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                qemu.execute("getfd", {"fdname": "state"}, read)
            finally:
                os.close(read)
            qemu.execute("migrate-incoming", {"uri": "fd:state"})
            qemu.feed(state, write)
        finally:
            os.close(write)
        if qemu.loaded() != "completed":
            raise VmError("QEMU does not take the state")
        qemu.execute("cont")
    except OSError as e:
        raise VmError(f"QEMU went away while it took the state: {e.strerror or e}") from e
    except ValueError as e:
        raise VmError(f"QEMU does not speak QMP: {e}") from e
    finally:
        sock.close()


class _Monitor:
    """QMP, one command at a time (QEMU's qmp-spec): a line of JSON each way, and events in between."""

    def __init__(self, sock: UnixSocket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.rest = b""
        self.ended = ""  #: how the migration has
        while not any("QMP" in message for message in self.receive()):
            pass

    def execute(self, command: str, arguments: dict[str, Any] | None = None, fd: int = -1) -> None:
        """:raise VmError: QEMU refused, or did not answer in time."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
        self.sock.sendmsg([dumps({"execute": command, "arguments": arguments or {}}).encode()], rights)
        while True:
            for message in self.receive():
                if "error" in message:
                    raise VmError(f"QEMU refused {command}: {message['error'].get('desc', '')}")
                if "return" in message:
                    return

    def feed(self, state: int, pipe: int) -> None:
        """Write a whole file into the pipe that QEMU reads; it reads to where the state ends."""
        os.set_blocking(pipe, False)
        at, poll = 0, select.poll()
        poll.register(pipe, select.POLLOUT)
        poll.register(self.sock, select.POLLIN)
        while not self.ended and (data := os.pread(state, CHUNK, at)):
            for fd, _events in self._ready(poll):
                if fd == self.sock.fileno():
                    self.receive()
                    continue
                try:
                    at += os.write(pipe, data)
                except BrokenPipeError:  # it tells why
                    return
                break

    def loaded(self) -> str:
        """How the migration has ended."""
        while not self.ended:
            self.receive()
        return self.ended

    def receive(self) -> list[dict[str, Any]]:
        """What QEMU says next, as far as it is whole."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        self._ready(poll)
        data = self.sock.recv(CHUNK)
        if not data:
            raise VmError("QEMU has ended")
        *lines, self.rest = (self.rest + data).split(b"\n")
        messages: list[dict[str, Any]] = [loads(line) for line in lines]
        for message in messages:
            status = message.get("data", {}).get("status") if message.get("event") == "MIGRATION" else ""
            if status in ("completed", "failed"):
                self.ended = status
        return messages

    def _ready(self, poll: select.poll) -> list[tuple[int, int]]:
        ready = poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000)
        if not ready:
            raise VmError(f"QEMU did not take the state within {TIMEOUT:g} s")
        return ready
