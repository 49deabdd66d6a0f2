"""What a proxy starts before its event loop: QEMU, and a template's clone with its state and its first requests."""

from __future__ import annotations

import os
import sys
import time

import kata
import kata_agent
from kata import state, template
from kata.contract import MachinePlan, SandboxPlan
from kata.errors import HostError, VmError
from kata.planjson import from_json
from kata.proxy.log import log
from kata.storage import mountns, special
from kata.storage.share import ShareRoot
from kata.teardown import end_process
from kata.vm.launch import Memory, files, launch
from kata.vm.restore import restore

TYPE_CHECKING = False  # typing is not imported: it is slow, and QEMU waits for it
if TYPE_CHECKING:
    from typing import Any

    from kata.greeting import Greeting


class Start:
    """What was started before the event loop: a machine, or why there is none."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.record = state.read_json(f"{directory}/sandbox.json")
        self.plan: SandboxPlan = from_json(SandboxPlan, self.record["plan"])
        self.share: ShareRoot | None = None
        self.machine = self.plan.machine
        self.greeting: Greeting | None = None  #: of a template's clone, which goes on already
        self.pid = 0
        self.token = ""
        self.phases: list[tuple[float, str]] = []

    def phase(self, name: str) -> None:
        """As of a sandbox."""
        self.phases.append((time.monotonic(), name))

    def update(self, **changes: Any) -> None:
        self.record.update(changes)
        state.write_json(f"{self.directory}/sandbox.json", self.record)

    def boot(self) -> None:
        """Start QEMU; a clone goes on.

        :raise KataError: and QEMU does not run.
        """
        machine = self.plan.machine
        found = None if self.plan.boot == "cold" else template.open_template(self.plan)
        mountns.enter_private([
            os.path.abspath(self.directory), self.record["root"], self.plan.template_path, *files(machine),
            *sys.path, *kata.__path__, *kata_agent.__path__, sys.prefix, sys.base_prefix])
        self.share = ShareRoot.create(f"{self.directory}/share")
        if found is None:
            self.launch(machine)
            return
        with found:
            self.launch(template.base_machine(self.plan), Memory(found.memory, False, found.channel_token,
                                                                 found.read_only))
            from kata.proxy.words import greet_clone  # protobuf; QEMU is not ready yet

            try:
                restore(f"{self.directory}/qmp.sock", found.state)
                self.phase("template's state loaded")
                self.greeting = greet_clone(f"{self.directory}/channel.sock", self.token, self.plan)
            except VmError as e:
                log(f"the template does not work and is removed: {e}")
            else:
                self.phase("agent greeted")
                return
        end_process(self.pid, self.record["qemu"]["start"])
        template.discard(self.plan)
        self.remove_sockets()
        self.launch(machine)

    def remove_sockets(self) -> None:
        """Those of a QEMU that is gone."""
        for name in ("channel.sock", "qmp.sock"):
            os.unlink(f"{self.directory}/{name}")

    def launch(self, machine: MachinePlan, memory: Memory | None = None) -> None:
        """Start QEMU; it is recorded before it executes."""
        assert self.share is not None

        def in_child(token: str) -> None:
            self.update(qemu={"pid": os.getpid(), "start": state.start_time(os.getpid())}, channel_token=token)
            special.install()

        launched = launch(machine, f"sandbox-{self.plan.id[:12]}", self.directory, self.share.path, memory, in_child)
        self.machine, self.pid, self.token = machine, launched.pid, launched.channel_token
        self.record = state.read_json(f"{self.directory}/sandbox.json")
        self.phase("QEMU started")

    def resume(self) -> None:
        """Take over the machine that an earlier proxy started.

        :raise HostError: it is gone.
        """
        qemu = self.record.get("qemu") or {"pid": 0, "start": 0}
        if not state.alive(qemu["pid"], qemu["start"]):
            raise HostError("the sandbox's machine is gone", "delete its containers with --force")
        mountns.join(qemu["pid"])
        self.share = ShareRoot.reopen(f"{self.directory}/share")
        self.pid, self.token = qemu["pid"], self.record["channel_token"]
