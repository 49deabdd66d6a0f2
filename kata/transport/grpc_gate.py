"""gRPC, both ways; the only import of grpc.

Nobody pays for grpcio who does not use it: 100 ms and 14 MB.  It serves and dials
unix sockets only, so what is no unix socket is carried to one
(:mod:`kata.transport.carry`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from kata.agent_client import METHODS, ChannelClosed, NoAnswer, printable
from kata.errors import GuestError, KataError
from kata.transport.carry import Carrier, End, SocketEnd

UNAVAILABLE = 14
MAX_MESSAGE = 4 << 20  #: bytes


class Caller(Protocol):
    """An agent that takes requests as they are."""

    async def call_raw(self, service: str, method: str, payload: bytes, timeout: float | None) -> bytes: ...


#: Waits until there is an agent.
Reach = Callable[[], Awaitable[Caller]]


class LazyServer:
    """A gRPC server on ``path`` that starts when it is first asked for."""

    def __init__(self, path: str, reach: Reach) -> None:
        self.path = path
        self._reach = reach
        self._server: Any = None
        self._starting = asyncio.Lock()

    async def connect(self) -> End:
        """A connection to it."""
        async with self._starting:
            if self._server is None:
                self._server = await serve(self.path, self._reach)
        return SocketEnd(*await asyncio.open_unix_connection(self.path))

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
        with suppress(FileNotFoundError):
            os.unlink(self.path)


class AgentSocket:
    """``agent.sock`` of a sandbox: Kata 1.x's runtime and shim speak ``grpc.AgentService`` to such a socket.

    The server has a socket of its own, to which the clients' bytes are carried.
    """

    def __init__(self, path: str, reach: Reach, report: Callable[[str], None]) -> None:
        self._server = LazyServer(path.replace("agent.sock", "grpc.sock"), reach)
        self._carrier = Carrier(path, self._server.connect, report)

    async def close(self) -> None:
        self._carrier.close()
        await self._server.close()


async def serve(path: str, reach: Reach) -> Any:
    """A gRPC server on ``path`` that hands every rpc to the agent as it is."""
    import grpc
    from grpc import aio

    codes = {code.value[0]: code for code in grpc.StatusCode}

    def handler(service: str, method: str) -> Any:
        async def forward(payload: bytes, context: Any) -> bytes:
            remaining = context.time_remaining()
            try:
                return await (await reach()).call_raw(service, method, payload, remaining)
            except GuestError as e:
                await context.abort(codes.get(e.code, grpc.StatusCode.UNKNOWN), e.text)
            except NoAnswer as e:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, e.text)
            except KataError as e:
                await context.abort(codes[UNAVAILABLE], str(e))
            return b""

        return grpc.unary_unary_rpc_method_handler(forward)

    server = aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE)])
    services: dict[str, dict[str, Any]] = {}
    for service, method in METHODS:
        services.setdefault(service, {})[method] = handler(service, method)
    for service, handlers in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    os.chmod(path, 0o600)
    return server


class GrpcClient:
    """A gRPC client of whoever serves on the unix socket ``path``; a :class:`Caller`."""

    def __init__(self, path: str) -> None:
        import grpc
        from grpc import aio

        self._deadline = grpc.StatusCode.DEADLINE_EXCEEDED
        self._unavailable = grpc.StatusCode.UNAVAILABLE
        self._error = aio.AioRpcError
        self._channel = aio.insecure_channel(f"unix:{path}", options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.enable_http_proxy", 0)])

    async def call_raw(self, service: str, method: str, payload: bytes, timeout: float | None) -> bytes:
        """One request and its reply, both serialized; with a time, that for the server to be there included.

        :param timeout: seconds; None for requests that wait for an event.
        :raise GuestError: the agent refused.
        :raise ChannelClosed: the connection broke.
        :raise NoAnswer: not in time.
        """
        call = self._channel.unary_unary(f"/{service}/{method}")
        try:
            reply: bytes = await call(payload, timeout=timeout, wait_for_ready=timeout is not None)
        except self._error as e:
            text = printable(e.details() or "")
            if e.code() == self._deadline and timeout is not None:
                raise NoAnswer(f"the agent did not answer {method} within {timeout:g} s") from e
            if e.code() == self._unavailable:
                raise ChannelClosed(f"{method}: {text or 'the connection to the agent broke'}") from e
            raise GuestError(text or f"{method} failed", code=e.code().value[0]) from e
        return reply

    async def close(self) -> None:
        await self._channel.close(None)
