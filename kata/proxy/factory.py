"""``python -m kata.proxy.factory [--wait]``: make the template for the sandbox plan on standard input.

Started by a sandbox's proxy once the sandbox is ready, so the first start does
not wait for it.  It boots a machine of its own, in a network namespace of its
own, lets the agent get ready, and saves it.  It outlives that sandbox, so it
holds no mount of its containers.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys

from kata import template
from kata.agent_client import AgentClient
from kata.contract import SandboxPlan
from kata.daemons import places
from kata.errors import KataError
from kata.planjson import from_json
from kata.proxy.log import log
from kata.storage import mountns
from kata.vm.launch import Memory, files, launch
from kata.vm.machine import Machine
from kata_agent.linux import syscalls

NICE = 10  #: a start that somebody waits for goes first


def main(argv: list[str]) -> int:
    """:return: 0 when the template is there, made by us or not."""
    syscalls.set_name("kata-factory")
    plan = from_json(SandboxPlan, json.load(sys.stdin))
    os.nice(NICE)
    # QEMU's lifetime is ours, not a sandbox's.
    syscalls.unshare(syscalls.CLONE_NEWNET)
    try:
        mountns.enter_private([plan.template_path, *files(plan.machine), *places(), sys.prefix, sys.base_prefix])
        with template.making(plan, wait="--wait" in argv) as directory:
            if directory is not None:
                asyncio.run(make(plan, directory))
    except KataError as e:
        log(f"template: {e}")
        return 1
    return 0


def _end_with_us(_token: str) -> None:
    """In QEMU's process: nobody else knows of it."""
    syscalls.set_pdeathsig(signal.SIGKILL)


async def make(plan: SandboxPlan, directory: str) -> None:
    """Boot and save a machine into ``directory``.

    :raise VmError: the guest did not come up or could not be saved.
    """
    machine_plan = template.base_machine(plan)
    share = f"{directory}/empty"
    os.mkdir(share, 0o500)
    memory = os.open(f"{directory}/memory", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(memory, machine_plan.memory << 20)
        token = os.urandom(32).hex()
        launched = launch(machine_plan, "template", directory, share, Memory(memory, True, token), _end_with_us)
        machine = Machine(machine_plan, launched.pid, directory)
        try:
            await machine.connect()
            machine.check_version()
            read_only = await machine.reads_memory_file()
            agent = AgentClient(f"{directory}/channel.sock", token)
            try:
                async with asyncio.timeout(plan.boot_timeout):
                    await agent.connect()
                    await agent.check()
            except TimeoutError as e:
                raise machine.failure("the template's agent did not answer in time") from e
            await agent.close()
            await machine.save(f"{directory}/state")
        finally:
            await machine.kill()
    finally:
        os.close(memory)
    with open(f"{directory}/template.json", "x", encoding="ascii") as f:
        json.dump({"format": template.FORMAT, "channel_token": token, "vcpus": machine_plan.vcpus,
                   "memory": machine_plan.memory, "read_only": read_only}, f)
    for name in ("channel.sock", "qmp.sock", "console.log", "qemu.log"):
        os.unlink(f"{directory}/{name}")
    os.rmdir(share)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    log(f"template made; its QEMU took {peak} MiB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
