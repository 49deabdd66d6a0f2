"""Start of the agent: ``python3 -I -S -m kata_agent`` as PID 1 of a guest.

With words of the form ``agent.KEY=VALUE`` as arguments it takes these for the
kernel command line and leaves the machine as it is: for development, in
namespaces of its own (``unshare --pid --fork --mount --mount-proc``).
"""

from __future__ import annotations

import gc
import os
import sys

from kata_agent import boot, devicefilter, features, log
from kata_agent.boot import Clock
from kata_agent.channel import Channel
from kata_agent.linux import syscalls as sc
from kata_agent.linux.light import signal
from kata_agent.loop import Loop
from kata_agent.protocol import agent_pb2, guest_pb2, health_pb2, oci_pb2, ttrpc, types_pb2
from kata_agent.sandbox import Sandbox
from kata_agent.server import Server
from kata_agent.services import agent, guest, health
from kata_agent.settings import Settings

_DRIVERS_AFTER = 3.0  # seconds
_KEPT = 8 << 20  # bytes of freed memory that are not given back to the kernel at once
_COLLECT_AFTER = 10_000  # objects that came and did not go; a container leaves some hundred in cycles


def main() -> int:
    """Serve until the machine is switched off."""
    clock = Clock()
    settings = Settings()
    words = sys.argv[1:]
    sc.keep_freed_memory(_KEPT)
    loop = Loop()
    # The kernel keeps signals without a handler away from PID 1; Python's handler would end it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if words:
        settings.add(words)
        log.setup(2, settings.log_level)
        cgroup = boot.CGROUP if sc.statfs_type(boot.CGROUP) == sc.CGROUP2_SUPER_MAGIC else ""
        signal.signal(signal.SIGTERM, lambda _signum, _frame: loop.stop())
    else:
        settings.is_guest = True
        cgroup = boot.guest(settings, clock)
        features.require()
    for warning in settings.warnings:
        log.warning(warning)
    serve(loop, settings, clock, cgroup)
    return 0


def serve(loop: Loop, settings: Settings, clock: Clock, cgroup: str) -> None:
    """Open the channel and answer requests."""
    loop.catch_children()
    sandbox = Sandbox(loop, settings, cgroup)
    sandbox.setup()
    if not cgroup:
        log.warning("no cgroup2: containers cannot be limited, paused or counted")
    sandbox.boot_nsec = clock.phases
    clock.mark("sandbox")
    # Without one on the command line, which another runtime has written, whoever asks first is told.
    channel = Channel(loop, settings.token or os.urandom(ttrpc.TOKEN_SIZE), tells=not settings.token)
    server = Server(loop, channel.send)
    channel.on_frame, channel.on_reset = server.on_frame, server.reset
    for module, files, handlers in (
        (health, health_pb2.DESCRIPTOR, health.Health()),
        (agent, agent_pb2.DESCRIPTOR, agent.AgentService(sandbox)),
        (guest, guest_pb2.DESCRIPTOR, guest.Guest(sandbox)),
    ):
        server.register([files], module.SERVICE, handlers)
    server.keep_apart(guest.SERVICE, "WriteStream", guest_pb2.WriteRequest.DATA_FIELD_NUMBER)
    _open(loop, sandbox, channel, clock)
    if settings.is_guest:
        # The balloon, the entropy device: nothing waits for them, and a container may be waiting for the processor.
        loop.after(_DRIVERS_AFTER, sandbox.find_drivers)
        devicefilter.preload()
    if settings.is_template:
        _make_classes()
    # What lives now lives for ever: children need not copy its pages because a collector marks objects in them.
    # Of 13,000 objects 80 are garbage, which is not worth looking for.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)  # a collection in the middle of a start takes longer than it is worth
    gc.enable()
    loop.run()


def _make_classes() -> None:
    """Make the classes of all messages, which else are made when they are first asked for."""
    for file in (agent_pb2, guest_pb2, health_pb2, oci_pb2, types_pb2):
        for name in file.DESCRIPTOR.message_types_by_name:
            getattr(file, name)


def _open(loop: Loop, sandbox: Sandbox, channel: Channel, clock: Clock) -> None:
    kind, _, where = sandbox.settings.channel.partition(":")
    if kind == "unix":
        channel.listen(where)
        clock.mark("channel")
        return

    def found(path: str | None) -> None:
        if path is None:
            log.error(f"there is no virtio-serial port {where}")
            loop.stop()
            return
        channel.open_port(path)
        clock.mark("channel")
        log.info("serving")

    sandbox.uevents.wait(lambda: boot.find_port(where), 60.0, found)


if __name__ == "__main__":
    sys.exit(main())
