"""The proxy's event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kata import state
from kata.agent_client import Agent, AgentClient
from kata.errors import HostError, KataError
from kata.greeting import Greeting
from kata.proxy.boot import BringUp, bring_up, take_over, warm_up
from kata.proxy.control import Connection, Server
from kata.proxy.log import log
from kata.proxy.logs import BoundedLogs
from kata.proxy.ops import Operations
from kata.proxy.record import SandboxRecord
from kata.proxy.sandbox import Sandbox
from kata.spawn import stop
from kata.storage.special import SpecialFiles
from kata.transport.grpc_gate import AgentSocket
from kata.vm.machine import Machine

if TYPE_CHECKING:
    from kata.proxy.start import Start


DRAIN_TIMEOUT = 5.0  #: seconds; a peer that is stopped reads nothing


def serve(start: Start, listener: socket.socket, failure: KataError | None, how: BringUp) -> None:
    """Serve until the sandbox is gone.

    :param how: :func:`~kata.proxy.boot.boot` and its siblings.
    """
    if failure is None:
        try:
            asyncio.run(_serve(start, listener, how))
            return
        except KataError as e:
            failure = e
            stop(start.pid)
    asyncio.run(_failed(listener, failure))


async def _failed(listener: socket.socket, failure: KataError) -> None:
    """There is no machine: tell whoever asks why, until told to end."""
    log(f"cannot start: {failure}")
    finished = asyncio.Event()

    async def answer(_c: Connection, request: Mapping[str, Any], _f: list[int]) -> dict[str, Any]:
        if request.get("op") == "abandon":
            finished.set()
            return {}
        raise failure

    server = Server(listener, answer)
    await finished.wait()
    await _drain(server)


async def _serve(start: Start, listener: socket.socket, how: BringUp) -> None:
    assert start.share is not None
    record = SandboxRecord(start.directory)
    machine = Machine(start.machine, start.pid, start.directory, record.data.get("ports"))
    start.phase("proxy's imports")
    agent = _agent(start, start.greeting)
    sandbox = Sandbox(start.directory, start.plan, record, machine, agent, start.share,
                      cloned=start.greeting is not None, resuming=how is take_over, pooled=how is warm_up)
    sandbox.phases.extend(start.phases)
    sandbox.relaunch = lambda: _relaunched(start, sandbox)
    try:
        _follow_special_files(machine.pid)
    except HostError:
        if state.start_time(machine.pid):
            raise
        # QEMU has ended already; the boot says why.
    logs = BoundedLogs(start.directory)
    operations = Operations(sandbox)
    server = Server(listener, operations)
    sandbox.spawn(sandbox.watch_machine())
    sandbox.spawn(bring_up(sandbox, how))
    agent_socket = AgentSocket(f"{start.directory}/agent.sock", sandbox.reach, log)
    # What lives from here to the end is not worth the collector's time.
    gc.freeze()
    await operations.finished.wait()
    await agent_socket.close()
    await operations.settle()
    await _drain(server)
    await sandbox.close()
    logs.close()


def _agent(start: Start, greeting: Greeting | None) -> Agent:
    """The client for the agent that the guest holds."""
    channel = f"{start.directory}/channel.sock"
    if start.plan.agent_transport == "ttrpc":
        return AgentClient(channel, start.token, greeting)
    from kata.transport.kata1 import Kata1Client  # gRPC is heavy

    return Kata1Client(channel, f"{start.directory}/yamux.sock", log)


def _follow_special_files(pid: int) -> None:
    """Answer QEMU's system calls for FIFOs, sockets and device nodes (:mod:`kata.storage.special`)."""
    files = SpecialFiles(pid)
    loop = asyncio.get_running_loop()

    def handle() -> None:
        if not files.handle():
            loop.remove_reader(files.fileno())
            files.close()

    loop.add_reader(files.fileno(), handle)


def _relaunched(start: Start, sandbox: Sandbox) -> tuple[Machine, Agent]:
    """A machine that boots, in the place of one that is gone; the sandbox's record goes on."""
    start.remove_sockets()
    start.record = dict(sandbox.record.data)
    start.record.pop("ports", None)
    start.launch(sandbox.plan.machine)
    sandbox.record.data = start.record
    machine = Machine(start.machine, start.pid, start.directory)
    _follow_special_files(start.pid)
    return machine, _agent(start, None)


async def _drain(server: Server) -> None:
    """Let answers already sent reach their peers before the sockets close."""
    path = server.listener.getsockname()
    server.close(path if isinstance(path, str) and os.path.exists(path) else "")
    draining = [asyncio.ensure_future(connection.drain()) for connection in list(server.connections)]
    if draining:
        await asyncio.wait(draining, timeout=DRAIN_TIMEOUT)
