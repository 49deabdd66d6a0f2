"""What a sandbox's guest is told when it comes up; light, since a clone is told it before asyncio is imported."""

from __future__ import annotations

import os
import time

from kata.contract import SandboxPlan
from kata.greeting import Greeting
from kata.vm.argv import SHARE_TAG
from kata_agent.protocol import agent_pb2, guest_pb2

GUEST_SHARE = "/run/kata/shared"


def create_sandbox(plan: SandboxPlan) -> agent_pb2.CreateSandboxRequest:
    """Set the guest up: its modules, hooks and the share."""
    return agent_pb2.CreateSandboxRequest(
        hostname=plan.hostname,
        sandbox_pidns=plan.shared_pidns,
        sandbox_id=plan.id,
        guest_hook_path=plan.guest_hook_path,
        kernel_modules=[agent_pb2.KernelModule(name=m.split()[0], parameters=m.split()[1:])
                        for m in plan.kernel_modules],
        storages=[agent_pb2.Storage(
            driver="9p", source=SHARE_TAG, fstype="9p", mount_point=GUEST_SHARE,
            options=["trans=virtio", "version=9p2000.L", "cache=mmap", f"msize={plan.machine.msize_9p}"])],
    )


def personalize(plan: SandboxPlan) -> guest_pb2.PersonalizeRequest:
    """Make a clone distinct before anything runs in it: clock, entropy, machine id, host name."""
    return now(guest_pb2.PersonalizeRequest(
        entropy=os.urandom(64), machine_id=os.urandom(16).hex(), hostname=plan.hostname))


def now(request: guest_pb2.PersonalizeRequest) -> guest_pb2.PersonalizeRequest:
    """``request`` with the time of this moment."""
    request.time_sec, request.time_nsec = divmod(time.time_ns(), 10**9)
    return request


def greet_clone(path: str, token: str, plan: SandboxPlan) -> Greeting:
    """Tell a clone's agent both, over the channel at ``path``; it takes one after the other.

    :raise VmError: QEMU is gone.
    """
    greeting = Greeting(path, token)
    greeting.ask("kata.v1.Guest", "Personalize", personalize(plan))
    greeting.ask("grpc.AgentService", "CreateSandbox", create_sandbox(plan))
    return greeting
