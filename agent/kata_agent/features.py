"""What containers may ask for and this guest's kernel cannot do."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kata_agent.cgroup import read

_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_FILE_SYSTEMS = ("9p", "devpts", "mqueue", "overlay", "proc", "sysfs", "tmpfs")
_FILES = (
    ("ipv6", "/proc/sys/net/ipv6", "CONFIG_IPV6"),
    ("seccomp", "/proc/sys/kernel/seccomp/actions_avail", "CONFIG_SECCOMP_FILTER"),
    ("keyrings", "/proc/keys", "CONFIG_KEYS"),
)


def missing(controllers: Iterable[str]) -> list[str]:
    """``name: reason`` of each feature that is not there.

    :param controllers: of cgroup v2, those that containers can have.
    """
    there = set(controllers)
    found = [f"cgroup {name}: the controller is missing" for name in _CONTROLLERS if name not in there]
    found += [f"{name} namespaces: not in this kernel" for name in _NAMESPACES
              if not os.path.exists(f"/proc/self/ns/{name}")]
    known = {line.split()[-1] for line in read("/proc/filesystems").splitlines()}
    found += [f"{name}: no such file system in this kernel" for name in _FILE_SYSTEMS if name not in known]
    found += [f"{name}: {option} is not set" for name, path, option in _FILES if not os.path.exists(path)]
    return found
