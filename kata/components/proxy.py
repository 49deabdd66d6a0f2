"""``kata-proxy``: a Kata 1.x runtime's way to the agent of a guest.

The runtime starts it with the socket of the machine's serial port and expects
gRPC at another.  With a Kata 1.x agent in the guest each connection is a yamux
stream; with ours, which speaks ttRPC, a gRPC server translates.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from kata.agent_client import AgentClient
from kata.components.common import Logger, follow_console, start, unix_path
from kata.components.flags import Flags
from kata.errors import VmError
from kata.transport import yamux
from kata.transport.carry import Carrier, End
from kata.transport.detect import who_answers
from kata.transport.grpc_gate import LazyServer

FLAGS: Flags = {
    "listen-socket": ("", "unix socket to serve gRPC on, e.g. unix:///run/proxy.sock"),
    "mux-socket": ("", "unix socket of the machine's serial port"),
    "agent-logs-socket": ("", "unix socket of the guest's console, whose lines are logged"),
    "sandbox": ("", "id of the sandbox, for the log"),
    "log": ("warn", "level of the log: debug, info, warn, error, fatal or panic"),
    "debug": (False, "log everything"),
    "version": (False, "show the version and exit"),
}
AGENT_TIMEOUT = 300.0  #: seconds until the guest's agent must have answered; its runtime gives up before


class _Ours:
    """Our agent: ttRPC on the port, and a gRPC server."""

    def __init__(self, port: str, token: str, inner: str) -> None:
        self._client = AgentClient(port, token)
        self._server = LazyServer(inner, self._reach)

    async def _reach(self) -> AgentClient:
        return self._client

    async def start(self) -> None:
        await self._client.connect()

    async def connect(self) -> End:
        return await self._server.connect()

    async def ended(self) -> str:
        await self._client.wait_closed()
        return "the agent channel closed"

    async def close(self) -> None:
        await self._server.close()
        await self._client.close()


class _Kata1:
    """A Kata 1.x agent."""

    def __init__(self, session: yamux.Session) -> None:
        self._session = session
        self._heart: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._heart = asyncio.ensure_future(self._session.heartbeat())

    async def connect(self) -> End:
        return self._session.open()

    async def ended(self) -> str:
        await self._session.closed.wait()
        return self._session.reason

    async def close(self) -> None:
        self._session.close()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)


async def run(options: dict[str, Any]) -> int:
    """Carry until a signal ends it (0) or the guest's end goes (1).

    :raise KataError: it cannot begin.
    """
    logger = Logger("kata-proxy", "debug" if options["debug"] else options["log"], sandbox=options["sandbox"])
    listen = unix_path("listen-socket", options["listen-socket"])
    port = unix_path("mux-socket", options["mux-socket"])
    console = None
    if options["agent-logs-socket"]:
        console = await follow_console(unix_path("agent-logs-socket", options["agent-logs-socket"]), logger)
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    there: asyncio.Future[_Ours | _Kata1] = loop.create_future()

    async def far() -> End:
        return await (await asyncio.shield(there)).connect()

    # Runtimes connect at once; the guest may still boot.
    carrier = Carrier(listen, far, logger.warning)
    stop = asyncio.ensure_future(told.wait())
    guest = asyncio.ensure_future(_serve(port, f"{listen}.grpc", there, logger))
    try:
        await asyncio.wait({stop, guest}, return_when=asyncio.FIRST_COMPLETED)
        if told.is_set():
            logger.write("info", "ended by a signal")
            return 0
        logger.write("error", guest.result())
        return 1
    finally:
        carrier.close()
        for task in (stop, guest, console):
            if task is not None:
                task.cancel()
        await asyncio.gather(guest, return_exceptions=True)
        there.cancel()


async def _serve(port: str, inner: str, there: asyncio.Future[_Ours | _Kata1], logger: Logger) -> str:
    """Serve the guest until it ends; why it has."""
    try:
        async with asyncio.timeout(AGENT_TIMEOUT):
            found = await who_answers(port)
            agent = _Kata1(found) if isinstance(found, yamux.Session) else _Ours(port, found, inner)
            await agent.start()
    except TimeoutError as e:
        raise VmError(f"no agent answered on {port} within {AGENT_TIMEOUT:g} s") from e
    logger.write("info", f"{'a Kata 1.x agent' if isinstance(agent, _Kata1) else 'our agent'} answers on {port}")
    there.set_result(agent)
    try:
        return await agent.ended()
    finally:
        await agent.close()


def main() -> None:
    """The console script."""
    sys.exit(start("kata-proxy", FLAGS, run, sys.argv[1:]))


if __name__ == "__main__":
    main()
