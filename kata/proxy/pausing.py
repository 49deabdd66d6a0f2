"""What pause means, by the container's plan.

``container``
    Its cgroup in the guest is frozen.
``process``
    Each of its processes is stopped by SIGSTOP and goes on by SIGCONT.
``vm``
    The whole machine stands still, and with it every container in it; nothing
    in the guest answers until one of them is resumed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata.proxy.container import Container
from kata_agent.protocol import agent_pb2

if TYPE_CHECKING:
    from kata.proxy.sandbox import Sandbox


async def pause(sandbox: Sandbox, container: Container) -> None:
    """End state: the container, with ``vm`` all of its sandbox, is recorded as ``paused``; on failure all goes on."""
    if container.plan.pause_scope == "vm":
        sandbox.network.hold()
        try:
            await sandbox.machine.pause()
        except BaseException:
            sandbox.network.release()
            raise
        for each in _of_machine(sandbox, "running"):
            each.set_status("paused")
        return
    freeze = agent_pb2.PauseContainerRequest(container_id=container.id)
    await sandbox.agent.agent("PauseContainer", freeze)
    if container.plan.pause_scope == "process":
        # Frozen meanwhile, so that none forks its way around the signal.
        try:
            await sandbox.signal(container.id, "", signal.SIGSTOP)
        finally:
            await _thaw(sandbox, container)
    container.set_status("paused")


async def resume(sandbox: Sandbox, container: Container) -> None:
    """End state: as before :func:`pause`."""
    if container.plan.pause_scope == "vm":
        await sandbox.machine.resume()
        sandbox.network.release()
        for each in _of_machine(sandbox, "paused"):
            each.set_status("running")
        return
    if container.plan.pause_scope == "process":
        await sandbox.signal(container.id, "", signal.SIGCONT)
    else:
        await _thaw(sandbox, container)
    container.set_status("running")


def halted(sandbox: Sandbox) -> Container | None:
    """The container, if there is one, for whose sake the machine stands still."""
    return next(_of_machine(sandbox, "paused"), None)


async def _thaw(sandbox: Sandbox, container: Container) -> None:
    await sandbox.agent.agent("ResumeContainer", agent_pb2.ResumeContainerRequest(container_id=container.id))


def _of_machine(sandbox: Sandbox, status: str) -> Iterator[Container]:
    return (c for c in sandbox.containers.values() if c.plan.pause_scope == "vm" and c.status == status)
