"""grpc.AgentService: the service of Kata 1.x.

Where Kata 1.x leaves it open: ``SignalProcess`` with an empty exec_id signals
every process of the container, with the container's id (or the exec_id of
CreateContainer) the first one.  Everywhere else an empty exec_id is the first
process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kata_agent import features, files, log, machine, ps, stats
from kata_agent import storage as storages
from kata_agent.container import Container
from kata_agent.errors import AgentError, invalid, precondition, unsupported
from kata_agent.namespaces import Namespaces
from kata_agent.protocol import agent_pb2 as pb
from kata_agent.protocol import codes, oci_pb2
from kata_agent.protocol import types_pb2 as types
from kata_agent.sandbox import Sandbox, check_exec_id
from kata_agent.server import Call
from kata_agent.streams import MOST

SERVICE = "grpc.AgentService"


def _answer(call: Call) -> Callable[[AgentError | None], None]:
    """A callback that answers with nothing, or with the error."""

    def done(error: AgentError | None) -> None:
        if error is None:
            call.done()
        else:
            call.fail_with(error)

    return done


def _names(user: pb.StringUser) -> tuple[str, str, tuple[str, ...]] | None:
    if not (user.uid or user.gid or user.additionalGids):
        return None
    return user.uid, user.gid, tuple(user.additionalGids)


class AgentService:
    """One method per rpc."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    # --- containers ----------------------------------------------------------------------

    def create_container(self, request: pb.CreateContainerRequest, call: Call) -> None:
        sandbox = self._sandbox
        sandbox.check_new(request.container_id)
        extras = sandbox.take_prepared(request.container_id)
        spec = request.OCI
        check_spec(spec)
        exec_id = request.exec_id or request.container_id
        check_exec_id(exec_id)
        namespaces = Namespaces(
            spec, extras, lambda other: sandbox.container(other).pidfd(),
            sandbox.pidns.pidfd() if request.sandbox_pidns else -1, request.agent_pidns,
        )
        filter_ = b""
        if spec.Linux.Seccomp.DefaultAction and not extras.process.seccomp_bpf:
            from kata_agent import seccomp  # our own runtime sends finished filters, and boot is waited for

            filter_ = seccomp.compile(spec.Linux.Seccomp)
        container = Container(sandbox, request.container_id, exec_id, spec, extras, _names(request.string_user),
                              namespaces, filter_)
        sandbox.add(container)
        done = _answer(call)

        def failed(error: BaseException) -> None:
            sandbox.forget(container)
            container.give_back()
            call.fail_with(features.explained(error, sandbox.cgroups.controllers))

        def mounted(error: AgentError | None) -> None:
            if error is not None:
                failed(error)
                return
            try:
                nodes = storages.device_nodes(spec, request.devices, extras.block_devices)
                container.create(nodes, lambda problem: done(problem) if problem is None else failed(problem))
            except Exception as problem:
                failed(problem)

        def present(error: AgentError | None) -> None:
            if error is not None:
                failed(error)
                return
            storages.mount_all(sandbox, request.storages, container.storages, mounted)

        storages.wait_for(sandbox, request.devices, extras.block_devices, present)

    def start_container(self, request: pb.StartContainerRequest, call: Call) -> None:
        self._sandbox.container(request.container_id).start(_answer(call))

    def remove_container(self, request: pb.RemoveContainerRequest, call: Call) -> None:
        self._sandbox.container(request.container_id).remove(request.timeout, _answer(call))

    def exec_process(self, request: pb.ExecProcessRequest, call: Call) -> None:
        container = self._sandbox.container(request.container_id)
        check_exec_id(request.exec_id)
        extras = self._sandbox.take_prepared_process(request.container_id, request.exec_id)
        container.exec(request.exec_id, request.process, extras, _names(request.string_user), _answer(call))

    def signal_process(self, request: pb.SignalProcessRequest, call: Call) -> None:
        container = self._sandbox.container(request.container_id)
        container.signal(request.exec_id, request.signal, everyone=not request.exec_id)
        call.done()

    def wait_process(self, request: pb.WaitProcessRequest, call: Call) -> None:
        process = self._sandbox.container(request.container_id).process(request.exec_id)

        def ended() -> None:
            if call.alive:
                process.wait_asked = True
                call.reply(pb.WaitProcessResponse(status=process.status))

        process.when_exited(ended)

    def list_processes(self, request: pb.ListProcessesRequest, _call: Call) -> pb.ListProcessesResponse:
        container = self._sandbox.container(request.container_id)
        return pb.ListProcessesResponse(process_list=ps.listing(container, request.format, list(request.args)))

    def update_container(self, request: pb.UpdateContainerRequest, call: Call) -> None:
        self._sandbox.container(request.container_id).update(request.resources, {})
        call.done()

    def stats_container(self, request: pb.StatsContainerRequest, _call: Call) -> pb.StatsContainerResponse:
        container = self._sandbox.container(request.container_id)
        return pb.StatsContainerResponse(
            cgroup_stats=stats.cgroup_stats(container.cgroup), network_stats=self._sandbox.network.counters()
        )

    def pause_container(self, request: pb.PauseContainerRequest, call: Call) -> None:
        self._sandbox.container(request.container_id).freeze(True, _answer(call))

    def resume_container(self, request: pb.ResumeContainerRequest, call: Call) -> None:
        self._sandbox.container(request.container_id).freeze(False, _answer(call))

    # --- streams ---------------------------------------------------------------------------

    def write_stdin(self, request: pb.WriteStreamRequest, call: Call) -> None:
        process = self._sandbox.container(request.container_id).process(request.exec_id)
        if process.stdin.closed:
            raise precondition("stdin is closed")
        size = len(request.data)

        def taken(_received: int, broken: bool) -> None:
            if broken:
                call.fail(codes.FAILED_PRECONDITION, "nobody reads stdin any more")
            else:
                call.reply(pb.WriteStreamResponse(len=size))

        process.stdin.write(process.stdin.received, request.data, False, taken)

    def read_stdout(self, request: pb.ReadStreamRequest, call: Call) -> None:
        self._read(request, call, "stdout")

    def read_stderr(self, request: pb.ReadStreamRequest, call: Call) -> None:
        self._read(request, call, "stderr")

    def _read(self, request: pb.ReadStreamRequest, call: Call, name: str) -> None:
        process = self._sandbox.container(request.container_id).process(request.exec_id)
        stream = process.stdout if name == "stdout" else process.stderr

        def sink(_offset: int, data: Sequence[bytes | memoryview], eof: bool) -> bool:
            if not call.alive:
                return False
            if eof and not data:
                call.fail(codes.UNKNOWN, "EOF")  # what Kata 1.x's shim looks for
            else:
                call.reply(pb.ReadStreamResponse(data=b"".join(data)))
            return True

        stream.read_next(min(request.len or MOST, MOST), sink)

    def close_stdin(self, request: pb.CloseStdinRequest, call: Call) -> None:
        self._sandbox.container(request.container_id).process(request.exec_id).stdin.end()
        call.done()

    def tty_win_resize(self, request: pb.TtyWinResizeRequest, call: Call) -> None:
        process = self._sandbox.container(request.container_id).process(request.exec_id)
        process.resize(request.row, request.column)
        call.done()

    # --- network -----------------------------------------------------------------------------

    def update_interface(self, request: pb.UpdateInterfaceRequest, call: Call) -> None:
        def done(result: types.Interface | AgentError) -> None:
            if isinstance(result, AgentError):
                call.fail_with(result)
            else:
                call.reply(result)

        self._sandbox.network.update_interface(request.interface, done)

    def update_routes(self, request: pb.UpdateRoutesRequest, _call: Call) -> pb.Routes:
        return pb.Routes(Routes=self._sandbox.network.update_routes(list(request.routes.Routes)))

    def list_interfaces(self, _request: pb.ListInterfacesRequest, _call: Call) -> pb.Interfaces:
        return pb.Interfaces(Interfaces=self._sandbox.network.interfaces())

    def list_routes(self, _request: pb.ListRoutesRequest, _call: Call) -> pb.Routes:
        return pb.Routes(Routes=self._sandbox.network.routes())

    def add_arp_neighbors(self, request: pb.AddARPNeighborsRequest, call: Call) -> None:
        self._sandbox.network.add_neighbours(list(request.neighbors.ARPNeighbors))
        call.done()

    # --- tracing -------------------------------------------------------------------------------

    def start_tracing(self, _request: pb.StartTracingRequest, _call: Call) -> None:
        raise unsupported("this agent has no tracing")

    def stop_tracing(self, _request: pb.StopTracingRequest, _call: Call) -> None:
        raise unsupported("this agent has no tracing")

    # --- the guest -------------------------------------------------------------------------------

    def create_sandbox(self, request: pb.CreateSandboxRequest, call: Call) -> None:
        self._sandbox.create(request, _answer(call))

    def destroy_sandbox(self, _request: pb.DestroySandboxRequest, call: Call) -> None:
        self._sandbox.destroy(_answer(call))

    def online_cpu_mem(self, request: pb.OnlineCPUMemRequest, call: Call) -> None:
        machine.online(self._sandbox, request.nb_cpus if request.wait else 0, not request.cpu_only, _answer(call))

    def reseed_random_dev(self, request: pb.ReseedRandomDevRequest, call: Call) -> None:
        machine.reseed(request.data)
        call.done()

    def get_guest_details(self, request: pb.GuestDetailsRequest, _call: Call) -> pb.GuestDetailsResponse:
        return machine.details(request.mem_block_size, request.mem_hotplug_probe)

    def mem_hotplug_by_probe(self, request: pb.MemHotplugByProbeRequest, call: Call) -> None:
        machine.probe_memory(list(request.memHotplugProbeAddr))
        self._sandbox.cgroups.guard()
        call.done()

    def set_guest_date_time(self, request: pb.SetGuestDateTimeRequest, call: Call) -> None:
        machine.set_clock(request.Sec, request.Usec * 1000)
        call.done()

    def copy_file(self, request: pb.CopyFileRequest, call: Call) -> None:
        files.copy_in(request)
        call.done()

    def get_oom_event(self, _request: pb.GetOOMEventRequest, call: Call) -> None:
        self._sandbox.events.get_oom(call)


def check_spec(spec: oci_pb2.Spec) -> None:
    """What of a specification can be refused before anything is made.

    :raise AgentError: INVALID_ARGUMENT.
    """
    from kata_agent.mountopts import PROPAGATION

    if not spec.Root.Path.startswith("/"):
        raise invalid(f"root path {spec.Root.Path!r} is not absolute")
    if not spec.HasField("Process"):
        raise invalid("the specification has no process")
    if spec.Hooks.Prestart or spec.Hooks.Poststart or spec.Hooks.Poststop:
        raise invalid("hooks of the specification run on the host; the agent takes none")
    for label in (spec.Process.ApparmorProfile, spec.Process.SelinuxLabel, spec.Linux.MountLabel):
        if label:
            log.warning(f"security label {label!r} is not applied: this guest has no security module")
    if spec.Linux.IntelRdt.L3CacheSchema:
        log.warning("intelRdt is not applied: a guest cannot partition the processor's cache")
    name = spec.Linux.RootfsPropagation
    if name and name not in PROPAGATION:
        raise invalid(f"unknown rootfsPropagation {name!r}")
    for mount in spec.Mounts:
        if not mount.destination.startswith("/") or "\0" in mount.destination:
            raise invalid(f"mount destination {mount.destination!r} is not absolute")
    for path in (*spec.Linux.MaskedPaths, *spec.Linux.ReadonlyPaths):
        if not path.startswith("/"):
            raise invalid(f"masked or read-only path {path!r} is not absolute")
    for key in spec.Linux.Sysctl:
        if ".." in key.replace(".", "/").split("/") or ".." in key.split("/") or key.startswith("/") or "\0" in key:
            raise invalid(f"{key!r} is no sysctl")


