"""A malicious guest at the other end of the channel: it can break its own connection and nothing else."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kata import wire
from kata.agent_client import AgentClient, ChannelClosed
from kata.errors import GuestError, VmError
from kata.greeting import Greeting
from kata.proxy.streams import CHUNK, WINDOW, Attachment
from kata_agent.protocol import agent_pb2, guest_pb2, health_pb2, ttrpc, ttrpc_pb2

TOKEN = "ab" * 32
HELLO = 32 + 10 + 16  # token, header and nonce of the greeting


class Peer:
    """What the guest's end does with a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def greet(self) -> None:
        greeting = await self.reader.readexactly(HELLO)
        self.writer.write(greeting[32:])

    async def request(self) -> int:
        """Read one request; its stream."""
        header = await self.reader.readexactly(10)
        length, stream, _type, _flags = ttrpc.HEADER.unpack(header)
        await self.reader.readexactly(length)
        return int(stream)

    def answer(self, stream: int, payload: bytes = b"", code: int = 0, message: str = "", type: int = 2) -> None:
        response = ttrpc_pb2.Response(payload=payload)
        response.status.code, response.status.message = code, message
        self.writer.write(ttrpc.encode(stream, type, response.SerializeToString()))


SERVING = health_pb2.HealthCheckResponse(status=1).SerializeToString()


def against(guest: Callable[[Peer], Awaitable[None]], host: Callable[[AgentClient], Awaitable[None]],
            greets: tuple[str, ...] = ()) -> None:
    """Run ``host`` with a client whose peer is ``guest``; ten seconds at most.

    :param greets: what is asked before the client is there.
    """
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            peers: list[asyncio.Task[None]] = []

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                async def run() -> None:
                    await guest(Peer(reader, writer))

                peers.append(asyncio.ensure_future(run()))

            server = await asyncio.start_unix_server(serve, f"{folder}/channel")
            greeting = Greeting(f"{folder}/channel", TOKEN) if greets else None
            for method in greets:
                assert greeting
                greeting.ask("kata.v1.Guest", method, guest_pb2.PersonalizeRequest(hostname="h"))
            client = AgentClient(f"{folder}/channel", TOKEN, greeting)
            try:
                async with asyncio.timeout(10):
                    await client.connect()
                    await host(client)
                    assert client._channel and not client._channel.pending, "a request was forgotten"
            finally:
                for peer in peers:
                    peer.cancel()
                await client.close()
                server.close()

    asyncio.run(main())


async def refuses(client: AgentClient, error: type[Exception], match: str, timeout: float = 5) -> None:
    with pytest.raises(error, match=match):
        await client.check(timeout)


def test_oversized_frame() -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        await peer.request()
        peer.writer.write(ttrpc.HEADER.pack(0xFFFFFFFF, 1, 2, 0))

    async def host(client: AgentClient) -> None:
        await refuses(client, ChannelClosed, "broke the protocol")
        await refuses(client, ChannelClosed, "closed")

    against(guest, host)


def test_answers_to_nobody() -> None:
    """Unknown streams, other types, a second answer: dropped; the right one is found among them."""
    async def guest(peer: Peer) -> None:
        await peer.greet()
        for _ in range(2):
            stream = await peer.request()
            for other in (0, stream + 1, 0xFFFFFFFF):
                peer.answer(other, b"x" * 1000)
            peer.answer(stream, b"not this", type=1)
            peer.answer(stream + 2, SERVING)
            peer.answer(stream, SERVING)
            peer.answer(stream, b"again")

    async def host(client: AgentClient) -> None:
        await client.check(5)
        await client.check(5)

    against(guest, host)


@pytest.mark.parametrize("inner", [False, True])
def test_garbage_protobuf(inner: bool) -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        stream = await peer.request()
        if inner:
            peer.answer(stream, b"\xff\xff\xff")
        else:
            peer.writer.write(ttrpc.encode(stream, ttrpc.RESPONSE, b"\xff\xff\xff"))
        peer.answer(await peer.request(), SERVING)

    async def host(client: AgentClient) -> None:
        await refuses(client, VmError, "answer to Check cannot be read")
        await client.check(5)

    against(guest, host)


def test_never_answers() -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        while True:
            await peer.request()

    async def host(client: AgentClient) -> None:
        await refuses(client, VmError, r"did not answer Check within 0\.05 s", 0.05)

    against(guest, host)


def test_never_reads() -> None:
    """Requests that do not fit into the channel's buffers time out as well."""
    async def guest(peer: Peer) -> None:
        await peer.greet()
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    async def host(client: AgentClient) -> None:
        data = guest_pb2.WriteRequest(container_id="c", data=bytes(2 << 20))
        for _ in range(3):
            with pytest.raises(VmError, match=r"did not answer WriteStream within 0\.05 s"):
                await client.guest("WriteStream", data, 0.05)

    against(guest, host)


def test_flood_before_the_greeting() -> None:
    async def guest(peer: Peer) -> None:
        greeting = await peer.reader.readexactly(HELLO)
        for _ in range(256):
            peer.writer.write(bytes(1 << 16))
            await peer.writer.drain()
        peer.writer.write(greeting[32:])
        peer.answer(await peer.request(), SERVING)

    async def host(client: AgentClient) -> None:
        await client.check(5)

    against(guest, host)


def test_error_text_is_printable_and_short() -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        peer.answer(await peer.request(), code=13, message="\x1b]0;owned\x07" + "x" * (3 << 20))

    async def host(client: AgentClient) -> None:
        with pytest.raises(GuestError) as info:
            await client.check(5)
        assert len(info.value.text) <= 4096
        assert "\x1b" not in info.value.text

    against(guest, host)


def test_ends_in_the_middle_of_a_frame() -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        stream = await peer.request()
        peer.writer.write(ttrpc.encode(stream, ttrpc.RESPONSE, bytes(100))[:50])
        peer.writer.close()

    async def host(client: AgentClient) -> None:
        await refuses(client, ChannelClosed, "closed")

    against(guest, host)


def test_huge_counts() -> None:
    """A full frame of empty elements is read within its bounds."""
    payload = agent_pb2.Interfaces.DESCRIPTOR.fields[0].number << 3 | 2

    async def guest(peer: Peer) -> None:
        await peer.greet()
        peer.answer(await peer.request(), bytes([payload, 0]) * (1 << 20))

    async def host(client: AgentClient) -> None:
        reply = await client.agent("ListInterfaces", agent_pb2.ListInterfacesRequest(), 8)
        assert len(reply.Interfaces) == 1 << 20

    against(guest, host)


def test_floods_of_name_queries() -> None:
    """A guest that asks and takes no answer keeps few tasks of the proxy busy."""
    from kata.proxy.network import DNS_OUTSTANDING, Network

    class Silent:
        outstanding = 0

        async def guest(self, *_args: Any) -> None:
            self.outstanding += 1
            await asyncio.sleep(60)

    async def main() -> None:
        agent = Silent()
        network = Network(None, None, agent, None)  # type: ignore[arg-type]
        query = guest_pb2.DnsQuery(id=1, server="10.0.0.1", query=b"x" * 100)
        tasks = [asyncio.ensure_future(network.answer_dns(query)) for _ in range(5000)]
        await asyncio.sleep(0.1)
        assert agent.outstanding == DNS_OUTSTANDING
        assert sum(not task.done() for task in tasks) == DNS_OUTSTANDING
        for task in tasks:
            task.cancel()

    asyncio.run(main())


# --- streams ------------------------------------------------------------------------------


class Link:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int, bytes]] = []

    def send(self, *frame: bytes | memoryview) -> None:
        self.sent += wire.Decoder().feed(b"".join(frame))

    async def drain(self) -> None:
        pass


class Guest:
    """An agent whose answers are given."""

    def __init__(self, read: Callable[[Any], Any], write: Callable[[Any], Any] | None = None) -> None:
        self.read = read
        self.write = write

    async def guest(self, method: str, request: Any, timeout: float | None = None) -> Any:
        await asyncio.sleep(0)
        if method == "ReadStream":
            return self.read(request)
        assert self.write is not None
        return self.write(request)


def attached(agent: Guest, link: Link, seconds: float = 2, *, ended: bool = False,
             stdin: bytes = b"") -> int:
    async def main() -> int:
        status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if ended:
            status.set_result(3)
        attachment = Attachment(agent, "c", "c", link, (0, 0, 0), True, status)  # type: ignore[arg-type]
        if stdin:
            attachment.on_stdin(0, stdin, False)
        async with asyncio.timeout(seconds):
            return await attachment.run(lambda: None)

    return asyncio.run(main())


@pytest.mark.parametrize("reply", [
    guest_pb2.ReadResponse(offset=5, data=b"x"), guest_pb2.ReadResponse(offset=(1 << 64) - 1, data=b"x"),
    guest_pb2.ReadResponse(offset=0, data=bytes(CHUNK + 1))], ids=["gap", "far", "too much"])
def test_output_that_was_not_asked_for(reply: guest_pb2.ReadResponse) -> None:
    link = Link()
    with pytest.raises(wire.ProtocolError, match="the agent answered bytes"):
        attached(Guest(lambda _request: reply), link, ended=True)
    assert not [frame for frame in link.sent if frame[0] == wire.DATA]


def test_output_without_end() -> None:
    """No more is on its way to a shim than it acknowledges."""
    link = Link()
    with pytest.raises(TimeoutError):
        attached(Guest(lambda r: guest_pb2.ReadResponse(offset=r.offset, data=bytes(CHUNK))), link, 0.2)
    assert sum(len(payload) - 8 for kind, _f, payload in link.sent if kind == wire.DATA) <= WINDOW


def test_acknowledgement_of_what_was_never_sent() -> None:
    """Whatever number comes, a shim keeps what it has not sent."""
    link = Link()

    def read(_request: Any) -> Any:
        raise VmError("nothing")

    with pytest.raises((TimeoutError, VmError)):
        attached(Guest(lambda r: guest_pb2.ReadResponse(offset=r.offset),
                       lambda _r: guest_pb2.WriteResponse(received=(1 << 64) - 1)), link, 0.2, stdin=b"abc")
    (ack,) = [payload for kind, _f, payload in link.sent if kind == wire.ACK]
    from kata.shim import Shim

    shim = Shim("/nonexistent", "c", "c", terminal=True)
    shim.stdin_sent = 3
    shim._acked(wire.OFFSET.unpack(ack)[0])
    assert shim.stdin_acked == 3


def test_what_was_asked_before_is_answered() -> None:
    """The answers of a greeting are found among others', a refusal too; then streams go on."""
    async def guest(peer: Peer) -> None:
        await peer.greet()
        first, second = await peer.request(), await peer.request()
        peer.answer(second, code=13, message="no room")
        peer.answer(first)
        assert await peer.request() not in (first, second)
        peer.answer(5, SERVING)

    async def host(client: AgentClient) -> None:
        await client.answer("Personalize", 5)
        with pytest.raises(GuestError, match="no room"):
            await client.answer("CreateSandbox", 5)
        await client.check(5)

    against(guest, host, ("Personalize", "CreateSandbox"))


def test_what_was_asked_before_is_never_answered() -> None:
    async def silent(peer: Peer) -> None:
        await peer.greet()
        await peer.request()

    async def host(client: AgentClient) -> None:
        with pytest.raises(VmError, match="did not answer Personalize within"):
            await client.answer("Personalize", 0.05)

    against(silent, host, ("Personalize",))

    async def gone(peer: Peer) -> None:
        await peer.greet()
        peer.writer.close()

    async def hears(client: AgentClient) -> None:
        with pytest.raises(ChannelClosed):
            await client.answer("Personalize", 5)

    against(gone, hears, ("Personalize",))
