"""``agent.sock``: the agent's services for any gRPC client; the only import of grpc.

Kata 1.x's runtime and shim speak ``grpc.AgentService`` over a unix socket to
their proxy.  Nobody pays for grpcio who does not use it: it is imported when
the first client connects, and serves on a socket of its own to which the
clients' bytes are carried.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kata.agent_client import METHODS, NoAnswer
from kata.errors import GuestError, KataError
from kata.proxy.log import log
from kata.wire import listening_socket

if TYPE_CHECKING:
    from kata.proxy.sandbox import Sandbox

UNAVAILABLE = 14


class AgentSocket:
    """The listening ``agent.sock`` of a sandbox."""

    def __init__(self, path: str, sandbox: Sandbox) -> None:
        self.path = path
        self.inner = path.replace("agent.sock", "grpc.sock")
        self.sandbox = sandbox
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(fileno=listening_socket(path).detach())
        self._listener.setblocking(False)
        self._server: Any = None
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        task = asyncio.ensure_future(self._carry(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket) -> None:
        client.setblocking(False)
        near = await asyncio.open_unix_connection(sock=client)
        writers, copies = [near[1]], set()
        try:
            async with self._starting:
                if self._server is None:
                    self._server = await serve(self.inner, self.sandbox)
            far = await asyncio.open_unix_connection(self.inner)
            writers.append(far[1])
            copies = {asyncio.ensure_future(_copy(near[0], far[1])), asyncio.ensure_future(_copy(far[0], near[1]))}
            # When one end is gone, so is the connection.
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        except OSError as e:
            log(f"agent.sock: {e}")
        finally:
            for task in copies:
                task.cancel()
            for writer in writers:
                writer.close()

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        if self._server is not None:
            await self._server.stop(None)
        for path in (self.path, self.inner):
            with suppress(FileNotFoundError):
                os.unlink(path)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()


async def serve(path: str, sandbox: Sandbox) -> Any:
    """A gRPC server on ``path`` that hands every rpc to the agent as it is."""
    import grpc  # 100 ms and 14 MB that most sandboxes never need
    from grpc import aio

    codes = {code.value[0]: code for code in grpc.StatusCode}

    def handler(service: str, method: str) -> Any:
        async def forward(payload: bytes, context: Any) -> bytes:
            remaining = context.time_remaining()
            try:
                await asyncio.shield(sandbox.ready)
                return await sandbox.agent.call_raw(service, method, payload, remaining)
            except GuestError as e:
                await context.abort(codes.get(e.code, grpc.StatusCode.UNKNOWN), e.text)
            except NoAnswer as e:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, e.text)
            except KataError as e:
                await context.abort(codes[UNAVAILABLE], str(e))
            return b""

        return grpc.unary_unary_rpc_method_handler(forward)

    server = aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
    services: dict[str, dict[str, Any]] = {}
    for service, method in METHODS:
        services.setdefault(service, {})[method] = handler(service, method)
    for service, handlers in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    os.chmod(path, 0o600)
    return server
