"""Which agent a guest holds, for whoever was not told.

A guest says nothing by itself, and may take long to boot, so silence means
nothing either: both agents have to answer one and the same question.  It is a
yamux PING.  A Kata 1.x agent, a yamux server, answers it with the ACK that the
specification asks for and is none the worse.  Ours, if its kernel command line
had no token, answers with a HELLO frame, which holds the token to greet it with
(:mod:`kata_agent.protocol.ttrpc`).  The answers differ in their second byte.
Once it was greeted it answers no more, since such bytes may be anybody's data
then: the first to ask is the one to serve this machine, until it ends.
"""

from __future__ import annotations

import asyncio
import socket

from kata.agent_client import ChannelClosed
from kata.errors import VmError
from kata.transport import yamux
from kata_agent.protocol import ttrpc

_PONG = yamux.pack(yamux.PING, yamux.ACK, 0, int.from_bytes(ttrpc.PROBE[-4:], "big"))


async def who_answers(path: str) -> yamux.Session | str:
    """Wait for the agent behind the unix socket ``path``, as long as the caller lets it.

    :return: the session with a Kata 1.x agent, on that very connection; of ours the token in hexadecimal.
    :raise ChannelClosed: the machine's end is not there, or went.
    :raise VmError: something else answers.
    """
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        try:
            sock.connect(path)
        except OSError as e:
            raise ChannelClosed(f"cannot connect to the guest's port {path}: {e.strerror}") from e
        sock.setblocking(False)
        await loop.sock_sendall(sock, ttrpc.PROBE)
        head = await _exactly(sock, ttrpc.HEADER.size)
        if head == ttrpc.HELLO_HEADER:
            return (await _exactly(sock, ttrpc.TOKEN_SIZE)).hex()
        if head + await _exactly(sock, len(_PONG) - len(head)) != _PONG:
            raise VmError("what answers in the guest is neither a Kata 1.x agent nor ours")
        session = yamux.Session(client=True)
        await loop.create_connection(lambda: session, sock=sock.dup())
        return session
    finally:
        sock.close()


async def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    try:
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
            if not more:
                raise ConnectionResetError
            data += more
    except ConnectionError as e:
        raise ChannelClosed("the guest's end of the port closed before an agent answered") from e
    return data
