"""The proxy's program: ``python -m kata.proxy SANDBOX-DIRECTORY [--resume | --pooled]``.

Started by a verb in the sandbox's network namespace and cgroup, with the
listening control socket as descriptor 3.  QEMU is started, and a clone has its
state, before anything heavy is imported: the guest runs meanwhile.  With ``--resume`` it takes
over a machine whose proxy is gone.  With ``--pooled`` it makes a machine warm,
stops it, and waits until somebody claims it.
"""

from __future__ import annotations

import gc
import os
import sys
import time

import kata
import kata_agent
from kata import state, template
from kata.contract import MachinePlan, SandboxPlan
from kata.errors import HostError, KataError, VmError
from kata.planjson import from_json
from kata.proxy.log import log
from kata.storage import mountns, special
from kata.storage.share import ShareRoot
from kata.teardown import end_process
from kata.vm.launch import Memory, files, launch
from kata.vm.restore import restore
from kata_agent.linux import syscalls

TYPE_CHECKING = False  # typing is not imported: it is slow, and QEMU waits for it
if TYPE_CHECKING:
    from typing import Any

    from kata.greeting import Greeting

LISTENER = 3


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


def main(argv: list[str]) -> int:
    gc.disable()  # hardly anything of an import is garbage
    syscalls.set_name("kata-proxy")
    directory, resume, pooled = argv[0], "--resume" in argv[1:], "--pooled" in argv[1:]
    if pooled:
        # It is claimed by renaming it: only the working directory goes along.
        os.chdir(directory)
        directory = "."
    # QEMU must not have it: a listener that it held would take connections after our end.
    os.set_inheritable(LISTENER, False)
    try:
        start = Start(directory)
    except KataError as e:
        log(f"cannot start: {e}")
        return 1
    start.phase("proxy runs")
    failure: KataError | None = None
    try:
        if resume:
            start.resume()
        else:
            start.boot()
    except KataError as e:
        failure = e
    except OSError as e:
        failure = HostError(f"the proxy cannot set the sandbox up: {e}")
    # Heavy from here on: asyncio, protobuf, QMP.
    _lighten()
    import socket

    from kata.proxy import boot
    from kata.proxy.serve import serve

    gc.freeze()
    gc.enable()
    how = boot.take_over if resume else boot.warm_up if pooled else boot.boot
    serve(start, socket.socket(fileno=LISTENER), failure, how)
    sys.stdout.flush()
    # Nothing is left to tidy up; the interpreter's own end takes longer than ours.
    os._exit(0)


def _lighten() -> None:
    """Keep out what others import and nobody here uses: it takes time and memory.

    asyncio does without :mod:`ssl` where an interpreter lacks it; qemu.qmp names its SSLContext in annotations.
    """
    sys.modules["ssl"] = None  # type: ignore[assignment]
    import asyncio  # noqa: F401

    import kata_agent.protocol  # noqa: F401  (before anything of protobuf)

    absent: Any = type(sys)("ssl")
    absent.SSLContext = object
    sys.modules["ssl"] = absent


if __name__ == "__main__":
    main(sys.argv[1:])
