"""What this guest's kernel cannot do.

Options of the kernel that the agent relies on, each with where it shows and
why it is needed (as in the fragments of ``configs/kernel``).  A kernel of the
store has been checked before; one that was given by path has not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from kata_agent import log
from kata_agent.cgroup import read
from kata_agent.errors import AgentError
from kata_agent.protocol import codes

_VIRTIO = "/sys/bus/virtio/drivers"
_CHANNEL = "the channel to the host is a port of virtio-serial"
_SHARES = "roots and volumes of containers are shared by the host"

#: Without these there is nothing to wait for: (option, where it shows, reason).
_VITAL = (
    ("CONFIG_VIRTIO_PCI", "/sys/bus/pci/drivers/virtio-pci", _CHANNEL),
    ("CONFIG_VIRTIO_CONSOLE", f"{_VIRTIO}/virtio_console", _CHANNEL),
    ("CONFIG_NET_9P_VIRTIO", f"{_VIRTIO}/9pnet_virtio", _SHARES),
)
_MACHINE = (
    ("CONFIG_VIRTIO_BLK", f"{_VIRTIO}/virtio_blk", "disks of the host are virtio-blk"),
    ("CONFIG_VIRTIO_NET", f"{_VIRTIO}/virtio_net", "interfaces are virtio-net"),
    ("CONFIG_VMGENID", "/sys/bus/acpi/drivers/vmgenid", "a clone of a saved machine learns that it is one"),
    ("CONFIG_MEMORY_HOTPLUG", "/sys/devices/system/memory", "memory is plugged into the running machine"),
    ("CONFIG_HOTPLUG_CPU", "/sys/devices/system/cpu/hotplug", "processors are plugged into the running machine"),
    ("CONFIG_IPV6", "/proc/sys/net/ipv6", "interfaces have addresses of IPv6"),
    ("CONFIG_SECCOMP", "/proc/sys/kernel/seccomp/actions_avail", "seccomp profiles of containers"),
    ("CONFIG_KEYS", "/proc/keys", "each container has a session keyring"),
)
_NAMESPACES = {
    "cgroup": "CONFIG_CGROUPS", "ipc": "CONFIG_IPC_NS", "mnt": "CONFIG_NAMESPACES", "net": "CONFIG_NET_NS",
    "pid": "CONFIG_PID_NS", "time": "CONFIG_TIME_NS", "user": "CONFIG_USER_NS", "uts": "CONFIG_UTS_NS",
}  # fmt: skip
_CONTROLLERS = {
    "cpu": "CONFIG_CGROUP_SCHED", "cpuset": "CONFIG_CPUSETS", "io": "CONFIG_BLK_CGROUP", "memory": "CONFIG_MEMCG",
    "pids": "CONFIG_CGROUP_PIDS", "hugetlb": "CONFIG_CGROUP_HUGETLB",
}  # fmt: skip
_FILE_SYSTEMS = {
    "9p": "CONFIG_9P_FS", "devpts": "CONFIG_UNIX98_PTYS", "mqueue": "CONFIG_POSIX_MQUEUE",
    "overlay": "CONFIG_OVERLAY_FS", "proc": "CONFIG_PROC_FS", "sysfs": "CONFIG_SYSFS", "tmpfs": "CONFIG_TMPFS",
}  # fmt: skip


def missing(controllers: Iterable[str]) -> list[str]:
    """``OPTION (reason)`` of each that is not there.

    :param controllers: of cgroup v2, those that containers can have.
    """
    there = set(controllers)
    known = {line.split()[-1] for line in read("/proc/filesystems").splitlines()}
    return [
        *_absent(_VITAL + _MACHINE),
        *(f"{option} (containers are limited by cgroup v2's {name})"
          for name, option in _CONTROLLERS.items() if name not in there),
        *(f"{option} (containers have {name} namespaces)"
          for name, option in _NAMESPACES.items() if not os.path.exists(f"/proc/self/ns/{name}")),
        *(f"{option} (containers have mounts of type {name})"
          for name, option in _FILE_SYSTEMS.items() if name not in known),
    ]


def _absent(options: Iterable[tuple[str, str, str]]) -> list[str]:
    return [f"{option} ({reason})" for option, path, reason in options if not os.path.exists(path)]


def require() -> None:
    """End, and so the machine, when the host could never be reached: it shows the console's last line as the reason."""
    if lacks := _absent(_VITAL):
        log.error(f"this guest's kernel lacks {'; '.join(lacks)}")
        sys.exit(1)


def explained(error: BaseException, controllers: Iterable[str]) -> BaseException:
    """A failure that is not the request's fault, with what the kernel lacks, which is the likely reason."""
    if not isinstance(error, AgentError) or error.code not in (codes.INTERNAL, codes.FAILED_PRECONDITION):
        return error
    lacks = missing(controllers)
    return AgentError(error.code, f"{error.text}; this guest's kernel lacks {'; '.join(lacks)}") if lacks else error
