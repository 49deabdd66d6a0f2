"""Counters of a container's cgroup."""

from __future__ import annotations

import os

from kata_agent.cgroup import Cgroup, key_values, read
from kata_agent.protocol import agent_pb2 as pb
from kata_agent.protocol import guest_pb2

_UNLIMITED = (1 << 63) - 4096  # what cgroup v1 says, and clients of Kata 1.x expect
_PRESSURE = ("cpu.pressure", "memory.pressure", "io.pressure")
_MAX_PIDS = 4096


def _text(cgroup: Cgroup, name: str) -> str:
    """Contents of a file, "" where the controller is missing."""
    if not cgroup.exists:
        return ""
    try:
        return read(cgroup.file(name))
    except OSError:
        return ""


def _number(cgroup: Cgroup, name: str, default: int = 0) -> int:
    text = _text(cgroup, name)
    return int(text) if text.isdigit() else default


def cgroup_stats(cgroup: Cgroup) -> pb.CgroupStats:
    """In the shape of cgroup v1 that Kata 1.x has."""
    stats = pb.CgroupStats()
    cpu = key_values(_text(cgroup, "cpu.stat"))
    usage = stats.cpu_stats.cpu_usage
    usage.total_usage = cpu.get("usage_usec", 0) * 1000
    usage.usage_in_usermode = cpu.get("user_usec", 0) * 1000
    usage.usage_in_kernelmode = cpu.get("system_usec", 0) * 1000
    throttling = stats.cpu_stats.throttling_data
    throttling.periods = cpu.get("nr_periods", 0)
    throttling.throttled_periods = cpu.get("nr_throttled", 0)
    throttling.throttled_time = cpu.get("throttled_usec", 0) * 1000
    _memory(cgroup, stats.memory_stats)
    stats.pids_stats.current = _number(cgroup, "pids.current")
    stats.pids_stats.limit = _number(cgroup, "pids.max")
    _block_io(cgroup, stats.blkio_stats)
    _hugetlb(cgroup, stats)
    return stats


def _memory(cgroup: Cgroup, stats: pb.MemoryStats) -> None:
    detail = key_values(_text(cgroup, "memory.stat"))
    events = key_values(_text(cgroup, "memory.events"))
    current = _number(cgroup, "memory.current")
    limit = _number(cgroup, "memory.max", _UNLIMITED)
    stats.cache = detail.get("file", 0)
    stats.usage.usage = current
    stats.usage.max_usage = _number(cgroup, "memory.peak", current)
    stats.usage.limit = limit
    stats.usage.failcnt = events.get("max", 0)
    swap_limit = _number(cgroup, "memory.swap.max", _UNLIMITED)
    stats.swap_usage.usage = current + _number(cgroup, "memory.swap.current")
    stats.swap_usage.limit = min(limit + swap_limit, _UNLIMITED)
    stats.kernel_usage.usage = detail.get("kernel", detail.get("slab", 0))
    stats.kernel_usage.limit = _UNLIMITED
    stats.use_hierarchy = True
    stats.stats.update(detail)


def _block_io(cgroup: Cgroup, stats: pb.BlkioStats) -> None:
    for line in _text(cgroup, "io.stat").splitlines():
        device, *fields = line.split()
        major, _, minor = device.partition(":")
        if not (major.isdigit() and minor.isdigit()):
            continue
        values = {key: int(value) for key, _, value in (f.partition("=") for f in fields) if value.isdigit()}
        for target, names in (
            (stats.io_service_bytes_recursive, (("Read", "rbytes"), ("Write", "wbytes"), ("Discard", "dbytes"))),
            (stats.io_serviced_recursive, (("Read", "rios"), ("Write", "wios"), ("Discard", "dios"))),
        ):
            for op, key in names:
                target.add(major=int(major), minor=int(minor), op=op, value=values.get(key, 0))


def _hugetlb(cgroup: Cgroup, stats: pb.CgroupStats) -> None:
    if not cgroup.exists:
        return
    for name in os.listdir(cgroup.path):
        if name.startswith("hugetlb.") and name.endswith(".current") and ".rsvd." not in name:
            size = name.removeprefix("hugetlb.").removesuffix(".current")
            entry = stats.hugetlb_stats[size]
            entry.usage = _number(cgroup, name)
            entry.failcnt = key_values(_text(cgroup, f"hugetlb.{size}.events")).get("max", 0)


def extended(cgroup: Cgroup) -> guest_pb2.ContainerStatsResponse:
    """What the shape above has no field for."""
    stats = guest_pb2.ContainerStatsResponse(
        memory_events=key_values(_text(cgroup, "memory.events")),
        cpu_stat=key_values(_text(cgroup, "cpu.stat")),
        memory_stat=key_values(_text(cgroup, "memory.stat")),
        memory_current=_number(cgroup, "memory.current"),
        memory_peak=_number(cgroup, "memory.peak"),
        memory_limit=_number(cgroup, "memory.max"),
    )
    for name in _PRESSURE:
        text = _text(cgroup, name)
        if text:
            stats.pressure[name] = text
    stats.pids.extend(inner for pid in cgroup.pids()[:_MAX_PIDS] if (inner := inner_pid(pid)))
    return stats


def inner_pid(pid: int) -> int:
    """``pid`` in the innermost pid namespace it has one in, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError):
        pass
    return 0
