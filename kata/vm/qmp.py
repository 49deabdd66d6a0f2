"""QMP, the control channel of a QEMU process; the only import of qemu.qmp."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, Message, QMPClient, StateError

from kata.errors import HostError, VmError

logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False


class Qmp:
    """A connection to one QEMU.

    QEMU answers one command at a time, so callers may share it freely.
    """

    def __init__(self) -> None:
        self._client = QMPClient("sandbox")
        self._socket: socket.socket | None = None

    async def connect(self, path: str, timeout: float = 20.0) -> None:
        """Connect to the listening socket at ``path`` and negotiate.

        :raise VmError: QEMU did not greet in time.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
            sock.setblocking(False)
            await asyncio.wait_for(self._client.connect(sock), timeout)
        except TimeoutError as e:
            sock.close()
            raise VmError(f"QEMU did not greet on its control socket within {timeout:g} s") from e
        except (OSError, ConnectError) as e:
            sock.close()
            raise VmError(f"cannot connect to QEMU's control socket {path}: {e}") from e
        self._socket = sock

    @property
    def version(self) -> tuple[int, int]:
        """QEMU's, major and minor, by its greeting."""
        assert self._client.greeting is not None
        found: Any = self._client.greeting.QMP.version["qemu"]
        return int(found["major"]), int(found["minor"])

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = 30.0) -> Any:
        """Run one command.

        :raise HostError: QEMU refused; its own description is in the text.
        :raise VmError: QEMU is gone or does not answer.
        """
        try:
            return await asyncio.wait_for(self._client.execute(command, arguments), timeout)
        except ExecuteError as e:
            raise HostError(f"QEMU refused {command}: {e}") from e
        except TimeoutError as e:
            raise VmError(f"QEMU did not answer {command} within {timeout:g} s") from e
        except (ExecInterruptedError, StateError) as e:
            raise VmError(f"QEMU went away during {command}") from e

    async def give_fd(self, name: str, fd: int) -> None:
        """Pass ``fd`` to QEMU under ``name`` (``getfd``); the caller keeps its own."""
        self._client.send_fd_scm(fd)
        await self.execute("getfd", {"fdname": name})

    async def events(self) -> AsyncIterator[Message]:
        """QMP events from now on."""
        with self._client.listener() as listener:
            async for message in listener:
                yield message

    async def close(self) -> None:
        await self._client.disconnect()
