"""How a sandbox comes up: booted, cloned from a template, out of the pool, taken over from an earlier proxy."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from google.protobuf import empty_pb2

from kata import cgroups, state
from kata.agent_client import AgentClient, ChannelClosed
from kata.contract import ContainerPlan, SandboxPlan
from kata.daemons import start_factory
from kata.errors import HostError, InUse, KataError, NotFound, StateError, VmError
from kata.joining import NETWORK
from kata.network import netns
from kata.planjson import from_json, to_json
from kata.proxy import words
from kata.proxy.become import finish
from kata.proxy.container import Container
from kata.proxy.log import log
from kata.proxy.warmup import plug_interface, run_container
from kata_agent.protocol import guest_pb2

if TYPE_CHECKING:
    from kata.proxy.sandbox import Sandbox

#: How long a shim may take to attach again after the proxy was restarted, seconds.
ATTACH_TIMEOUT = 30.0
#: What is said to the containers that a machine of the pool has run; the first executes a program of its share, too.
WARM_UPS = ("share", "")
CLOCK_ERROR = 0.02  #: seconds that a clone's clock may be behind
CLOCK_TRIES = 10
MAX_PROCESSES = 4096  #: of a container, that a proxy which takes over looks at
EXEC_PREFIX = "exec-"  #: of our own exec ids; clients of agent.sock, whose processes have no shim, choose others


BringUp = Callable[["Sandbox"], Awaitable[None]]


async def bring_up(sandbox: Sandbox, how: BringUp) -> None:
    """Bring the sandbox up; the outcome is in ``sandbox.ready``.

    :param how: :func:`boot`, :func:`warm_up`, :func:`_join` or :func:`take_over`.
    """
    try:
        await how(sandbox)
    except Exception as e:  # whatever it is: nobody may wait for ``ready`` forever
        log(f"the sandbox does not come up: {type(e).__name__}: {e}")
        sandbox.ready.set_exception(
            e if isinstance(e, KataError) else sandbox.machine.failure(f"the boot failed: {e}"))
        sandbox.ready.exception()  # seen: nobody may ever ask for it
        await sandbox.machine.kill()
    else:
        sandbox.ready.set_result(None)


async def boot(sandbox: Sandbox) -> None:
    """Make a machine that was just started, or cloned, ready for containers."""
    plan = sandbox.plan
    began = time.monotonic()
    await _boot_guest(sandbox, began)
    await sandbox.network.start()
    sandbox.phase("network")
    sandbox.spawn(sandbox.events())
    if sandbox.cloned:
        await sandbox.grow(plan.machine.vcpus, plan.machine.memory)
        sandbox.phase("size")
    elif plan.boot != "cold" and plan.template_path:
        start_factory(to_json(plan), plan.template_path)
    log(f"sandbox ready after {time.monotonic() - began:.3f} s")


async def _boot_guest(sandbox: Sandbox, began: float) -> None:
    await sandbox.machine.connect()
    sandbox.machine.check_version()
    sandbox.phase("QEMU answers")
    log(f"QEMU pid {sandbox.machine.pid} answers after {time.monotonic() - began:.3f} s")
    await reach_agent(sandbox)
    sandbox.phase("agent answers")
    log(f"agent answers after {time.monotonic() - began:.3f} s")
    if sandbox.cloned:
        assert isinstance(sandbox.agent, AgentClient)  # others have no templates
        for method in ("Personalize", "CreateSandbox"):
            await sandbox.agent.answer(method)
        await personalize(sandbox, guest_pb2.PersonalizeRequest())
    else:
        await sandbox.agent.agent("CreateSandbox", words.create_sandbox(sandbox.plan))
    sandbox.phase("personalised, share mounted in the guest" if sandbox.cloned else "share mounted in the guest")


async def personalize(sandbox: Sandbox, request: guest_pb2.PersonalizeRequest) -> None:
    """Make a clone distinct, or with an empty request only its clock right.

    The guest's clock is behind by what the request took.  Code that is emulated
    for the first time on a busy host takes long: then the time is set again.
    """
    for _ in range(CLOCK_TRIES):
        began = time.monotonic()
        await sandbox.agent.guest("Personalize", words.now(request))
        taken = time.monotonic() - began
        if taken < CLOCK_ERROR:
            return
        request = guest_pb2.PersonalizeRequest()
    log(f"the guest's clock may be {taken:.3f} s behind")


async def reach_agent(sandbox: Sandbox) -> None:
    """Connect to the agent within the boot timeout, or say how the guest failed."""
    machine, timeout = sandbox.machine, sandbox.plan.boot_timeout

    async def reach() -> None:
        await sandbox.agent.connect()
        await sandbox.agent.check(timeout)

    reaching = asyncio.ensure_future(reach())
    gone = asyncio.ensure_future(machine.gone.wait())
    try:
        done, _ = await asyncio.wait({reaching, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise machine.failure(f"the agent in the guest did not answer within {timeout:g} s")
        if gone in done:
            raise machine.failure("the guest ended before its agent answered")
        try:
            reaching.result()
        except ChannelClosed as e:
            raise machine.failure("the guest ended before its agent answered") from e
    finally:
        for task in (reaching, gone):
            task.cancel()
        await asyncio.gather(reaching, gone, return_exceptions=True)


# --- in the pool --------------------------------------------------------------------------


async def warm_up(sandbox: Sandbox) -> None:
    """Make a machine for the pool: it has run a container, and stands still until it is claimed.

    Emulated code is translated when it first runs; what comes later is ten times as fast.
    """
    began = time.monotonic()
    sandbox.spawn(_end_unclaimed(sandbox))
    processes = (os.getpid(), sandbox.machine.pid)
    for pid in processes:
        _set_group_nice(pid, os.getpriority(os.PRIO_PROCESS, 0))
    await _boot_guest(sandbox, began)
    plan = from_json(ContainerPlan, sandbox.record.data["warm_up"])
    if sandbox.plan.network_model != "none":
        await plug_interface(sandbox)
    for word in WARM_UPS:
        await run_container(sandbox, plan, word)
    await sandbox.machine.pause()
    # It was made at low priority; whoever claims it waits for it.
    for pid in processes:
        _set_group_nice(pid, 0)
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(ProcessLookupError):  # it has ended since
                os.setpriority(os.PRIO_PROCESS, int(thread), 0)
    log(f"warm after {time.monotonic() - began:.3f} s")


def _set_group_nice(pid: int, nice: int) -> None:
    """Set the niceness of a process's session: with autogroups its own only counts among that session (sched(7))."""
    with suppress(OSError):  # a kernel without them
        with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
            file.write(str(nice))


async def _end_unclaimed(sandbox: Sandbox) -> None:
    """A machine that ends in the pool takes its proxy along: whoever finds it so removes it."""
    await sandbox.machine.gone.wait()
    if sandbox.pooled:
        sandbox.finished.set()


async def adopt(sandbox: Sandbox, plan: SandboxPlan, root: str, root_id: Sequence[int], network: str,
                fds: Sequence[int]) -> None:
    """Make a machine of the pool a sandbox; its outcome is in ``sandbox.ready``, which is a new one.

    :param root_id: device and inode of ``root``, as the caller sees it.
    :param network: path of the network namespace, "" where the sandbox keeps the machine's own.
    :param fds: that network namespace, opened.
    :raise InUse: it is somebody's already.
    :raise HostError: it cannot be used; it is to be ended.
    """
    if not sandbox.pooled:
        raise InUse("the machine is not in the pool")
    await asyncio.shield(sandbox.ready)
    if sandbox.machine.gone.is_set():
        raise VmError("the machine has ended")
    if state.identity(root) != list(root_id):
        raise HostError(f"{root} is not in reach of the machine's proxy")
    sandbox.pooled = False
    sandbox.record.data.pop("warm_up")
    sandbox.record.update(id=plan.id, root=root, root_id=list(root_id), flavor=plan.flavor, plan=to_json(plan),
                          netns=network)
    sandbox.plan = sandbox.network.plan = plan
    if fds:
        netns.pin(fds[0], f"{sandbox.directory}/{NETWORK}")
        netns.enter(fds[0])
    sandbox.ready = asyncio.get_running_loop().create_future()
    sandbox.replaceable = True
    sandbox.spawn(bring_up(sandbox, _join))


async def _join(sandbox: Sandbox) -> None:
    """What is left to do when the machine gets an owner; if it fails at that, another is booted in its place.

    Nothing was made in it yet, and what its owner has done on the host stays as it is: hooks do not run again.
    """
    try:
        await _join_machine(sandbox)
        if sandbox.machine.gone.is_set():
            raise VmError("it ended")
    except VmError as e:
        if sandbox.closing:
            raise
        log(f"the machine of the pool cannot be used, another is booted: {e}")
        await sandbox.replace_machine()
        sandbox.spawn(sandbox.watch_machine())
    else:
        return
    finally:
        sandbox.replaceable = False
    await boot(sandbox)


async def _join_machine(sandbox: Sandbox) -> None:
    began = time.monotonic()
    sandbox.phase("claimed")
    await sandbox.machine.resume()
    sandbox.phase("QEMU goes on")
    await personalize(sandbox, words.personalize(sandbox.plan))
    sandbox.phase("personalised")
    await sandbox.network.start()
    sandbox.phase("network")
    sandbox.spawn(sandbox.events())
    await sandbox.grow(sandbox.plan.machine.vcpus, sandbox.plan.machine.memory)
    sandbox.phase("size")
    log(f"claimed sandbox {sandbox.plan.id} ready after {time.monotonic() - began:.3f} s")


# --- after a proxy that is gone ---------------------------------------------------------


async def take_over(sandbox: Sandbox) -> None:
    """Go on where an earlier proxy stopped: the guest knows what runs."""
    await sandbox.machine.connect()
    halted = await sandbox.machine.stands_still()
    if halted:  # with a paused container; it has to answer once
        await sandbox.machine.resume()
    await reach_agent(sandbox)
    inventory = await sandbox.agent.guest("ListAll", empty_pb2.Empty())
    guest = {c.container_id: c for c in inventory.containers}
    for container_id, entry in list(sandbox.record.data["containers"].items()):
        try:
            container = await _known(sandbox, container_id, entry)
            if container is not None:
                _go_on(sandbox, container, guest.get(container_id))
        except HostError as e:  # of its share, cgroup or record: no reason to leave the others
            log(f"container {container_id}: {e}")
    finish(sandbox)
    await sandbox.network.resume()
    if halted:
        sandbox.network.hold()
        await sandbox.machine.pause()
    sandbox.spawn(sandbox.events(inventory.last_event))
    log("took over from an earlier proxy")


async def _known(sandbox: Sandbox, container_id: str, entry: Mapping[str, Any]) -> Container | None:
    """A container of the earlier proxy's; one that was not whole is removed."""
    plan = from_json(ContainerPlan, entry["plan"])
    disks = [f"disk-{disk.serial}" for disk in plan.disks]
    record: state.Container | None
    try:
        record = state.load_container(entry["root"], container_id)
    except NotFound:
        record = None
    except StateError as e:
        log(f"container {container_id} goes on without its record: {e}")
        record = state.Unrecorded(entry["root"], container_id, os.path.basename(sandbox.directory), entry)
    if entry.get("making") or record is None:
        log(f"removing {container_id}, which was not whole")
        await sandbox.leave_guest(container_id, disks)
        sandbox.share.remove(container_id)
        sandbox.record.remove_container(container_id)
        return None
    container = sandbox.containers[container_id] = Container(plan, entry["root"], entry["resources"], record)
    container.disks = disks
    return container


def _go_on(sandbox: Sandbox, container: Container, found: guest_pb2.ContainerInfo | None) -> None:
    """Watch a container again.

    :param found: what the guest says of it, if it has it.
    :raise HostError: what is left to do cannot be done; it is watched all the same.
    """
    if found is not None:
        for process in found.processes[:MAX_PROCESSES]:
            exec_id = process.exec_id or container.id
            if exec_id != container.id and process.exited:
                container.processes[exec_id] = _done(process.status)
            else:
                sandbox.track(container, exec_id)
                if exec_id == container.id or exec_id.startswith(EXEC_PREFIX):
                    sandbox.spawn(_expect_shim(sandbox, container, exec_id))
    else:
        container.processes[container.id] = _done(137)
    cgroups.release_limit(container.cgroup)
    if found is None:
        container.set_exited(137)
    elif found.state in ("created", "running", "paused") and container.status != "paused":
        container.set_status(found.state)


async def _expect_shim(sandbox: Sandbox, container: Container, exec_id: str) -> None:
    """End a process whose shim does not attach again: it went while there was no proxy."""
    pid, started = container.record.record["pid"], container.record.record["pid_start"]
    if exec_id != container.id or not pid or state.alive(pid, started):
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT):
                await container.attached(exec_id)
                return
        except TimeoutError:
            pass
    if not container.processes[exec_id].done():
        await sandbox.end_orphan(container.id, exec_id)


def _done(status: int) -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(status)
    return future
