"""Capability sets: names, capget(2), capset(2), bounding and ambient sets.

A set is an int with bit N for capability number N (capabilities(7)).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable

from kata_agent.linux import syscalls
from kata_agent.linux.syscalls import _check, _libc

#: In the order of their numbers, capabilities(7).
NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}

_VERSION_3 = 0x20080522  # 64-bit sets


def to_mask(names: Iterable[str]) -> int:
    """The set of capabilities called ``names`` ("CAP_..." in any case).

    :raise KeyError: a name is not known.
    """
    mask = 0
    for name in names:
        mask |= 1 << NUMBERS[name.upper()]
    return mask


def to_names(mask: int) -> list[str]:
    """Names of the set; bits without a name are left out."""
    return [name for number, name in enumerate(NAMES) if mask >> number & 1]


_last_cap = -1


def last_cap() -> int:
    """Highest capability number this kernel has."""
    global _last_cap
    if _last_cap < 0:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            _last_cap = int(file.read())
    return _last_cap


def capget(pid: int = 0) -> tuple[int, int, int]:
    """``(effective, permitted, inheritable)`` of a thread; 0 = this one."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, pid), 8)
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    e0, p0, i0, e1, p1, i1 = struct.unpack("=6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's sets."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    low = 0xFFFFFFFF
    data = struct.pack("=6I", effective & low, permitted & low, inheritable & low,
                       effective >> 32, permitted >> 32, inheritable >> 32)
    _check(_libc.capset(header, data), "capset")


def limit_bounding(keep: int) -> None:
    """Drop every capability outside ``keep`` from the bounding set (needs CAP_SETPCAP)."""
    for number in range(last_cap() + 1):
        if not keep >> number & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)


def set_ambient(mask: int) -> None:
    """Make the ambient set ``mask``; each must be permitted and inheritable."""
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(last_cap() + 1 if mask else 0):
        if mask >> number & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
