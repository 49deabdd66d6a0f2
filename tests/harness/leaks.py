"""What a container or an engine must not leave behind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

SANDBOXES = Path("/run/kata/sandboxes")
CGROUPS = Path("/sys/fs/cgroup")


def sandbox_key(root: Path, sandbox_id: str) -> str:
    """Name of a sandbox's folder (see ARCHITECTURE.md)."""
    return hashlib.sha256(f"{root}\0{sandbox_id}".encode()).hexdigest()[:20]


def mounts(needles: Sequence[str], pid: int | str = "self") -> list[str]:
    """Mount points that name one of these, innermost last."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as f:
        return [line.split()[4] for line in f if any(n in line for n in needles)]


def cgroups(needles: Sequence[str]) -> list[str]:
    """Control groups whose path names one of these."""
    found = []
    for top, names, _ in os.walk(CGROUPS):
        found += [os.path.join(top, n) for n in names if any(needle in n for needle in needles)]
    return found


def netns(needles: Sequence[str]) -> list[str]:
    """Named network namespaces whose name holds one of these."""
    try:
        names = os.listdir("/run/netns")
    except FileNotFoundError:
        return []
    return [n for n in names if any(needle in n for needle in needles)]


def check_container(root: Path, id: str, paths: Sequence[str] = ()) -> None:
    """Fail when anything of a deleted container is left on the host."""
    key = sandbox_key(root, id)
    left = []
    if (root / id).exists():
        left.append(f"record {root / id}: {sorted(os.listdir(root / id))}")
    if (SANDBOXES / key).exists():
        left.append(f"sandbox folder {SANDBOXES / key}: {sorted(os.listdir(SANDBOXES / key))}")
    left += [f"mount {m}" for m in mounts([id, key, *paths])]
    left += [f"cgroup {c}" for c in cgroups([id, key])]
    left += [f"network namespace {n}" for n in netns([id, key])]
    assert not left, f"left behind by container {id}:\n" + "\n".join(left)
