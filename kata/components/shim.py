"""``kata-shim``: one process of a guest, to a Kata 1.x runtime.

It reads the process's outputs to their ends, waits for the process and ends with
its status; standard input, the terminal's size and signals go the other way.  It
speaks ``grpc.AgentService`` and serves either proxy.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message

from kata.agent_client import METHODS
from kata.components.common import Logger, follow_console, start, unix_path
from kata.components.flags import Flags
from kata.errors import GuestError, KataError, UnsupportedError, UsageError, VmError
from kata.shim import FORWARDED
from kata.transport.grpc_gate import GrpcClient
from kata_agent.protocol import agent_pb2

FLAGS: Flags = {
    "agent": ("", "gRPC address of the agent, e.g. unix:///run/proxy.sock"),
    "container": ("", "id of the container"),
    "exec-id": ("", "id of the process"),
    "terminal": (False, "the process has a terminal"),
    "proxy-exit-code": (True, "end with the exit status of the process, not with 0"),
    "agent-logs-socket": ("", "unix socket of the guest's console, whose lines are logged"),
    "log": ("warn", "level of the log: debug, info, warn, error, fatal or panic"),
    "debug": (False, "log everything"),
    "trace": (False, "not available"),
    "version": (False, "show the version and exit"),
}
CHUNK = 32 << 10  #: bytes of one request
ASK_TIMEOUT = 30.0  #: seconds; of what the agent does at once
OUT, ERR = 1, 2


class Shim:
    """The process that this program stands for."""

    def __init__(self, client: GrpcClient, container: str, exec_id: str, terminal: bool, logger: Logger) -> None:
        self._client = client
        self._ids = {"container_id": container, "exec_id": exec_id}
        self._terminal = terminal
        self._logger = logger
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def _ask(self, method: str, request: Message, timeout: float | None = ASK_TIMEOUT) -> Any:
        service = "grpc.AgentService"
        reply = await self._client.call_raw(service, method, request.SerializeToString(), timeout)
        return METHODS[service, method].response.FromString(reply)

    async def run(self) -> int:
        """The exit status of the process.

        :raise KataError: the agent, or the way to it, failed.
        """
        loop = asyncio.get_running_loop()
        for number in (*FORWARDED, signal.SIGWINCH):
            loop.add_signal_handler(number, self._signals.put_nowait, int(number))
        # The first request that has a deadline: is anybody there?
        await self._client.call_raw("grpc.Health", "Check", b"", ASK_TIMEOUT)
        forward = asyncio.ensure_future(self._forward())
        threading.Thread(target=self._feed, args=(loop,), daemon=True).start()
        try:
            outputs = [self._pump("ReadStdout", OUT)]
            if not self._terminal:
                outputs.append(self._pump("ReadStderr", ERR))
            await asyncio.gather(*outputs)
            # Only now: an agent forgets a process, and what it wrote, with the answer.
            reply = await self._ask("WaitProcess", agent_pb2.WaitProcessRequest(**self._ids), None)
            return int(reply.status) & 0xFF
        finally:
            forward.cancel()

    async def _pump(self, method: str, fd: int) -> None:
        while True:
            try:
                reply = await self._ask(method, agent_pb2.ReadStreamRequest(**self._ids, len=CHUNK), None)
            except GuestError as e:
                if "EOF" not in e.text:  # so Kata 1.x's agent says the end
                    self._logger.warning(f"{method}: {e}")
                return
            if not reply.data:
                return
            try:
                await asyncio.to_thread(_write, fd, reply.data)
            except OSError as e:  # its reader is gone; the agent has no way to be told
                self._logger.warning(f"{method}: {e.strerror}")
                return

    def _feed(self, loop: asyncio.AbstractEventLoop) -> None:
        """Carry standard input, in a thread of its own: it may be a file, a terminal, anything."""
        try:
            while data := _read():
                asyncio.run_coroutine_threadsafe(self._write_stdin(data), loop).result()
            asyncio.run_coroutine_threadsafe(
                self._ask("CloseStdin", agent_pb2.CloseStdinRequest(**self._ids)), loop).result()
        except KataError as e:  # the process may have ended, or closed its input
            self._logger.write("info", f"standard input: {e}")

    async def _write_stdin(self, data: bytes) -> None:
        while data:
            reply = await self._ask("WriteStdin", agent_pb2.WriteStreamRequest(**self._ids, data=data), None)
            if not 0 < reply.len <= len(data):
                raise VmError(f"the agent took {reply.len} of {len(data)} bytes")
            data = data[reply.len:]

    async def _forward(self) -> None:
        """Forward signals, in order; first the terminal's size."""
        if self._terminal:
            self._signals.put_nowait(signal.SIGWINCH)
        while True:
            number = await self._signals.get()
            try:
                if number != signal.SIGWINCH:
                    await self._ask("SignalProcess", agent_pb2.SignalProcessRequest(**self._ids, signal=number))
                elif self._terminal:
                    row, column = _size()
                    await self._ask("TtyWinResize", agent_pb2.TtyWinResizeRequest(
                        **self._ids, row=row, column=column))
            except (KataError, OSError) as e:
                self._logger.warning(f"{signal.Signals(number).name}: {e}")


def _size() -> tuple[int, int]:
    """Rows and columns of the terminal."""
    rows, columns, _x, _y = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def _read() -> bytes:
    """The next bytes of standard input; b"" at its end, or when it cannot be read."""
    try:
        return os.read(0, CHUNK)
    except OSError:
        return b""


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


@contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """The terminal at standard input passes everything on, until the end."""
    if not wanted or not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


async def run(options: dict[str, Any]) -> int:
    """The program; its exit status.

    :raise KataError: the agent, or the way to it, failed.
    """
    if options["trace"]:
        raise UnsupportedError("-trace: there is no tracing", "remove it")
    for name in ("container", "exec-id"):
        if not options[name]:
            raise UsageError(f"-{name} is not set")
    logger = Logger("kata-shim", "debug" if options["debug"] else options["log"],
                    container=options["container"], **{"exec-id": options["exec-id"]})
    if options["agent-logs-socket"]:
        await follow_console(unix_path("agent-logs-socket", options["agent-logs-socket"]), logger)
    client = GrpcClient(unix_path("agent", options["agent"]))
    shim = Shim(client, options["container"], options["exec-id"], options["terminal"], logger)
    with _raw(options["terminal"]):
        status = await shim.run()
    await client.close()
    return status if options["proxy-exit-code"] else 0


def main() -> None:
    """The console script."""
    status = start("kata-shim", FLAGS, run, sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread may still wait for standard input.
    os._exit(status)


if __name__ == "__main__":
    main()
