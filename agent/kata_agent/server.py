"""Requests in, replies out: from frames to the methods of the services.

A handler is a method named like its rpc in snake case.  It gets the request
message and a :class:`Call`; it returns the response, or None when it keeps the
call to answer later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message

from kata_agent import log
from kata_agent.errors import AgentError, describe
from kata_agent.loop import Loop, Timer
from kata_agent.protocol import bulk, codes, ttrpc
from kata_agent.protocol.ttrpc_pb2 import Request, Response

_MAX_OUTSTANDING = 4096
_REQUEST_PAYLOAD, _RESPONSE_PAYLOAD = 3, 2  # numbers of ttrpc.Request.payload and ttrpc.Response.payload
_LARGE = 8 << 10  # bytes; below, copying a field is cheaper than looking for it

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any

    Bytes = bytes | memoryview
    Handler = Callable[[Any, "Call"], Message | None]


class Call:
    """One request that waits for its answer.  Answering twice, or after the host end is gone, does nothing."""

    __slots__ = ("_server", "_stream_id", "_timer", "alive", "data", "method")

    def __init__(self, server: Server, stream_id: int, method: ttrpc.Method) -> None:
        self._server = server
        self._stream_id = stream_id
        self._timer: Timer | None = None
        self.method = method
        self.alive = True  #: an answer still matters
        #: The bytes field that :meth:`Server.keep_apart` named, of a large request; valid until the handler returns.
        self.data: Bytes = b""

    def reply(self, message: Message, data: Sequence[Bytes] = (), field: int = 0) -> None:
        """Answer with the response message.

        :param data: pieces of its bytes field number ``field``, which are not copied.
        """
        size = sum(map(len, data))
        payload = message.SerializeToString()
        if data:
            payload += bulk.head(field, size)
        size += len(payload)
        if size > ttrpc.MAX_PAYLOAD - 64:
            self.fail(codes.RESOURCE_EXHAUSTED, f"the answer has {size} bytes, more than a frame takes")
        elif self.alive:
            self.drop()
            self._server.answer(self._stream_id, bulk.head(_RESPONSE_PAYLOAD, size) + payload, data)

    def done(self) -> None:
        """Answer with an empty response."""
        self.reply(self.method.response())

    def fail(self, code: int, text: str) -> None:
        """Answer with an error."""
        response = Response()
        response.status.code = code
        response.status.message = text
        if self.alive:
            self.drop()
            self._server.answer(self._stream_id, response.SerializeToString())

    def fail_with(self, error: BaseException) -> None:
        """Answer with what an exception says."""
        if isinstance(error, AgentError):
            self.fail(error.code, error.text)
        elif isinstance(error, OSError):
            log.exception(self.method.name, error)
            self.fail(codes.INTERNAL, describe(error))
        else:
            log.exception(self.method.name, error)
            self.fail(codes.INTERNAL, f"{type(error).__name__}: {error}")

    def expire_after(self, seconds: float) -> None:
        """Fail with DEADLINE_EXCEEDED unless it is answered by then."""
        if self.alive:
            text = f"{self.method.name} was not done within {seconds:g} s"
            self._timer = self._server.loop.after(seconds, lambda: self.fail(codes.DEADLINE_EXCEEDED, text))

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        self.alive = False
        if self._timer is not None:
            self._timer.cancel()


class Server:
    """Dispatches frames to handlers.

    :param send: writes the bytes of one frame, in pieces, to the present host end.
    """

    def __init__(self, loop: Loop, send: Callable[[Sequence[Bytes]], None]) -> None:
        self.loop = loop
        self._send = send
        self._methods: dict[tuple[str, str], tuple[ttrpc.Method, Handler]] = {}
        self._services: set[str] = set()
        self._calls: dict[int, Call] = {}
        self._apart: dict[tuple[str, str], int] = {}

    def keep_apart(self, service: str, rpc: str, field: int) -> None:
        """Do not copy the bytes field number ``field`` of this rpc's large requests: it is :attr:`Call.data`."""
        self._apart[service, rpc] = field

    def register(self, files: Iterable[FileDescriptor], service: str, handlers: object) -> None:
        """Serve ``service`` with the methods of ``handlers``.

        :raise AttributeError: an rpc has no handler.
        """
        for (name, rpc), method in ttrpc.method_table(files).items():
            if name == service:
                self._methods[name, rpc] = (method, getattr(handlers, snake_case(rpc)))
        self._services.add(service)

    def reset(self) -> None:
        """A new host end: forget the requests of the old one."""
        for call in self._calls.values():
            call.drop()
        self._calls.clear()

    def on_frame(self, frame: ttrpc.Frame) -> None:
        """Serve one frame."""
        if frame.type != ttrpc.REQUEST:
            log.warning(f"ignoring {frame}: only unary requests are served")
            return
        stream_id = frame.stream_id
        payload: Bytes = frame.payload
        large = len(payload) > _LARGE
        try:
            if large:
                envelope, payload = bulk.cut_out(memoryview(payload), _REQUEST_PAYLOAD)
                request = Request.FromString(envelope)
            else:
                request = Request.FromString(bytes(payload))
                payload = request.payload
        except (DecodeError, bulk.WireError):
            self._refuse(stream_id, codes.INVALID_ARGUMENT, "the request is no ttRPC message")
            return
        entry = self._methods.get((request.service, request.method))
        if entry is None:
            kind = "method" if request.service in self._services else "service"
            self._refuse(stream_id, codes.UNIMPLEMENTED, f"unknown {kind} {request.service}/{request.method}"[:512])
            return
        if stream_id in self._calls:
            self._refuse(stream_id, codes.INVALID_ARGUMENT, f"stream id {stream_id} is in use")
            return
        if len(self._calls) >= _MAX_OUTSTANDING:
            self._refuse(stream_id, codes.RESOURCE_EXHAUSTED, f"more than {_MAX_OUTSTANDING} requests are unanswered")
            return
        method, handler = entry
        call = self._calls[stream_id] = Call(self, stream_id, method)
        try:
            apart = self._apart.get((request.service, request.method))
            if large and apart is not None:
                payload, call.data = bulk.cut_out(memoryview(payload), apart)
            message = method.request.FromString(bytes(payload))
        except (DecodeError, bulk.WireError):
            call.fail(codes.INVALID_ARGUMENT, f"the request is no {method.request.DESCRIPTOR.full_name}")
            return
        log.debug(f"request {stream_id} {method.name}")
        try:
            answer = handler(message, call)
        except Exception as error:
            call.fail_with(error)
            return
        finally:
            call.data = b""
        if answer is not None:
            call.reply(answer)
        elif request.timeout_nano > 0:
            call.expire_after(request.timeout_nano / 1e9)

    def answer(self, stream_id: int, response: bytes, data: Sequence[Bytes] = ()) -> None:
        """Send a serialized response, which ends with ``data``, and forget the request."""
        self._calls.pop(stream_id, None)
        size = len(response) + sum(map(len, data))
        self._send((ttrpc.HEADER.pack(size, stream_id, ttrpc.RESPONSE, 0) + response, *data))

    def _refuse(self, stream_id: int, code: int, text: str) -> None:
        """Answer a request that was never recorded."""
        response = Response()
        response.status.code = code
        response.status.message = text
        self._send((ttrpc.encode(stream_id, ttrpc.RESPONSE, response.SerializeToString()),))


def snake_case(name: str) -> str:
    """``GetOOMEvent`` -> ``get_oom_event``, ``OnlineCPUMem`` -> ``online_cpu_mem``."""
    result = []
    for index, char in enumerate(name):
        if char.isupper() and index:
            before = name[index - 1]
            after = name[index + 1] if index + 1 < len(name) else ""
            if not before.isupper() or (after and after.islower()):
                result.append("_")
        result.append(char.lower())
    return "".join(result)
