"""A Kata 1.x agent for the tests: gRPC in yamux on a unix socket, local processes for those of a guest.

It shows what such an agent promises, and what it does not:

- it is the yamux server, and says nothing before the client does;
- ``grpc.AgentService`` and ``grpc.Health``, no other service;
- CreateContainer makes the process, StartContainer lets it run; a read blocks meanwhile;
- a read answers at least one byte, or fails with "EOF" at the end;
- WaitProcess answers once the process has ended; the process, and what was not read, are gone with it;
- a process that is not there is NOT_FOUND.
"""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import struct
import subprocess
import termios
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from harness.mux import Mux, splice
from harness.wait import eventually
from kata_agent.protocol import agent_pb2 as pb
from kata_agent.protocol import health_pb2
from kata_agent.protocol.ttrpc import method_table

METHODS = method_table([pb.DESCRIPTOR, health_pb2.DESCRIPTOR])
NOTHING = ("CreateSandbox", "DestroySandbox", "OnlineCPUMem", "UpdateContainer", "PauseContainer", "ResumeContainer",
           "AddARPNeighbors", "SetGuestDateTime", "ReseedRandomDev")


class Process:
    """A process that may not have begun."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.begun = threading.Event()
        self.popen: subprocess.Popen[bytes] | None = None
        self.fds: dict[int, int] = {}
        self.size = (0, 0)

    def begin(self) -> None:
        args, env = list(self.spec.Args), dict(e.split("=", 1) for e in self.spec.Env)
        if self.spec.Terminal:
            near, far = pty.openpty()
            self.popen = subprocess.Popen(["setsid", "--ctty", *args], stdin=far, stdout=far, stderr=far, env=env,
                                          start_new_session=True)
            os.close(far)
            self.fds = {0: near, 1: near}
            if self.size != (0, 0):
                self.resize(*self.size)
        else:
            pipes = [os.pipe() for _ in range(3)]
            self.popen = subprocess.Popen(args, stdin=pipes[0][0], stdout=pipes[1][1], stderr=pipes[2][1], env=env,
                                          start_new_session=True)
            for fd in (pipes[0][0], pipes[1][1], pipes[2][1]):
                os.close(fd)
            self.fds = {0: pipes[0][1], 1: pipes[1][0], 2: pipes[2][0]}
        self.begun.set()

    def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)
        if self.begun.is_set() or 1 in self.fds:
            fcntl.ioctl(self.fds[1], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, number: int, most: int) -> bytes:
        self.begun.wait()
        try:
            return os.read(self.fds[number], most)
        except OSError:  # a terminal whose other end is closed
            return b""

    def close_stdin(self) -> None:
        self.begun.wait()
        if not self.spec.Terminal and 0 in self.fds:
            os.close(self.fds.pop(0))


class Kata1Agent:
    """The agent, listening at ``path`` as QEMU's serial port does.

    :ivar calls: (method, request), in order.
    :ivar oom: put a container's id, and GetOOMEvent answers it.
    """

    def __init__(self, folder: Path, lacks: tuple[str, ...] = ()) -> None:
        self.path = str(folder / "port.sock")
        self.calls: list[tuple[str, Any]] = []
        self.lacks = lacks
        self.processes: dict[tuple[str, str], Process] = {}
        self.muxes: list[Mux] = []
        self.ooms: list[str] = []
        self.oom = threading.Condition()
        inner = str(folder / "agent-grpc.sock")
        self.pool = ThreadPoolExecutor(64)
        self.server = grpc.server(self.pool)
        for service in ("grpc.AgentService", "grpc.Health"):
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {
                name: grpc.unary_unary_rpc_method_handler(
                    self.handler(name), method.request.FromString, lambda reply: reply.SerializeToString())
                for (of, name), method in METHODS.items() if of == service and name not in lacks}),))
        self.server.add_insecure_port(f"unix:{inner}")
        self.server.start()
        self.inner = inner
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            mux = Mux(sock, client=False)
            self.muxes.append(mux)
            threading.Thread(target=self.serve, args=(mux,), daemon=True).start()

    def serve(self, mux: Mux) -> None:
        while (stream := mux.opened.get()) is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.inner)
            threading.Thread(target=splice, args=(stream, sock), daemon=True).start()

    def close(self) -> None:
        self.listener.close()
        for mux in self.muxes:
            mux.close()
        for process in self.processes.values():
            if process.popen is not None:
                process.popen.kill()
        with self.oom:
            self.ooms.append("")
            self.oom.notify_all()
        self.server.stop(None)

    def names(self) -> list[str]:
        """The methods called, in order."""
        return [name for name, _request in self.calls]

    def until(self, name: str, count: int) -> None:
        """Wait until a method was called so often."""
        eventually(f"{count} calls of {name}", lambda: self.names().count(name) >= count, 30)

    # --- rpcs ------------------------------------------------------------------------

    def handler(self, name: str) -> Any:
        own = getattr(self, name, None)

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append((name, request))
            if own is not None:
                return own(request, context)
            if name in NOTHING:
                return Empty()
            return context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not implemented")

        return handle

    def find(self, request: Any, context: grpc.ServicerContext) -> Process:
        found = self.processes.get((request.container_id, request.exec_id))
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Process {request.exec_id} not found")
        assert found is not None
        return found

    def Check(self, _request: Any, _context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=1)

    def Version(self, _request: Any, _context: Any) -> Any:
        return health_pb2.VersionCheckResponse(grpc_version="0.0.1", agent_version="1.12.1")

    def GetGuestDetails(self, _request: Any, _context: Any) -> Any:
        return pb.GuestDetailsResponse(agent_details=pb.AgentDetails(version="1.12.1"))

    def UpdateInterface(self, request: Any, _context: Any) -> Any:
        return request.interface

    def UpdateRoutes(self, request: Any, _context: Any) -> Any:
        return request.routes

    def CreateContainer(self, request: Any, _context: Any) -> Any:
        self.processes[request.container_id, request.exec_id] = Process(request.OCI.Process)
        return Empty()

    def StartContainer(self, request: Any, _context: Any) -> Any:
        self.processes[request.container_id, request.container_id].begin()
        return Empty()

    def ExecProcess(self, request: Any, _context: Any) -> Any:
        process = self.processes[request.container_id, request.exec_id] = Process(request.process)
        process.begin()
        return Empty()

    def RemoveContainer(self, request: Any, _context: Any) -> Any:
        for key in [key for key in self.processes if key[0] == request.container_id]:
            process = self.processes.pop(key)
            if process.popen is not None:
                process.popen.kill()
        return Empty()

    def SignalProcess(self, request: Any, context: Any) -> Any:
        process = self.find(request, context)
        process.begun.wait()
        assert process.popen is not None
        process.popen.send_signal(request.signal)
        return Empty()

    def WaitProcess(self, request: Any, context: Any) -> Any:
        process = self.find(request, context)
        process.begun.wait()
        assert process.popen is not None
        code = process.popen.wait()
        self.processes.pop((request.container_id, request.exec_id), None)
        return pb.WaitProcessResponse(status=code if code >= 0 else 128 - code)

    def read(self, number: int, request: Any, context: Any) -> Any:
        data = self.find(request, context).read(number, request.len)
        if not data:
            context.abort(grpc.StatusCode.UNKNOWN, "EOF")
        return pb.ReadStreamResponse(data=data)

    def ReadStdout(self, request: Any, context: Any) -> Any:
        return self.read(1, request, context)

    def ReadStderr(self, request: Any, context: Any) -> Any:
        return self.read(2, request, context)

    def WriteStdin(self, request: Any, context: Any) -> Any:
        process = self.find(request, context)
        process.begun.wait()
        if 0 not in process.fds:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "stdin was closed")
        try:
            return pb.WriteStreamResponse(len=os.write(process.fds[0], request.data))
        except BrokenPipeError:
            return context.abort(grpc.StatusCode.UNKNOWN, "write: broken pipe")

    def CloseStdin(self, request: Any, context: Any) -> Any:
        self.find(request, context).close_stdin()
        return Empty()

    def TtyWinResize(self, request: Any, context: Any) -> Any:
        self.find(request, context).resize(request.row, request.column)
        return Empty()

    def StatsContainer(self, _request: Any, _context: Any) -> Any:
        reply = pb.StatsContainerResponse()
        reply.cgroup_stats.pids_stats.current = len(self.processes)
        return reply

    def GetOOMEvent(self, _request: Any, _context: Any) -> Any:
        with self.oom:
            self.oom.wait_for(lambda: self.ooms)
            return pb.OOMEvent(container_id=self.ooms.pop(0))
