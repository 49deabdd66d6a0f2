"""Counters of a container and of the guest, in the shape of runc's ``events --stats``."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty

from kata.agent_client import Agent
from kata_agent.protocol import agent_pb2, guest_pb2


async def container(agent: Agent, container_id: str) -> dict[str, Any]:
    """``data`` of a stats event (libcontainer's types.Stats)."""
    reply = await agent.agent("StatsContainer", agent_pb2.StatsContainerRequest(container_id=container_id))
    more = await agent.guest("ContainerStats", guest_pb2.ContainerId(container_id=container_id))
    cgroup = reply.cgroup_stats
    cpu, memory, blkio = cgroup.cpu_stats, cgroup.memory_stats, cgroup.blkio_stats
    return {
        "cpu": {
            "usage": {
                "total": cpu.cpu_usage.total_usage,
                "percpu": list(cpu.cpu_usage.percpu_usage),
                "kernel": cpu.cpu_usage.usage_in_kernelmode,
                "user": cpu.cpu_usage.usage_in_usermode,
            },
            "throttling": {
                "periods": cpu.throttling_data.periods,
                "throttledPeriods": cpu.throttling_data.throttled_periods,
                "throttledTime": cpu.throttling_data.throttled_time,
            },
        },
        "memory": {
            "cache": memory.cache,
            "usage": _memory(memory.usage),
            "swap": _memory(memory.swap_usage),
            "kernel": _memory(memory.kernel_usage),
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": dict(memory.stats),
        },
        "pids": {"current": cgroup.pids_stats.current, "limit": cgroup.pids_stats.limit},
        "blkio": {
            "ioServiceBytesRecursive": [_blkio(e) for e in blkio.io_service_bytes_recursive],
            "ioServicedRecursive": [_blkio(e) for e in blkio.io_serviced_recursive],
        },
        "hugetlb": {
            size: {"usage": h.usage, "max": h.max_usage, "failcnt": h.failcnt}
            for size, h in cgroup.hugetlb_stats.items()
        },
        "intel_rdt": {},
        "network_interfaces": [
            {
                "Name": n.name,
                "RxBytes": n.rx_bytes, "RxPackets": n.rx_packets, "RxErrors": n.rx_errors, "RxDropped": n.rx_dropped,
                "TxBytes": n.tx_bytes, "TxPackets": n.tx_packets, "TxErrors": n.tx_errors, "TxDropped": n.tx_dropped,
            }
            for n in reply.network_stats
        ],
        "memory_events": dict(more.memory_events),
        "pressure": dict(more.pressure),
    }


def _memory(data: agent_pb2.MemoryData) -> dict[str, int]:
    return {"limit": data.limit, "usage": data.usage, "max": data.max_usage, "failcnt": data.failcnt}


def _blkio(entry: agent_pb2.BlkioStatsEntry) -> dict[str, Any]:
    return {"major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value}


async def guest(agent: Agent) -> dict[str, Any]:
    """Kernel, agent, memory (bytes), processors and boot phases (nanoseconds) of the guest."""
    reply = await agent.guest("GuestStatus", Empty())
    return {
        "kernel": reply.kernel_release,
        "agent": reply.agent_version,
        "memory": {"total": reply.mem_total, "available": reply.mem_available},
        "cpus": reply.online_cpus,
        "uptime_nsec": reply.uptime_nsec,
        "missing": list(reply.missing_kernel_features),
        "boot_nsec": dict(reply.boot_nsec),
    }
