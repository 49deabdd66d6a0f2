"""The first requests to a guest's agent, sent before asyncio is imported: the guest works on them meanwhile.

Whoever connects for good (:class:`kata.agent_client.AgentClient`) goes on with the connection and gets the answers.
"""

from __future__ import annotations

import os

from kata.errors import VmError
from kata.wire import UnixSocket
from kata_agent.protocol import ttrpc as frames
from kata_agent.protocol import ttrpc_pb2

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from google.protobuf.message import Message

#: The deadline of an ordinary request, seconds.  Emulated guests are slow; verbs wait longer, so that
#: they can say who did not answer.
TIMEOUT = 30.0
CONNECT_TIMEOUT = 10.0  #: seconds


class Greeting:
    """A connection to the agent on which requests were sent, and nothing was read yet."""

    def __init__(self, path: str, token: str) -> None:
        """Connect to the channel's socket at ``path`` and begin the handshake.

        :raise VmError: QEMU is gone.
        """
        self.handshake = frames.HostHandshake(bytes.fromhex(token), os.urandom(frames.NONCE_SIZE))
        self.streams: dict[str, int] = {}  #: method -> stream of its answer
        self.sock = UnixSocket()
        try:
            self.sock.dial(path, CONNECT_TIMEOUT)
            self.sock.sendall(self.handshake.greeting)
        except OSError as e:
            self.sock.close()
            raise VmError(f"cannot connect to the agent channel {path}: {e.strerror or e}") from e

    def ask(self, service: str, method: str, request: Message) -> None:
        """Send one request.

        :raise VmError: QEMU is gone, or takes nothing.
        """
        stream = self.streams[method] = 1 + 2 * len(self.streams)
        try:
            self.sock.sendall(request_frame(stream, service, method, request.SerializeToString(), TIMEOUT))
        except OSError as e:
            self.sock.close()
            raise VmError(f"QEMU does not take what the agent is asked: {e.strerror or e}") from e


def request_frame(stream: int, service: str, method: str, payload: bytes, timeout: float | None) -> bytes:
    """A request of ttRPC.

    :param timeout: seconds after which nobody waits for the answer any more; None: somebody does.
    """
    envelope = ttrpc_pb2.Request(service=service, method=method, payload=payload)
    if timeout is not None:
        envelope.timeout_nano = int(timeout * 1e9)
    return frames.encode(stream, frames.REQUEST, envelope.SerializeToString())
