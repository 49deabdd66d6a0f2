"""kata.v1.Guest: what AgentService has no rpc or field for."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.empty_pb2 import Empty

from kata_agent import machine, stats
from kata_agent.errors import invalid
from kata_agent.protocol import guest_pb2 as pb
from kata_agent.sandbox import Sandbox
from kata_agent.server import Call
from kata_agent.streams import MOST

SERVICE = "kata.v1.Guest"


class Guest:
    """One method per rpc."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    # --- announcements ---------------------------------------------------------------------

    def prepare_container(self, request: pb.PrepareContainerRequest, _call: Call) -> Empty:
        self._sandbox.prepare(request)
        return Empty()

    def prepare_process(self, request: pb.PrepareProcessRequest, _call: Call) -> Empty:
        self._sandbox.prepare_process(request)
        return Empty()

    # --- streams and ends --------------------------------------------------------------------

    def read_stream(self, request: pb.ReadRequest, call: Call) -> pb.ReadResponse | None:
        process = self._sandbox.container(request.container_id).process(request.exec_id)
        if request.stream not in (1, 2):
            raise invalid(f"there is no stream {request.stream} to read")
        stream = process.stdout if request.stream == 1 else process.stderr
        if request.close:
            stream.discard(process.plan.terminal)
            return pb.ReadResponse(offset=request.offset, eof=True)
        stream.acknowledge(request.ack)
        if request.no_wait:
            stream.pull()

        def sink(offset: int, data: Sequence[bytes | memoryview], eof: bool) -> bool:
            if call.alive:
                call.reply(pb.ReadResponse(offset=offset, eof=eof), data, pb.ReadResponse.DATA_FIELD_NUMBER)
                return True
            return False

        stream.read(request.offset, min(request.max_len or MOST, MOST), sink, not request.no_wait)
        return None

    def write_stream(self, request: pb.WriteRequest, call: Call) -> None:
        stdin = self._sandbox.container(request.container_id).process(request.exec_id).stdin
        stdin.write(request.offset, call.data or request.data, request.eof,
                    lambda received, broken: call.reply(pb.WriteResponse(received=received, closed=broken)))

    def wait_process(self, request: pb.ProcessId, call: Call) -> None:
        process = self._sandbox.container(request.container_id).process(request.exec_id)
        process.when_exited(lambda: call.reply(pb.ExitStatus(
            status=process.status, exited_at_nsec=process.exited_at, oom_killed=process.oom_killed)))

    def release_process(self, request: pb.ProcessId, _call: Call) -> Empty:
        self._sandbox.container(request.container_id).release_process(request.exec_id)
        return Empty()

    # --- what there is -------------------------------------------------------------------------

    def list_all(self, _request: Empty, _call: Call) -> pb.Inventory:
        inventory = pb.Inventory(last_event=self._sandbox.events.last)
        for container in self._sandbox:
            info = inventory.containers.add(container_id=container.id, state=container.state)
            for exec_id, process in (("", container.init), *container.execs.items()):
                info.processes.add(exec_id=exec_id, guest_pid=process.pid, exited=process.exited, status=process.status)
        return inventory

    def get_event(self, request: pb.GetEventRequest, call: Call) -> None:
        self._sandbox.events.get(request, call)

    def container_stats(self, request: pb.ContainerId, _call: Call) -> pb.ContainerStatsResponse:
        return stats.extended(self._sandbox.container(request.container_id).cgroup)

    def update_unified(self, request: pb.UpdateUnifiedRequest, _call: Call) -> Empty:
        from kata_agent.protocol.oci_pb2 import LinuxResources

        self._sandbox.container(request.container_id).update(LinuxResources(), dict(request.unified))
        return Empty()

    # --- the guest -------------------------------------------------------------------------------

    def personalize(self, request: pb.PersonalizeRequest, _call: Call) -> Empty:
        machine.personalize(request)
        return Empty()

    def remove_interface(self, request: pb.RemoveInterfaceRequest, _call: Call) -> Empty:
        self._sandbox.network.remove_interface(request.hw_addr)
        return Empty()

    def set_dns_relay(self, request: pb.SetDnsRelayRequest, _call: Call) -> Empty:
        self._sandbox.dns.set_addresses(list(request.addresses))
        return Empty()

    def answer_dns(self, request: pb.DnsAnswer, _call: Call) -> Empty:
        self._sandbox.dns.answer(request.id, request.answer)
        return Empty()

    def guest_status(self, _request: Empty, _call: Call) -> pb.GuestStatusResponse:
        return machine.status(self._sandbox)


