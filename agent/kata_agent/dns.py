"""A relay for name servers that listen on the host network namespace's loopback.

Docker's resolver is on 127.0.0.11 of the container's network namespace, which
in a guest is another kernel's loopback.  So the agent listens there, and the
host asks the real one (Event.dns_query, Guest.AnswerDns).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kata_agent import log
from kata_agent.errors import internal, invalid
from kata_agent.events import Events
from kata_agent.linux.light import socket
from kata_agent.loop import EPOLLIN, Loop, Timer
from kata_agent.protocol import guest_pb2

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_PORT = 53
_TIMEOUT = 10.0  # seconds for one answer; resolvers ask again after 5
_IDLE = 30.0  # seconds a TCP connection may be silent
_MAX_OUTSTANDING = 256
_MAX_CONNECTIONS = 64
_MAX_ADDRESSES = 16
_HEADER = 12  # bytes of a DNS message's header (RFC 1035, 4.1.1)
_SERVFAIL = 2


class _Pending:
    __slots__ = ("query", "reply", "timer")

    def __init__(self, query: bytes, reply: Callable[[bytes], None], timer: Timer) -> None:
        self.query = query
        self.reply = reply
        self.timer = timer


class DnsRelay:
    """Sockets on port 53 in the sandbox's network namespace.

    :param inside: makes a context in which sockets belong to that namespace.
    """

    def __init__(self, loop: Loop, events: Events, inside: Callable[[], AbstractContextManager[None]]) -> None:
        self._loop = loop
        self._events = events
        self._inside = inside
        self._sockets: dict[str, tuple[socket.socket, socket.socket]] = {}
        self._pending: dict[int, _Pending] = {}
        self._connections: dict[int, _Connection] = {}
        self._next = 0

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Listen on exactly these addresses.

        :raise AgentError: INVALID_ARGUMENT, one is not in 127.0.0.0/8; INTERNAL, it cannot be bound.
        """
        wanted = set(addresses)
        if len(wanted) > _MAX_ADDRESSES:
            raise invalid(f"more than {_MAX_ADDRESSES} name servers")
        for address in wanted:
            try:
                loopback = socket.inet_pton(socket.AF_INET, address)[0] == 127
            except OSError:
                loopback = False
            if not loopback:
                raise invalid(f"{address!r} is not in 127.0.0.0/8")
        for address in set(self._sockets) - wanted:
            for sock in self._sockets.pop(address):
                self._loop.remove(sock.fileno())
                sock.close()
        for address in wanted - set(self._sockets):
            try:
                self._listen(address)
            except OSError as error:
                raise internal(f"cannot serve names on {address}: {error.strerror}") from None

    def _listen(self, address: str) -> None:
        with self._inside():
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for sock in (udp, tcp):
                sock.setblocking(False)
                sock.bind((address, _PORT))
            tcp.listen(16)
        except BaseException:
            udp.close()
            tcp.close()
            raise
        self._sockets[address] = (udp, tcp)
        self._loop.add(udp.fileno(), EPOLLIN, lambda _events: self._datagram(udp, address))
        self._loop.add(tcp.fileno(), EPOLLIN, lambda _events: self._accept(tcp, address))

    # --- queries -------------------------------------------------------------------------

    def _datagram(self, udp: socket.socket, server: str) -> None:
        try:
            query, client = udp.recvfrom(65535)
        except OSError:
            return

        def reply(answer: bytes) -> None:
            try:
                udp.sendto(answer, client)
            except OSError as error:
                log.debug(f"dns answer to {client}: {error.strerror}")

        self.ask(server, False, query, reply)

    def ask(self, server: str, tcp: bool, query: bytes, reply: Callable[[bytes], None]) -> None:
        """Have the host answer ``query``; ``reply`` gets the answer, or SERVFAIL in time."""
        if len(query) < _HEADER:
            return
        if len(self._pending) >= _MAX_OUTSTANDING:
            reply(failure(query))
            return
        self._next += 1
        number = self._next
        timer = self._loop.after(_TIMEOUT, lambda: self.answer(number, b""))
        self._pending[number] = _Pending(query, reply, timer)
        event = guest_pb2.Event()
        event.dns_query.id = number
        event.dns_query.server = server
        event.dns_query.tcp = tcp
        event.dns_query.query = query
        self._events.add(event)

    def answer(self, number: int, answer: bytes) -> None:
        """Pass on the host's answer; an empty one becomes SERVFAIL, a late one is dropped."""
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        pending.timer.cancel()
        pending.reply(answer or failure(pending.query))

    # --- TCP -------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, server: str) -> None:
        try:
            sock, _address = listener.accept()
        except OSError:
            return
        if len(self._connections) >= _MAX_CONNECTIONS:
            sock.close()
            return
        connection = _Connection(self, self._loop, sock, server)
        self._connections[sock.fileno()] = connection

    def closed(self, fd: int) -> None:
        """A TCP connection is gone."""
        self._connections.pop(fd, None)


class _Connection:
    """One TCP client: messages with a length in front (RFC 1035, 4.2.2), one at a time."""

    def __init__(self, relay: DnsRelay, loop: Loop, sock: socket.socket, server: str) -> None:
        self._relay = relay
        self._loop = loop
        self._sock = sock
        self._server = server
        self._buffer = b""
        self._open = True
        self._asking = False
        sock.setblocking(False)
        self._timer = loop.after(_IDLE, self.close)
        loop.add(sock.fileno(), EPOLLIN, self._readable)

    def _readable(self, _events: int) -> None:
        try:
            data = self._sock.recv(65537)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(self._buffer) > 1 << 17:
            self.close()
            return
        self._buffer += data
        self._next()

    def _next(self) -> None:
        if self._asking or len(self._buffer) < 2:
            return
        size = int.from_bytes(self._buffer[:2], "big")
        if len(self._buffer) < 2 + size:
            return
        query, self._buffer = self._buffer[2 : 2 + size], self._buffer[2 + size :]
        if len(query) < _HEADER:
            self.close()
            return
        self._asking = True
        self._relay.ask(self._server, True, query, self._reply)

    def _reply(self, answer: bytes) -> None:
        self._asking = False
        if not self._open:
            return
        self._timer.cancel()
        self._timer = self._loop.after(_IDLE, self.close)
        try:
            # An answer fits into an empty socket's buffer; a client that does not read loses its connection.
            message = len(answer).to_bytes(2, "big") + answer
            if self._sock.send(message) != len(message):
                self.close()
                return
        except OSError:
            self.close()
            return
        self._next()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._timer.cancel()
        fd = self._sock.fileno()
        self._loop.remove(fd)
        self._sock.close()
        self._relay.closed(fd)


def failure(query: bytes) -> bytes:
    """The answer "server failure" to ``query``: its id and question, no records."""
    flags = query[2] | 0x80, query[3] & 0x70 | 0x80 | _SERVFAIL  # QR; RA and the code
    return query[:2] + bytes(flags) + query[4:6] + bytes(6) + query[_HEADER:]
