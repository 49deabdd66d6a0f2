"""The operations that verbs and shims ask a proxy for: a name each, a method each."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kata import wire
from kata.agent_client import ChannelClosed, printable
from kata.contract import ContainerPlan, SandboxPlan
from kata.errors import HostError, KataError, NotFound, UsageError, WrongState
from kata.planjson import from_json
from kata.proxy import convert, pausing, stats
from kata.proxy.become import become
from kata.proxy.boot import adopt
from kata.proxy.container import Container
from kata.proxy.control import Connection
from kata.proxy.log import log
from kata.proxy.sandbox import Sandbox
from kata.proxy.streams import Attachment
from kata_agent.protocol import agent_pb2

Request = Mapping[str, Any]
Op = Callable[[Connection, Request, list[int]], Awaitable[dict[str, Any]]]


SETTLE_TIMEOUT = 2.0  #: seconds
#: What a guest has to answer, and cannot while its machine stands still.
NEED_GUEST = frozenset({"create", "start", "kill", "ps", "stats", "update", "grow"})


class Operations:
    """Dispatches requests to the sandbox.

    ``finished`` is set when the sandbox is gone and the proxy may end.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.finished = sandbox.finished
        self._streams: set[asyncio.Task[None]] = set()
        self._ops: dict[str, Op] = {
            name.removeprefix("op_"): getattr(self, name) for name in dir(self) if name.startswith("op_")
        }

    async def __call__(self, connection: Connection, request: Request, fds: list[int]) -> dict[str, Any]:
        name = request.get("op", "")
        op = self._ops.get(name)
        if op is None:
            raise UsageError(f"the proxy knows no operation {name!r}")
        if self.sandbox.pooled and name not in ("ready", "adopt", "abandon"):
            raise HostError("this machine is in the pool", "claim it first")
        if self.sandbox.resuming and name != "abandon":
            await asyncio.shield(self.sandbox.ready)
        if name in NEED_GUEST and (paused := pausing.halted(self.sandbox)) is not None:
            if request.get("signal") != signal.SIGKILL:
                raise WrongState(f"cannot {name}: the machine is paused with container {paused.id}", "resume it first",
                                 values={"id": request.get("id", ""), "status": "paused"})
            await self.sandbox.let_go_on()
        return await op(connection, request, fds)

    # --- life --------------------------------------------------------------------------

    async def op_ready(self, _c: Connection, _r: Request, _f: list[int]) -> dict[str, Any]:
        """Wait until containers can be made."""
        await asyncio.shield(self.sandbox.ready)
        return {}

    async def op_adopt(self, _c: Connection, r: Request, fds: list[int]) -> dict[str, Any]:
        """Become the sandbox of whoever has claimed this machine."""
        await adopt(self.sandbox, from_json(SandboxPlan, r["plan"]), r["root"], r["root_id"], r["netns"], fds)
        return {}

    async def op_become(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        """Carry the sandbox and its containers over to another flavor."""
        await asyncio.shield(self.sandbox.ready)
        become(self.sandbox, r["flavor"], r["backend"], r["plans"])
        return {}

    async def op_create(self, _c: Connection, r: Request, fds: list[int]) -> dict[str, Any]:
        plan = from_json(ContainerPlan, r["plan"])
        await self.sandbox.create(plan, r["root"], r["resources"], fds)
        return {}

    async def op_start(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        await self.sandbox.start(r["id"])
        return {}

    async def op_kill(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        await self.sandbox.kill(r["id"], r["signal"], r["all"])
        return {}

    async def op_pause(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        await self.sandbox.pause(r["id"])
        return {}

    async def op_resume(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        await self.sandbox.resume(r["id"])
        return {}

    async def op_delete(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        last = await self.sandbox.delete(r["id"], r["force"])
        if last:
            self.finished.set()
        return {"last": last}

    async def op_abandon(self, _c: Connection, _r: Request, _f: list[int]) -> dict[str, Any]:
        """End a sandbox whose first container could not be made."""
        await self.sandbox.close()
        self.finished.set()
        return {}

    # --- processes ------------------------------------------------------------------------

    async def op_exec(self, connection: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        await self.sandbox.exec(r["id"], r["exec_id"], r["process"], r["extras"], r["ignore_paused"])
        # Whoever asked must attach, on this connection, or the process is nobody's.
        self.sandbox.spawn(self._unless_attached(connection, r["id"], r["exec_id"]))
        return {}

    async def _unless_attached(self, connection: Connection, container: str, exec_id: str) -> None:
        await connection.closed.wait()
        if not connection.attached:
            await self._orphaned(container, exec_id)

    async def op_attach(self, connection: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        """Begin the stream of a process; frames of data, then its exit, follow the reply."""
        container_id, exec_id = r["id"], r["exec_id"]
        container = await self._made(container_id)
        if exec_id not in container.processes:
            raise NotFound(f"container {container_id} has no process {exec_id[:80]}", values={"id": container_id})
        attachment = Attachment(self.sandbox.agent, container_id, exec_id, connection,
                                (r["offsets"][0], r["offsets"][1], r["offsets"][2]), r["terminal"],
                                container.processes[exec_id])

        def on_frame(kind: int, flags: int, payload: bytes) -> None:
            stream = flags & wire.STREAM_MASK
            if kind == wire.ACK:
                attachment.on_ack(stream, wire.OFFSET.unpack(payload)[0])
            elif kind == wire.DATA:
                offset, data = wire.unpack_data(payload)
                attachment.on_stdin(offset, data, bool(flags & wire.EOF))

        connection.take_frames(on_frame)
        container.attach(exec_id, r["pid"])
        task = self.sandbox.spawn(self._attached(connection, attachment, r["pid"]))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        return {}

    async def _made(self, container_id: str) -> Container:
        """A container, if need be once it is there: shims start before what they stand for."""
        if container_id not in self.sandbox.containers or container_id in self.sandbox.expected:
            await self.sandbox.made(container_id)
        return self.sandbox.find(container_id)

    async def settle(self) -> None:
        """Let shims have the exits that their sandbox's end brought about."""
        if self._streams:
            await asyncio.wait(self._streams, timeout=SETTLE_TIMEOUT)


    async def _attached(self, connection: Connection, attachment: Attachment, shim: int) -> None:
        container = self.sandbox.find(attachment.container)
        ended = attachment.ended
        delivered = asyncio.Event()
        pump = asyncio.ensure_future(attachment.run(delivered.set))
        closed = asyncio.ensure_future(connection.closed.wait())
        try:
            await asyncio.wait({pump, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                if not ended.done():
                    await self._orphaned(attachment.container, attachment.exec_id)
                return
            try:
                pump.result()
            except (ChannelClosed, KataError) as e:
                if not self.sandbox.closing:
                    log(f"stream of {attachment.exec_id} in {attachment.container}: {e}")
                status = await asyncio.shield(ended)
                for stream in (wire.STDOUT, wire.STDERR):
                    connection.send(wire.pack_data(stream, attachment.offsets[stream], b"", eof=True))
                connection.send(wire.pack_json(wire.EXIT, {"status": status}))
        finally:
            pump.cancel()
            closed.cancel()
            if container.shims.get(attachment.exec_id) == shim:
                del container.shims[attachment.exec_id]
            if attachment.exec_id != attachment.container and ended.done():
                await self.sandbox.release(attachment.container, attachment.exec_id)

    async def _orphaned(self, container_id: str, exec_id: str) -> None:
        """A shim is gone before its process: the process's host pid is dead, so the process dies."""
        if self.sandbox.closing:
            return
        await self.sandbox.end_orphan(container_id, exec_id)

    async def op_signal(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        """A signal that a shim got, for its process; a machine that stands still gets it when it goes on."""
        if pausing.halted(self.sandbox) is not None:
            if r["signal"] != signal.SIGKILL:
                self.sandbox.spawn(self._signal_later(r))
                return {}
            await self.sandbox.let_go_on()
        await self.sandbox.signal(r["id"], r["exec_id"], r["signal"])
        return {}

    async def _signal_later(self, r: Request) -> None:
        await self.sandbox.goes_on()
        await self.sandbox.signal(r["id"], r["exec_id"], r["signal"])

    async def op_winsize(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        await self._made(r["id"])
        await self.sandbox.agent.agent("TtyWinResize", agent_pb2.TtyWinResizeRequest(
            container_id=r["id"], exec_id=r["exec_id"], row=r["rows"], column=r["columns"]))
        return {}

    # --- looking and changing ------------------------------------------------------------------

    async def op_ps(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        container = self.sandbox.find(r["id"])
        container.require("list the processes of", "created", "running", "paused")
        if r["format"] == "json":
            # Engines look these pids up on the host.
            return {"text": json.dumps(sorted(container.shims.values()))}
        reply = await self.sandbox.agent.agent("ListProcesses", agent_pb2.ListProcessesRequest(
            container_id=r["id"], format=r["format"], args=r["args"]))
        return {"text": printable(reply.process_list.decode(errors="replace"), wire.MAX_PAYLOAD // 8)}

    async def op_stats(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        self.sandbox.find(r["id"]).require("read the statistics of", "created", "running", "paused")
        return await stats.container(self.sandbox.agent, r["id"])

    async def op_wait_event(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        """Wait until the container has run out of memory once more than ``ooms`` times, or ended."""
        container = self.sandbox.find(r["id"])
        ended = container.processes[container.id]
        oom = asyncio.ensure_future(container.wait_oom(r["ooms"]))
        waited: set[asyncio.Future[Any]] = {ended, oom}
        try:
            await asyncio.wait(waited, timeout=r["interval"], return_when=asyncio.FIRST_COMPLETED)
        finally:
            oom.cancel()
        return {"ooms": container.ooms, "ended": ended.done()}

    async def op_update(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        container = self.sandbox.find(r["id"])
        container.require("update", "created", "running", "paused")
        if r["size"] is not None:
            await self.sandbox.resize(r["size"]["vcpus"], r["size"]["memory"])
        await self.sandbox.agent.agent("UpdateContainer", agent_pb2.UpdateContainerRequest(
            container_id=r["id"], resources=convert.oci_resources(r["resources"])))
        await self.sandbox.update_unified(r["id"], r["resources"].get("unified") or {})
        container.resources = r["merged"]
        self.sandbox.record.add_container(container.root, container.plan, container.resources, container.cgroup)
        return {}

    async def op_containers(self, _c: Connection, _r: Request, _f: list[int]) -> dict[str, Any]:
        """Resources of every container, to plan a size."""
        await asyncio.shield(self.sandbox.ready)
        return {"containers": [{"id": c.id, "resources": dict(c.resources)} for c in self.sandbox.containers.values()]}

    async def op_grow(self, _c: Connection, r: Request, _f: list[int]) -> dict[str, Any]:
        await self.sandbox.resize(r["vcpus"], r["memory"])
        return {}

    async def op_phases(self, _c: Connection, _r: Request, _f: list[int]) -> dict[str, Any]:
        """When the sandbox reached which phase; of a guest that is no clone its boot's, since its kernel's start."""
        booted = not self.sandbox.cloned and self.sandbox.ready.done() and not self.sandbox.machine.gone.is_set()
        boot = (await stats.guest(self.sandbox.agent))["boot_nsec"] if booted else {}
        return {"phases": list(self.sandbox.phases), "boot_nsec": boot}

    async def op_guest(self, _c: Connection, _r: Request, _f: list[int]) -> dict[str, Any]:
        """Kernel, memory and boot phases of the guest."""
        try:
            await asyncio.wait_for(asyncio.shield(self.sandbox.ready), 60)
        except TimeoutError as e:
            raise HostError("the guest is not up after 60 s") from e
        return await stats.guest(self.sandbox.agent)
