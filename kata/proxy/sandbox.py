"""One sandbox: a machine, its agent and its containers.  Carries out plans; knows no flavor."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from kata import cgroups, state
from kata.agent_client import Agent, ChannelClosed
from kata.contract import ContainerPlan, SandboxPlan
from kata.errors import GuestError, HostError, InUse, KataError, NotFound, VmError
from kata.proxy import convert, pausing
from kata.proxy.container import Container
from kata.proxy.home import with_home
from kata.proxy.log import log
from kata.proxy.network import Network
from kata.proxy.record import SandboxRecord
from kata.storage.share import ShareRoot
from kata.vm.machine import MEMORY_BLOCK, Machine
from kata_agent.linux import syscalls
from kata_agent.protocol import agent_pb2, guest_pb2

#: What a container's creation or start in the guest may take, hooks that run there included, seconds.
HOOKS_TIMEOUT = 90.0
#: How long a process may take to end after SIGKILL before the machine is ended instead, seconds.
KILL_TIMEOUT = 10.0
MAX_PHASES = 64  #: kept for ``kata --timings``


class Sandbox:
    """The engine of one sandbox.  ``ready`` is done once containers can be made."""

    def __init__(self, directory: str, plan: SandboxPlan, record: SandboxRecord, machine: Machine,
                 agent: Agent, share: ShareRoot, cloned: bool = False, resuming: bool = False,
                 pooled: bool = False) -> None:
        self.directory = directory
        self.plan = plan
        self.record = record
        self.machine = machine
        self.agent = agent
        self.share = share
        self.cloned = cloned
        self.resuming = resuming  #: what there is is not known before ``ready``
        self.pooled = pooled  #: it is nobody's yet
        self.network = Network(plan, machine, agent, record)
        self.containers: dict[str, Container] = {}
        self.expected: dict[str, asyncio.Future[Container]] = {}
        self.closing = False
        self.replaceable = False  #: nothing has been made in the machine: when it ends, another can take its place
        self.relaunch: Callable[[], tuple[Machine, Agent]] | None = None  #: starts QEMU anew, to boot
        self.finished = asyncio.Event()  #: it is gone, and the proxy may end
        self.tasks: set[asyncio.Task[None]] = set()
        self.phases: deque[tuple[float, str]] = deque(maxlen=MAX_PHASES)  #: when, by the monotonic clock, and what
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def reach(self) -> Agent:
        """The agent, once there are containers to be made."""
        await asyncio.shield(self.ready)
        return self.agent

    def phase(self, name: str) -> None:
        """Note that a phase is over, for ``kata --timings``."""
        self.phases.append((time.monotonic(), name))

    def spawn(self, coroutine: Any) -> asyncio.Task[None]:
        """Run a task of the sandbox for as long as it lasts; a failure is logged."""
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self.tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self.tasks.discard(done)
            if not done.cancelled() and (error := done.exception()) is not None and not self.closing:
                log(f"{coroutine.__qualname__}: {error}")

        task.add_done_callback(ended)
        return task

    # --- what happens by itself ---------------------------------------------------------

    async def watch_machine(self) -> None:
        """When the machine ends, so do its containers, killed."""
        await self.machine.gone.wait()
        if self.replaceable:
            return
        if not self.closing:
            log(f"the machine ended: {self.machine.failure('QEMU is gone')}")
        for container in self.containers.values():
            for future in container.processes.values():
                if not future.done():
                    future.set_result(137)
            with _without_room():
                container.set_exited(137)

    async def replace_machine(self) -> None:
        """End the machine and start another, which boots.  Containers that are to be made wait for it all the same.

        :raise KataError: QEMU does not start.
        """
        assert self.relaunch is not None
        await self.machine.kill()
        await self.network.stop()
        await self.agent.close()
        self.machine, self.agent = self.relaunch()
        self.cloned = False
        self.network = Network(self.plan, self.machine, self.agent, self.record)

    async def events(self, after: int = 0) -> None:
        """Do what the guest's events ask for, those after number ``after``, for as long as the channel lasts."""
        while True:
            # Exits come by WaitProcess; the guest tells them once.
            request = guest_pb2.GetEventRequest(after=after, no_exits=True)
            event = await self.agent.guest("GetEvent", request, timeout=None)
            after = max(after, event.seq)
            kind = event.WhichOneof("kind")
            if kind == "oom":
                self._oom(event.oom.container_id)
            elif kind == "dns_query":
                self.spawn(self.network.answer_dns(event.dns_query))

    def _oom(self, container_id: str) -> None:
        container = self.containers.get(container_id)
        if container is not None:
            container.add_oom()
            if container.report is not None and not container.report.done():
                return  # a guest may say so as often as it likes
            log(f"container {container_id} ran out of memory")
            container.report = asyncio.ensure_future(_report_oom(container.cgroup))

    async def _watch_process(self, container: Container, exec_id: str) -> None:
        """Record the exit of a process, whoever else waits for it."""
        future = container.processes[exec_id]
        try:
            reply = await self.agent.guest(
                "WaitProcess", guest_pb2.ProcessId(container_id=container.id, exec_id=exec_id), timeout=None)
            status = int(reply.status) & 0xFF
            if exec_id == container.id and reply.oom_killed and not container.ooms:
                self._oom(container.id)
            if exec_id == container.id and container.report is not None:
                await container.report  # engines must see it before the exit
        except ChannelClosed:
            return  # watch_machine or the next proxy decides
        except GuestError as e:
            log(f"process {exec_id} of {container.id}: {e}")
            status = 255
        self.phase("exit heard of")
        if not future.done():
            future.set_result(status)
        if exec_id == container.id:
            container.set_exited(status)

    def track(self, container: Container, exec_id: str) -> None:
        container.processes[exec_id] = asyncio.get_running_loop().create_future()
        self.spawn(self._watch_process(container, exec_id))

    # --- containers ---------------------------------------------------------------------

    def find(self, container_id: str) -> Container:
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"Container ID ({container_id}) does not exist", values={"id": container_id}) from None

    async def made(self, container_id: str) -> None:
        """Wait until a verb has made a container.

        :raise NotFound: the verb is gone, and will not make it.
        """
        made = self.expected.setdefault(container_id, asyncio.get_running_loop().create_future())
        try:
            if container_id not in self.containers:
                record = state.load_container(self.record.data["root"], container_id).record
                async with _end_of(record["creator"], record["creator_start"]) as gone:
                    waited: set[asyncio.Future[Any]] = {made, gone}
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not made.done() and container_id not in self.containers:
                    raise NotFound(f"the verb that was to make container {container_id} is gone",
                                   values={"id": container_id})
        except KataError:
            self.expected.pop(container_id, None)
            raise
        await asyncio.shield(made)

    async def create(self, plan: ContainerPlan, root: str, resources: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Make a container and its first process, ready to run.

        End state: the container is recorded as ``created``.  On failure the
        sandbox is as before.

        :param fds: one mount per share of ``plan``, in order.
        """
        if plan.id in self.containers:
            raise InUse(f"ID already in use, unique ID should be provided: {plan.id}", values={"id": plan.id})
        container = Container(plan, root, resources, state.load_container(root, plan.id))
        made = self.expected.setdefault(plan.id, asyncio.get_running_loop().create_future())
        self.containers[plan.id] = container
        try:
            self.record.add_container(root, plan, resources, container.cgroup, making=True)
            for share, fd in zip(plan.shares, fds, strict=True):
                self.share.add(plan.id, share.name, fd, share.is_dir)
            self.phase("container's mounts shared")
            await asyncio.shield(self.ready)
            await self.network.sync()
            await self.network.relay_dns(plan.dns_relay)
            self.phase("network as the container needs it")
            await self._make(container)
            self.phase("container made in the guest")
            self.track(container, plan.id)
            container.set_status("created")
            self.record.add_container(root, plan, resources, container.cgroup)
        except BaseException as e:
            error = e if isinstance(e, KataError) else VmError("making the container was interrupted")
            made.set_exception(error)
            made.exception()
            await self._discard(container)
            raise
        finally:
            self.expected.pop(plan.id, None)
        made.set_result(container)

    async def _make(self, container: Container) -> None:
        plan = container.plan
        for disk in plan.disks:
            name = f"disk-{disk.serial}"
            # Several containers may name one device: the machine has it once.
            if not self._disk_users(name):
                await self.machine.add_disk(name, disk.source, disk.serial, disk.read_only)
            container.disks.append(name)
        # One behind the other, as the agent takes them: nothing runs before a start, which both have to precede.
        spec = {**plan.spec, "process": with_home(self.share, plan, plan.spec["process"])}
        announced = self.agent.guest("PrepareContainer", convert.container_extras(plan.id, plan.extras))
        made = self.agent.agent("CreateContainer", agent_pb2.CreateContainerRequest(
            container_id=plan.id, exec_id=plan.id, OCI=convert.oci_spec(spec),
            storages=convert.storages(plan.storages), sandbox_pidns=self.plan.shared_pidns), timeout=HOOKS_TIMEOUT)
        for outcome in await asyncio.gather(announced, made, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _discard(self, container: Container) -> None:
        """Undo ``create`` as far as it got."""
        self.containers.pop(container.id, None)
        if not self.machine.gone.is_set() and self.ready.done() and self.ready.exception() is None:
            await self.leave_guest(container.id, container.disks)
        self.share.remove(container.id)
        with _without_room():
            self.record.remove_container(container.id)

    def _disk_users(self, name: str) -> list[Container]:
        return [container for container in self.containers.values() if name in container.disks]

    async def leave_guest(self, container_id: str, disks: Sequence[str]) -> None:
        """Take a container and its disks out of the machine, as far as the guest goes along."""
        try:
            await self.agent.agent("RemoveContainer", agent_pb2.RemoveContainerRequest(container_id=container_id),
                                   timeout=KILL_TIMEOUT)
        except GuestError as e:
            if e.code != 5:  # NOT_FOUND: it never came to be
                log(f"removing {container_id} in the guest: {e}")
        except VmError as e:
            log(f"removing {container_id} in the guest: {e}")
            return  # it would not let go of a disk either
        for name in disks:
            if any(other.id != container_id for other in self._disk_users(name)):
                continue
            try:
                await self.machine.remove_disk(name)
            except KataError as e:
                log(f"releasing {name}: {e}")

    async def start(self, container_id: str) -> None:
        container = self.find(container_id)
        async with container.lock:
            container.require("start", "created")
            # Newer engines wire the network between create and start.
            await self.network.sync()
            await self.agent.agent("StartContainer", agent_pb2.StartContainerRequest(container_id=container_id),
                                   timeout=HOOKS_TIMEOUT)
            self.phase("container started in the guest")
            if container.status == "created":  # it may have ended already
                container.set_status("running", started=time.time())

    async def exec(self, container_id: str, exec_id: str, process: Mapping[str, Any], extras: Mapping[str, Any],
                   ignore_paused: bool) -> None:
        container = self.find(container_id)
        if ignore_paused:
            await container.until_resumed()
        container.require("exec in", "created", "running")
        self.phase("exec asked for")
        if any(extras.values()):  # most have nothing that ExecProcess cannot carry
            await self.agent.guest("PrepareProcess", convert.process_extras(container_id, exec_id, extras))
            self.phase("exec announced to the guest")
        await self.agent.agent("ExecProcess", agent_pb2.ExecProcessRequest(
            container_id=container_id, exec_id=exec_id,
            process=convert.oci_process(with_home(self.share, container.plan, process))))
        self.phase("exec made in the guest")
        self.track(container, exec_id)

    async def kill(self, container_id: str, number: int, everything: bool) -> None:
        container = self.find(container_id)
        if everything and container.status == "stopped":
            return
        container.require("kill", "created", "running", "paused")
        if self.machine.gone.is_set():
            return
        await self.signal(container_id, "" if everything else container_id, number)

    async def signal(self, container_id: str, exec_id: str, number: int) -> None:
        request = agent_pb2.SignalProcessRequest(container_id=container_id, exec_id=exec_id, signal=number)
        try:
            await self.agent.agent("SignalProcess", request, timeout=KILL_TIMEOUT)
        except GuestError:
            raise
        except VmError as e:
            if number != 9:
                raise
            # A guest that does not answer cannot refuse to die.
            log(f"ending the machine: {e}")
            await self.machine.kill()

    async def goes_on(self) -> None:
        """Wait while the machine stands still: nothing in it would answer."""
        while (paused := pausing.halted(self)) is not None:
            await paused.until_resumed()

    async def end_orphan(self, container_id: str, exec_id: str) -> None:
        """End a process whose shim is gone: its pid on the host is dead."""
        log(f"the shim of {exec_id} in {container_id} is gone; ending its process")
        await self.goes_on()
        await self.signal(container_id, exec_id, 9)

    async def pause(self, container_id: str) -> None:
        container = self.find(container_id)
        async with container.lock:
            container.require("pause", "running")
            await pausing.pause(self, container)

    async def resume(self, container_id: str) -> None:
        container = self.find(container_id)
        async with container.lock:
            container.require("resume", "paused")
            await pausing.resume(self, container)

    async def let_go_on(self) -> None:
        """Resume a machine that stands still for the sake of a container: somebody has to be killed."""
        paused = pausing.halted(self)
        if paused is not None:
            await pausing.resume(self, paused)

    async def delete(self, container_id: str, force: bool) -> bool:
        """Remove a container; True when the sandbox has none left and its machine is gone."""
        container = self.find(container_id)
        async with container.lock:
            self.find(container_id)  # somebody else may have removed it meanwhile
            # A process whose shim is gone is on its way out, and as good as stopped.
            if not force and container.record.status() != "stopped":
                container.require("delete", "created", "stopped")
            await self.let_go_on()
            alone = len(self.containers) == 1
            if force and container.plan.role == "sandbox" and not alone:
                # The pod's end: what else runs in it is killed, and is its engine's to delete.
                await self.machine.kill()
            if not self.machine.gone.is_set() and not (alone and self._at_rest(container)):
                await self.leave_guest(container_id, container.disks)
            last = len(self.containers) == 1  # others may have left meanwhile
            if last:
                self.closing = True
                await self.machine.kill()
            for future in container.processes.values():
                if not future.done():
                    future.set_result(137)
            with _without_room():
                container.set_exited(137)
            self.containers.pop(container_id, None)
            self.share.remove(container_id)
            with _without_room():
                self.record.remove_container(container_id)
            if last:
                # Before the answer: who gets it may end this process.
                await self.network.stop()
        return last

    def _at_rest(self, container: Container) -> bool:
        """Whether a container holds nothing in the guest that has to be put away before the machine ends.

        All processes of a pid namespace have ended when its first one has, and what they wrote is the host's; a
        disk that was written to has to be unmounted.
        """
        extras, first = container.plan.extras, container.processes.get(container.id)
        own_pids = any(n["type"] == "pid" for n in container.plan.spec["linux"]["namespaces"])
        shared_pids = (self.plan.shared_pidns or extras.get("sandbox_pidns_host")
                       or any(j["type"] == "pid" for j in extras.get("join", ())))
        return (first is not None and first.done() and own_pids and not shared_pids
                and all(disk.read_only for disk in container.plan.disks)
                and not self.plan.guest_hook_path)

    async def resize(self, vcpus: int, memory: int) -> None:
        """Grow the machine to ``vcpus`` and ``memory`` MiB, as far as it has room; it never shrinks by unplugging."""
        await asyncio.shield(self.ready)
        await self.grow(vcpus, memory)

    async def grow(self, vcpus: int, memory: int) -> None:
        """:meth:`resize` while the machine comes up."""
        more = vcpus - await self.machine.vcpus()
        added = await self.machine.add_vcpus(more) if more > 0 else 0
        now, most = await self.machine.memory(), self.plan.machine.max_memory
        # A limit may be more than the host has; and a flavor that does not resize makes machines without room.
        room = max(0, most - now) // MEMORY_BLOCK * MEMORY_BLOCK
        missing = min(memory - now, room)
        if memory - now > room:
            log(f"the machine gets {now + room} MiB, not {memory}: it was made for {most}")
        if missing > 0:
            added_memory = await self.machine.add_memory(missing)
            log(f"memory grown by {added_memory} MiB")
        if added or missing > 0:
            await self.agent.agent("OnlineCPUMem", agent_pb2.OnlineCPUMemRequest(wait=True, nb_cpus=added))

    async def update_unified(self, container_id: str, unified: Mapping[str, str]) -> None:
        if unified:
            request = guest_pb2.UpdateUnifiedRequest(container_id=container_id, unified=unified)
            await self.agent.guest("UpdateUnified", request)

    async def release(self, container_id: str, exec_id: str) -> None:
        """Forget a process that has ended and whose output was delivered."""
        container = self.containers.get(container_id)
        if container is None or container.processes.pop(exec_id, None) is None or self.closing:
            return
        await self.agent.guest("ReleaseProcess", guest_pb2.ProcessId(container_id=container_id, exec_id=exec_id))

    async def close(self) -> None:
        """End everything.  End state: no QEMU, no task; called again: nothing happens."""
        self.closing = True
        await self.machine.kill()
        for task in list(self.tasks):
            task.cancel()
        await self.network.stop()
        await self.agent.close()
        for name in ("channel.sock", "qmp.sock"):
            if os.path.exists(f"{self.directory}/{name}"):
                os.unlink(f"{self.directory}/{name}")


@contextmanager
def _without_room() -> Iterator[None]:
    """What ends does so where its record cannot be written, too: the processes that are gone say the same."""
    try:
        yield
    except HostError as e:
        log(f"{e}")


@asynccontextmanager
async def _end_of(pid: int, started: int) -> AsyncIterator[asyncio.Future[None]]:
    """A future that is done when process ``pid``, which started at ``started``, has ended."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        pidfd = syscalls.pidfd_open(pid)
    except ProcessLookupError:
        ended.set_result(None)
        yield ended
        return
    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    try:
        if state.alive(pid, started):
            loop.add_reader(pidfd, end)
        else:
            end()
        yield ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _report_oom(cgroup: str) -> None:
    """Let engines that watch the container's cgroup on the host see that it ran out of memory."""
    try:
        await asyncio.to_thread(cgroups.signal_oom, cgroup)
    except KataError as e:
        log(f"{e}")
