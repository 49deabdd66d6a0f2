"""What a machine of the pool has done before anybody claims it: a container and an interface, made and removed."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from kata import wire
from kata.contract import ContainerPlan
from kata.errors import VmError
from kata.network.inventory import Interface, IPAddress
from kata.network.tap import open_tap
from kata.proxy import convert
from kata.proxy.streams import Attachment
from kata.storage.clone import clone_mount
from kata_agent.protocol import agent_pb2, guest_pb2, types_pb2

if TYPE_CHECKING:
    from kata.proxy.sandbox import Sandbox

ROOT = "warm-up"  #: folder in the sandbox's directory
#: The guest's programs and libraries: there may be none on the host that run in a guest.
PROGRAMS = [{"destination": "/bin", "type": "bind", "source": "/bin", "options": ["rbind", "ro"]},
            {"destination": "/guest", "type": "bind", "source": "/", "options": ["bind", "ro"]}]

#: An address for documentation (RFC 5737), and a MAC address that nobody else gives.
CARD = Interface(index=0, name="eth0", mac="02:00:00:00:00:01", mtu=1500, kind="", up=True, flags=0,
                 addresses=(IPAddress(4, "192.0.2.2", 24),))
ROUTE = {"dest": "", "gateway": "192.0.2.1", "device": CARD.name}


class _Nobody:
    """In the place of a shim: takes everything."""

    def send(self, *frame: bytes | memoryview) -> None:
        pass

    async def drain(self) -> None:
        pass


async def run_container(sandbox: Sandbox, plan: ContainerPlan, word: str) -> None:
    """Run the container of ``plan``, which may have no share but its root, with the line ``word`` on standard input.

    End state: nothing of it is left, in the guest or on the host.

    :raise VmError: it did not do what it should.
    """
    agent, root = sandbox.agent, f"{sandbox.directory}/{ROOT}"
    os.makedirs(root, 0o755, exist_ok=True)
    fd = clone_mount(root, "rootfs").fd
    try:
        (share,) = plan.shares
        sandbox.share.add(plan.id, share.name, fd, True)
    finally:
        os.close(fd)
    spec = {**plan.spec, "mounts": [*plan.spec["mounts"], *PROGRAMS]}
    await agent.guest("PrepareContainer", convert.container_extras(plan.id, plan.extras))
    await agent.agent("CreateContainer", agent_pb2.CreateContainerRequest(
        container_id=plan.id, exec_id=plan.id, OCI=convert.oci_spec(spec), storages=convert.storages(plan.storages),
        sandbox_pidns=sandbox.plan.shared_pidns))
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    attachment = Attachment(agent, plan.id, plan.id, _Nobody(), (0, 0, 0), False, ended)
    streams = asyncio.ensure_future(attachment.run(lambda: None))
    line = f"{word}\n".encode()
    attachment.on_stdin(0, line, False)
    attachment.on_stdin(len(line), b"", True)
    await agent.agent("StartContainer", agent_pb2.StartContainerRequest(container_id=plan.id))
    reply = await agent.guest("WaitProcess", guest_pb2.ProcessId(container_id=plan.id, exec_id=plan.id))
    ended.set_result(int(reply.status))
    await streams
    if reply.status != 0 or attachment.offsets[wire.STDOUT] != len("warm\n"):
        raise VmError(f"the warm-up container ended with code {reply.status}")
    await agent.agent("RemoveContainer", agent_pb2.RemoveContainerRequest(container_id=plan.id))
    sandbox.share.remove(plan.id)
    import shutil  # late: a machine that is not for the pool does without

    shutil.rmtree(root)


async def plug_interface(sandbox: Sandbox) -> None:
    """Plug in a network card, configure it, and take it out again.  It is joined to nothing.

    End state: as before.
    """
    agent, machine = sandbox.agent, sandbox.machine
    tap = open_tap(ROOT)
    try:
        await machine.add_nic(ROOT, tap, CARD.mac)
    finally:
        os.close(tap)
    interface = convert.strictly(types_pb2.Interface(), CARD.agent())
    await agent.agent("UpdateInterface", agent_pb2.UpdateInterfaceRequest(interface=interface))
    routes = convert.strictly(agent_pb2.Routes(), {"Routes": [ROUTE]})
    await agent.agent("UpdateRoutes", agent_pb2.UpdateRoutesRequest(routes=routes))
    await agent.guest("RemoveInterface", guest_pb2.RemoveInterfaceRequest(hw_addr=CARD.mac))
    await machine.remove_nic(ROOT)
