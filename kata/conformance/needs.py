"""What a case may need of the machine: each a name, and why it is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

CAP_SYS_RESOURCE = 24


def _capability(number: int, name: str) -> str:
    with open("/proc/self/status", encoding="ascii") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    return "" if held >> number & 1 else f"this machine does not give {name}"


def _writable(path: str) -> str:
    return "" if os.access(path, os.W_OK) else f"{path} is not writable on this machine"


NEEDS: dict[str, Callable[[], str]] = {
    "root": lambda: "" if os.geteuid() == 0 else "needs root",
    "sys-resource": lambda: _capability(CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE"),
    "cgroup-memory": lambda: "" if Path("/sys/fs/cgroup/memory").exists() or Path(
        "/sys/fs/cgroup/cgroup.controllers").exists() else "this machine has no memory cgroup",
    "proc-sys": lambda: _writable("/proc/sys/kernel/hostname"),
}


@cache
def missing(need: str) -> str:
    """Why a need cannot be met here, "" if it can.  ``program:NAME`` is a program on PATH."""
    if need.startswith("program:"):
        name = need.partition(":")[2]
        return "" if shutil.which(name) else f"{name} is not installed"
    return NEEDS[need]()
