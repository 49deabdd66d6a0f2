"""linux.resources of the runtime-spec, written for cgroup v1, as cgroup v2 files.

The conversions are those that runc and crun agree on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from kata_agent import log
from kata_agent.cgroup import Cgroup, check_unified, read
from kata_agent.errors import invalid
from kata_agent.identity import cpu_list
from kata_agent.protocol import oci_pb2

_DEFAULT_PERIOD = 100000  # microseconds
_INFINITE = (1 << 63) - 4096  # a v1 limit at or above this means none
_ONLINE = {"cpuset.cpus": "/sys/devices/system/cpu/online", "cpuset.mems": "/sys/devices/system/node/online"}

#: Files that would strangle the Python code that prepares a container; written after its execve.
_LATE = ("memory.max", "memory.high", "memory.swap.max", "cpu.max")


def cpu_weight(shares: int) -> int:
    """cpu.weight (1..10000) of v1 cpu shares (2..262144)."""
    shares = min(max(shares, 2), 262144)
    return 1 + (shares - 2) * 9999 // 262142


def io_weight(weight: int) -> int:
    """io.weight (1..10000) of a v1 blkio weight (10..1000, and for the BFQ scheduler, and so for runc, from 1)."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990


def _limit(value: int) -> str:
    return "max" if value < 0 or value >= _INFINITE else str(value)


class Limits:
    """What is to be written, by file name, in order."""

    def __init__(self, resources: oci_pb2.LinuxResources, unified: Mapping[str, str], old_limit: int = 0) -> None:
        """
        :param old_limit: memory limit so far, for a swap limit that comes without one; bytes.
        :raise AgentError: INVALID_ARGUMENT.
        """
        self.files: list[tuple[str, str, str]] = []  #: (file, value, what it is)
        self.weights: list[tuple[str, str]] = []  #: (file, value): wishes, not limits
        self._memory(resources.Memory, old_limit)
        self._cpu(resources.CPU)
        self._block_io(resources.BlockIO)
        if resources.Pids.Limit:
            self.files.append(("pids.max", _limit(resources.Pids.Limit), "the pids limit"))
        for page in resources.HugepageLimits:
            if not page.Pagesize or not page.Pagesize.isalnum():
                raise invalid(f"{page.Pagesize!r} is no size of huge pages")
            self.files.append((f"hugetlb.{page.Pagesize}.max", _limit(page.Limit), f"the {page.Pagesize} page limit"))
        if resources.Network.ClassID or resources.Network.Priorities:
            log.warning("network class and priorities do not exist in cgroup v2")
        check_unified(dict(unified))
        self.files += [(key, value, f"unified {key}") for key, value in unified.items()]

    def _memory(self, memory: oci_pb2.LinuxMemory, old_limit: int) -> None:
        limit = memory.Limit or old_limit
        if memory.Swap:
            if memory.Swap < 0:
                swap = "max"
            elif limit < 0:
                raise invalid("a swap limit needs a memory limit")
            elif memory.Swap < limit:
                raise invalid(f"the memory+swap limit {memory.Swap} is below the memory limit {limit}")
            else:
                swap = str(memory.Swap - limit)
            self.weights.append(("memory.swap.max", swap))
        if memory.Limit:
            self.files.append(("memory.max", _limit(memory.Limit), "the memory limit"))
        if memory.Reservation:
            self.files.append(("memory.low", _limit(memory.Reservation), "the memory reservation"))
        for name in ("Kernel", "KernelTCP", "Swappiness", "DisableOOMKiller"):
            if getattr(memory, name):
                log.warning(f"memory.{name} does not exist in cgroup v2")

    def _cpu(self, cpu: oci_pb2.LinuxCPU) -> None:
        if cpu.Shares:
            self.files.append(("cpu.weight", str(cpu_weight(cpu.Shares)), "cpu shares"))
        if cpu.Quota or cpu.Period:
            quota = str(cpu.Quota) if cpu.Quota > 0 else "max"
            self.files.append(("cpu.max", f"{quota} {cpu.Period or _DEFAULT_PERIOD}", "the cpu quota"))
        if cpu.Cpus:
            cpu_list(cpu.Cpus)
            self.files.append(("cpuset.cpus", cpu.Cpus, "the cpu set"))
        if cpu.Mems:
            cpu_list(cpu.Mems)
            self.files.append(("cpuset.mems", cpu.Mems, "the memory nodes"))
        if cpu.RealtimePeriod or cpu.RealtimeRuntime:
            log.warning("realtime cpu limits do not exist in cgroup v2")

    def _block_io(self, io: oci_pb2.LinuxBlockIO) -> None:
        if io.Weight:
            self.weights.append(("io.weight", f"default {io_weight(io.Weight)}"))
        for device in io.WeightDevice:
            self.weights.append(("io.weight", f"{device.Major}:{device.Minor} {io_weight(device.Weight)}"))
        self._throttle("rbps", io.ThrottleReadBpsDevice)
        self._throttle("wbps", io.ThrottleWriteBpsDevice)
        self._throttle("riops", io.ThrottleReadIOPSDevice)
        self._throttle("wiops", io.ThrottleWriteIOPSDevice)

    def _throttle(self, key: str, devices: Iterable[oci_pb2.LinuxThrottleDevice]) -> None:
        for device in devices:
            rate = str(device.Rate) if device.Rate else "max"
            self.files.append(("io.max", f"{device.Major}:{device.Minor} {key}={rate}", "a block I/O limit"))

    def apply(self, cgroup: Cgroup, when: str = "all") -> None:
        """Write the files.

        :param when: "early" before the container's first process runs Python
            code in the cgroup, "late" after its execve, or "all".
        :raise AgentError: a limit cannot be set.
        """
        for name, value in self.weights:
            if not _due(name, when):
                continue
            if cgroup.has(name):
                cgroup.set(name, value, name)
            else:
                log.warning(f"this guest's kernel has no {name}")
        for name, value, what in self.files:
            if _due(name, when):
                cgroup.set(name, _online(name, value), what)


def _due(name: str, when: str) -> bool:
    return when == "all" or (name in _LATE) == (when == "late")


def fit(wanted: str, online: set[int]) -> str:
    """Processors or memory nodes of a list for the host's machine, on this one.

    Where the machines have none in common, as many of this one's as the list has.
    """
    listed = cpu_list(wanted)
    both = sorted(listed & online)
    if not both:
        both = sorted(online)[: len(listed)]
        log.warning(f"the guest has none of {wanted}: using {','.join(map(str, both))}")
    return ",".join(map(str, both))


def _online(name: str, value: str) -> str:
    path = _ONLINE.get(name, "")
    return fit(value, cpu_list(read(path))) if os.path.exists(path) else value
