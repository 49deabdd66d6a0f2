"""The guest as a machine: processors, memory, clock, entropy, name."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Sequence

from kata_agent import __version__, features, storage
from kata_agent.blockdev import HANDLERS as DEVICE_HANDLERS
from kata_agent.cgroup import memory, read
from kata_agent.errors import AgentError, internal, invalid
from kata_agent.linux import syscalls as sc
from kata_agent.protocol import agent_pb2, codes, guest_pb2

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from kata_agent.sandbox import Sandbox

_CPUS = "/sys/devices/system/cpu"
_MEMORY = "/sys/devices/system/memory"
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_MAX_ENTROPY = 4096  # bytes


def _offline() -> list[str]:
    """Folders of processors that are plugged in but not in use."""
    found = []
    for name in os.listdir(_CPUS):
        path = f"{_CPUS}/{name}/online"
        if name.startswith("cpu") and name[3:].isdigit() and os.path.exists(path) and read(path) == "0":
            found.append(path)
    return found


def online(
    sandbox: Sandbox, processors: int, blocks: bool, done: Callable[[AgentError | None], None]
) -> None:
    """Use plugged processors (and memory blocks).

    :param blocks: memory, too
    :param processors: 0 = what is there now, else wait until so many more are.
    """
    count = 0

    def bring_up() -> bool | None:
        nonlocal count
        for path in _offline():
            _enable(path, "1")
            count += 1
        if blocks:
            _online_memory()
        return True if count >= processors else None

    def finished(result: bool | None) -> None:
        sandbox.cgroups.guard()
        if result:
            done(None)
        else:
            text = f"{count} of {processors} processors appeared within {sandbox.settings.hotplug_timeout:g} s"
            done(AgentError(codes.DEADLINE_EXCEEDED, text))

    sandbox.uevents.wait(bring_up, sandbox.settings.hotplug_timeout, finished)


def _enable(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


def _online_memory() -> None:
    if not os.path.isdir(_MEMORY):
        return  # a kernel without memory hotplug
    for name in os.listdir(_MEMORY):
        path = f"{_MEMORY}/{name}/state"
        if name.startswith("memory") and os.path.exists(path) and read(path) == "offline":
            _enable(path, "online")


def probe_memory(addresses: Sequence[int]) -> None:
    """Tell the kernel of memory at physical addresses, where no firmware does.

    :raise AgentError: INTERNAL.
    """
    for address in addresses:
        try:
            _enable(f"{_MEMORY}/probe", f"{address:#x}")
        except OSError as error:
            raise internal(f"memory at {address:#x}: {error.strerror}") from None


def details(block_size: bool, probe: bool) -> agent_pb2.GuestDetailsResponse:
    """What the guest can do; the sizes only when they are asked for."""
    response = agent_pb2.GuestDetailsResponse()
    if block_size:
        try:
            response.mem_block_size_bytes = int(read(f"{_MEMORY}/block_size_bytes"), 16)
        except OSError:
            pass  # no memory hotplug: 0
    response.support_mem_hotplug_probe = probe and os.path.exists(f"{_MEMORY}/probe")
    agent = response.agent_details
    agent.version = __version__
    agent.init_daemon = os.getpid() == 1
    agent.device_handlers.extend(DEVICE_HANDLERS)
    agent.storage_handlers.extend(storage.HANDLERS)
    from kata_agent import seccomp

    agent.supports_seccomp = seccomp.available()
    return response


def set_clock(seconds: int, nanoseconds: int) -> None:
    """
    :raise AgentError: INVALID_ARGUMENT.
    """
    if not 0 <= seconds < 1 << 40 or not 0 <= nanoseconds < 1_000_000_000:
        raise invalid(f"{seconds} s and {nanoseconds} ns are no time of day")
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, seconds * 1_000_000_000 + nanoseconds)
    except OSError as error:
        raise invalid(f"the kernel does not take {seconds} s as time of day: {error.strerror}") from None


def reseed(data: bytes) -> None:
    """Mix entropy into the kernel's pool and make its generator start anew.

    :raise AgentError: INVALID_ARGUMENT.
    """
    if not 0 < len(data) <= _MAX_ENTROPY:
        raise invalid(f"1 to {_MAX_ENTROPY} bytes of entropy are expected, not {len(data)}")
    fd = os.open("/dev/random", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", 8 * len(data), len(data)) + data)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def personalize(request: guest_pb2.PersonalizeRequest) -> None:
    """Make a clone of a saved guest distinct.

    :raise AgentError: INVALID_ARGUMENT.
    """
    machine_id = request.machine_id
    if machine_id and (len(machine_id) != 32 or set(machine_id) - set("0123456789abcdef")):
        raise invalid(f"{machine_id[:64]!r} is no machine id")
    if request.time_sec or request.time_nsec:
        set_clock(request.time_sec, request.time_nsec)
    if request.entropy:
        reseed(request.entropy)
    if machine_id:
        with open("/etc/machine-id", "w", encoding="ascii") as file:
            file.write(machine_id + "\n")
    if request.hostname:
        set_hostname(request.hostname)


def set_hostname(name: str) -> None:
    """
    :raise AgentError: INVALID_ARGUMENT.
    """
    if not 0 < len(name.encode()) <= 64 or "\0" in name:
        raise invalid(f"{name[:80]!r} is no host name")
    sc.sethostname(name)


def status(sandbox: Sandbox) -> guest_pb2.GuestStatusResponse:
    """Memory, processors, kernel, boot."""
    total, available = memory()
    return guest_pb2.GuestStatusResponse(
        mem_total=total,
        mem_available=available,
        online_cpus=os.sysconf("SC_NPROCESSORS_ONLN"),
        uptime_nsec=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        kernel_release=os.uname().release,
        agent_version=__version__,
        missing_kernel_features=features.missing(sandbox.cgroups.controllers),
        boot_nsec=sandbox.boot_nsec,
    )
