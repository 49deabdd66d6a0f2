"""A guest that holds a Kata 1.x agent: gRPC in yamux on the virtio-serial port.

Such an agent has ``grpc.AgentService`` and nothing of ``kata.v1.Guest``.  What
the proxy asks of the second service is answered here:

=================  =============================================================
ReadStream         from a buffer that ReadStdout and ReadStderr fill
WriteStream        WriteStdin, then CloseStdin
WaitProcess        WaitProcess, sent once the outputs have ended: the agent
                   forgets a process, and what it wrote, with its answer.  So an
                   exit is known when nothing holds the outputs open any more, as
                   with Kata 1.x's own shim.
GetEvent           GetOOMEvent, where the agent has it (1.12)
ContainerStats     nothing beyond StatsContainer
GuestStatus        GetGuestDetails: the agent's version
CreateContainer    without the parts of the OCI configuration that Kata 1.x's runtime
                   keeps back; what limits the container among them is reported
PrepareContainer,  refused where the container would not be what was asked for,
PrepareProcess     reported where it would merely be less so
SetDnsRelay,       reported: resolvers at loopback addresses of the host are out
RemoveInterface    of reach; a card that is unplugged goes by itself
ListAll,           refused: a proxy that is gone takes its sandbox along, and
Personalize, ...   there are neither templates nor a pool
=================  =============================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata.agent_client import Agent, ChannelClosed, NoAnswer
from kata.errors import GuestError, KataError, UnsupportedError, VmError
from kata.greeting import TIMEOUT
from kata.transport import yamux
from kata.transport.carry import Carrier, End
from kata.transport.grpc_gate import GrpcClient
from kata_agent.protocol import agent_pb2, guest_pb2, oci_pb2

CHUNK = 64 << 10  #: bytes of one request for output or with input
KEPT = 1 << 20  #: bytes of an output that nobody has acknowledged; a process that writes more waits
UNIMPLEMENTED = 12
_HINT = "use our agent: [agent.kata] transport = \"ttrpc\""
#: Extras whose lack changes nothing, or is the agent's business anyway.
_IMPLIED = {"container_id", "exec_id", "state_json", "has_oom_score_adj", "has_umask", "has_scheduler"}
#: Extras that a container can do without.
_REPORTED = {
    "domainname": "the domain name", "io_priority_class": "the I/O priority", "io_priority": "the I/O priority",
    "scheduler_policy": "the scheduler", "scheduler_nice": "the scheduler", "scheduler_priority": "the scheduler",
    "exec_cpu_affinity": "the CPU affinity", "copy_up": "tmpcopyup",
    "defer_process": "a guest process made at start: it is made at create",
}
#: The rest, by the words for them.
_REFUSED = {
    "seccomp_bpf": "a seccomp filter (disable_guest_seccomp = true leaves it out)", "unified": "resources.unified",
    "start_container_hooks": "startContainer hooks", "join": "a namespace of another container",
    "personality": "personality", "time_offsets": "timeOffsets", "sandbox_pidns_host": "the guest's pid namespace",
    "block_devices": "a block device of the host", "uid_mappings": "idmapped mounts",
    "gid_mappings": "idmapped mounts", "cgroup": "a cgroup of its own for a process",
}
#: Resources that Kata 1.x's runtime keeps back -> what to call them when one was asked for; "": nothing is lost.
_KEPT_BACK = {"Devices": "", "Pids": "pids", "BlockIO": "blockIO", "HugepageLimits": "hugepageLimits",
              "Network": "network"}
_DEFAULT_UMASK = 0o22  # what such an agent's processes have


class _Output:
    """An output of a process: what was read and is not yet acknowledged."""

    def __init__(self) -> None:
        self.start = 0  #: offset of the first byte kept
        self.data = bytearray()
        self.ended = False
        self.unwanted = False  #: nobody reads it any more
        self.moved = asyncio.Event()
        self.room = asyncio.Event()

    def add(self, data: bytes) -> None:
        if self.unwanted:
            self.start += len(data)
        else:
            self.data += data
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def abandon(self) -> None:
        self.unwanted = True
        self.acknowledge(self.start + len(self.data))
        self._wake()

    def acknowledge(self, offset: int) -> None:
        count = min(offset - self.start, len(self.data))
        if count > 0:
            del self.data[:count]
            self.start += count
            self.room.set()

    def _wake(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    async def until_room(self) -> None:
        while len(self.data) >= KEPT:
            self.room.clear()
            await self.room.wait()


class _Process:
    """A process of the guest."""

    def __init__(self, container: str, exec_id: str, terminal: bool) -> None:
        self.ids = {"container_id": container, "exec_id": exec_id}
        self.outputs = {1: _Output()} if terminal else {1: _Output(), 2: _Output()}
        self.taken = 0  #: bytes of standard input that the guest has taken
        self.closed = False  #: it takes no more
        self.writing = asyncio.Lock()
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None


class Kata1Client(Agent):
    """A connection to a Kata 1.x agent.

    :param path: unix socket that is the host's end of the guest's port.
    :param inner: path of the socket that gRPC is given, which this makes.
    :param report: gets a line about what does not hold.
    """

    def __init__(self, path: str, inner: str, report: Callable[[str], None]) -> None:
        self.path = path
        self._inner = inner
        self._report = report
        self._session: yamux.Session | None = None
        self._carrier: Carrier | None = None
        self._client: GrpcClient | None = None
        self._processes: dict[tuple[str, str], _Process] = {}
        self._refused: dict[str, KataError] = {}
        self._events = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- the connection ------------------------------------------------------------------

    async def connect(self) -> None:
        try:
            self._session = session = await yamux.connect(self.path)
        except OSError as e:
            raise ChannelClosed(f"cannot connect to the agent channel {self.path}: {e.strerror}") from e
        try:
            await session.ping()
        except yamux.YamuxError as e:
            raise ChannelClosed(f"the guest's end of the agent channel: {e}") from e

        async def stream() -> End:
            return session.open()

        self._carrier = Carrier(self._inner, stream, self._report)
        self._client = GrpcClient(self._inner)
        self._spawn(session.heartbeat())
        self._spawn(self._watch(session))

    async def _watch(self, session: yamux.Session) -> None:
        await session.closed.wait()
        self._report(f"the agent channel: {session.reason}")
        await self.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        carrier, self._carrier = self._carrier, None
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        if carrier is not None:
            carrier.close()
        if session is not None:
            session.close()
        for process in self._processes.values():
            if not process.status.done():
                process.status.set_exception(ChannelClosed("the agent channel closed"))
                process.status.exception()  # perhaps nobody asks
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)

        def ended(done: asyncio.Task[Any]) -> None:
            self._tasks.discard(done)
            if not done.cancelled():
                done.exception()  # whoever waits for its outcome is told otherwise

        task.add_done_callback(ended)
        return task

    async def call_raw(self, service: str, method: str, payload: bytes, timeout: float | None = TIMEOUT) -> bytes:
        client = self._client
        if client is None:
            raise ChannelClosed("the agent channel is closed")
        return await client.call_raw(service, method, payload, timeout)

    # --- grpc.AgentService ----------------------------------------------------------------

    async def agent(self, method: str, request: Message, timeout: float | None = TIMEOUT) -> Any:
        if isinstance(request, agent_pb2.CreateContainerRequest):
            if (refused := self._refused.pop(request.container_id, None)) is not None:
                raise refused
            by_serial = [s.source for s in request.storages if s.source.startswith("serial:")]
            if by_serial:
                raise _unsupported(f"a disk that is found by its serial number ({by_serial[0][7:]})")
            request = self._for_kata1(request)
        reply = await super().agent(method, request, timeout)
        if isinstance(request, agent_pb2.CreateContainerRequest):
            self._begin(request.container_id, request.exec_id, request.OCI.Process.Terminal)
        elif isinstance(request, agent_pb2.ExecProcessRequest):
            self._begin(request.container_id, request.exec_id, request.process.Terminal)
        elif isinstance(request, agent_pb2.RemoveContainerRequest):
            for key in [key for key in self._processes if key[0] == request.container_id]:
                self._forget(key)
        return reply

    def _for_kata1(self, request: Any) -> Any:
        """The request as Kata 1.x's runtime sends it: its agent lives in the guest's network and cgroup namespaces."""
        sent = agent_pb2.CreateContainerRequest()
        sent.CopyFrom(request)
        sent.OCI.Process.SelinuxLabel = ""
        linux = sent.OCI.Linux
        kept = [oci_pb2.LinuxNamespace(Type=n.Type) for n in linux.Namespaces
                if n.Type not in ("network", "cgroup")]
        del linux.Namespaces[:]
        linux.Namespaces.extend(kept)
        if linux.HasField("Resources"):
            present = {field.name for field, _value in linux.Resources.ListFields()}
            for name in present & set(_KEPT_BACK):
                if _KEPT_BACK[name]:
                    self._report(f"{request.container_id}: a Kata 1.x agent does not limit {_KEPT_BACK[name]}")
                linux.Resources.ClearField(name)
            linux.Resources.CPU.Cpus = linux.Resources.CPU.Mems = ""
        return sent

    def _begin(self, container: str, exec_id: str, terminal: bool) -> None:
        process = self._processes[container, exec_id] = _Process(container, exec_id, terminal)
        process.task = self._spawn(self._follow(process))

    def _forget(self, key: tuple[str, str]) -> None:
        process = self._processes.pop(key, None)
        if process is None:
            return
        if process.task is not None:
            process.task.cancel()
        if not process.status.done():
            process.status.set_exception(GuestError("the process was removed", code=5))
            process.status.exception()

    async def _follow(self, process: _Process) -> None:
        """Read the outputs to their ends, then take the exit status."""
        try:
            await asyncio.gather(*(self._pump(process, number) for number in process.outputs))
            reply = await self.agent("WaitProcess", agent_pb2.WaitProcessRequest(**process.ids), timeout=None)
            if not process.status.done():
                process.status.set_result(reply.status)
        except KataError as e:
            if not process.status.done():
                process.status.set_exception(e)
                process.status.exception()

    async def _pump(self, process: _Process, number: int) -> None:
        output, method = process.outputs[number], "ReadStdout" if number == 1 else "ReadStderr"
        try:
            while True:
                await output.until_room()
                reply = await self.agent(method, agent_pb2.ReadStreamRequest(**process.ids, len=CHUNK), timeout=None)
                if not reply.data:
                    return
                if len(reply.data) > CHUNK:
                    raise VmError(f"the agent answered {len(reply.data)} bytes to {method}, {CHUNK} were asked for")
                output.add(reply.data)
        except GuestError as e:
            if "EOF" not in e.text:  # so it says the end
                self._report(f"{method} of {process.ids['exec_id']}: {e}")
        finally:
            output.end()

    # --- kata.v1.Guest ----------------------------------------------------------------------

    async def guest(self, method: str, request: Any, timeout: float | None = TIMEOUT) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await self._guest(method, request)
        except TimeoutError as e:
            raise NoAnswer(f"the agent did not answer {method} within {timeout:g} s") from e

    async def _guest(self, method: str, request: Any) -> Any:
        match method:
            case "ReadStream":
                return await self._read(request)
            case "WriteStream":
                # Not to be cancelled: what the guest has taken has to be counted.
                return await asyncio.shield(self._spawn(self._write(request)))
            case "WaitProcess":
                process = self._process(request.container_id, request.exec_id)
                return guest_pb2.ExitStatus(status=await asyncio.shield(process.status))
            case "ReleaseProcess":
                self._forget((request.container_id, request.exec_id))
                return Empty()
            case "GetEvent":
                return await self._event()
            case "ContainerStats":
                return guest_pb2.ContainerStatsResponse()
            case "GuestStatus":
                details = await self.agent("GetGuestDetails", agent_pb2.GuestDetailsRequest())
                return guest_pb2.GuestStatusResponse(agent_version=details.agent_details.version)
            case "PrepareContainer" | "PrepareProcess":
                return self._prepare(method, request)
            case "SetDnsRelay":
                if request.addresses:
                    self._report("a Kata 1.x agent relays no name service: the guest cannot reach "
                                 + ", ".join(request.addresses))
                return Empty()
            case "RemoveInterface":
                self._report(f"a Kata 1.x agent removes no interface: {request.hw_addr} is merely unplugged")
                return Empty()
        raise _unsupported({
            "ListAll": "taking over a sandbox whose proxy is gone", "Personalize": "templates and the pool",
            "UpdateUnified": "resources.unified"}.get(method, method))

    def _process(self, container: str, exec_id: str) -> _Process:
        try:
            return self._processes[container, exec_id or container]
        except KeyError:
            raise GuestError(f"there is no process {exec_id} in container {container}", code=5) from None

    async def _read(self, request: Any) -> Any:
        output = self._process(request.container_id, request.exec_id).outputs.get(request.stream)
        if output is None:
            raise GuestError(f"the process has no stream {request.stream}", code=3)
        output.acknowledge(request.ack)
        if request.close:
            output.abandon()
        while not output.unwanted:
            at = request.offset - output.start
            if not 0 <= at <= len(output.data):
                raise GuestError(f"the stream has no byte {request.offset} any more", code=11)
            data = bytes(output.data[at : at + request.max_len])
            last = output.ended and at + len(data) == len(output.data)
            if data or last or request.no_wait:
                return guest_pb2.ReadResponse(offset=request.offset, data=data, eof=last)
            await output.moved.wait()
        return guest_pb2.ReadResponse(offset=request.offset, eof=True)

    async def _write(self, request: Any) -> Any:
        process = self._process(request.container_id, request.exec_id)
        async with process.writing:
            if request.offset > process.taken:
                raise GuestError(f"standard input goes on at {process.taken}, not at {request.offset}", code=11)
            data = memoryview(request.data)[process.taken - request.offset:]
            try:
                while data and not process.closed:
                    reply = await self.agent("WriteStdin", agent_pb2.WriteStreamRequest(
                        **process.ids, data=bytes(data[:CHUNK])), timeout=None)
                    if not 0 < reply.len <= min(CHUNK, len(data)):
                        raise VmError(f"the agent took {reply.len} of {min(CHUNK, len(data))} bytes of standard input")
                    process.taken += reply.len
                    data = data[reply.len:]
                if request.eof and not process.closed:
                    process.closed = True
                    await self.agent("CloseStdin", agent_pb2.CloseStdinRequest(**process.ids))
                    return guest_pb2.WriteResponse(received=process.taken)
            except GuestError as e:
                self._report(f"standard input of {process.ids['exec_id']}: {e}")
                process.closed = True
            return guest_pb2.WriteResponse(received=process.taken, closed=process.closed)

    async def _event(self) -> Any:
        try:
            reply = await self.agent("GetOOMEvent", agent_pb2.GetOOMEventRequest(), timeout=None)
        except GuestError as e:
            if e.code != UNIMPLEMENTED:
                raise
            self._report("this agent does not tell when a container runs out of memory")
            await asyncio.get_running_loop().create_future()  # there is never an event
        self._events += 1
        return guest_pb2.Event(seq=self._events, oom=guest_pb2.Oom(container_id=reply.container_id))

    def _prepare(self, method: str, request: Any) -> Any:
        missing = list(_extras(request))
        for field, value in missing:
            what = f"umask {value:#o}" if field == "umask" and value != _DEFAULT_UMASK else _REFUSED.get(field, "")
            if what:
                error = _unsupported(what)
                if method == "PrepareContainer":
                    self._refused[request.container_id] = error  # its creation is on its way already
                raise error
        for text in sorted({_REPORTED[field] for field, _value in missing if field in _REPORTED}):
            self._report(f"{request.container_id}: a Kata 1.x agent does not do {text}")
        return Empty()


def _extras(message: Message) -> Any:
    """(name, value) of every extra that is set, those inside others too."""
    for field, value in message.ListFields():
        if field.name in ("process", "mounts"):
            for inner in value if field.name == "mounts" else (value,):
                yield from _extras(inner)
        elif field.name not in _IMPLIED and field.name != "index":
            yield field.name, value


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"a Kata 1.x agent cannot do this: {what}", _HINT)
