"""What sandboxes take of the host's memory: PSS by process and by kind.

    python tools/memory.py [--root DIR]     the sandboxes that live now, of one or of all roots

PSS (proc(5), ``/proc/PID/smaps``) counts a page that n processes map as 1/n of
a page for each, so the sum over all sandboxes is what they take together: the
memory of a template that many clones share is counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

SANDBOXES = "/run/kata/sandboxes"
MIB = 1 << 20

#: Kinds of memory.  "guest, shared": pages of the template that no clone has changed; "guest, own": the others.
KINDS = ("guest, shared", "guest, own", "code cache", "heap", "libraries", "other")
ROLES = ("qemu", "proxy", "shim")

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ (\S+) \d+ *(.*)")
_GUEST = 64 << 20  #: bytes; an anonymous mapping of QEMU that is as large as this is a guest's memory


@dataclass
class Usage:
    """Bytes of one process, or of several together."""

    pss: Counter[str] = field(default_factory=Counter)  #: by kind
    rss: int = 0
    private: int = 0  #: that would be free if it ended

    def add(self, other: Usage) -> None:
        self.pss.update(other.pss)
        self.rss += other.rss
        self.private += other.private

    @property
    def total(self) -> int:
        """PSS of all kinds."""
        return sum(self.pss.values())


@dataclass
class Sandbox:
    """One sandbox: its three kinds of processes and the ids of its containers."""

    id: str
    containers: list[str]
    roles: dict[str, Usage]

    @property
    def total(self) -> int:
        return sum(usage.total for usage in self.roles.values())


def process(pid: int) -> Usage:
    """What one process takes; nothing when it is gone."""
    usage = Usage()
    with suppress(FileNotFoundError, ProcessLookupError):
        for permissions, name, numbers in _mappings(pid):
            pss, dirty = numbers["Pss"], numbers["Private_Clean"] + numbers["Private_Dirty"]
            usage.rss += numbers["Rss"]
            usage.private += dirty
            if _is_template(name):
                # A page that a clone has written is its own, and anonymous.
                usage.pss["guest, own"] += numbers["Anonymous"]
                usage.pss["guest, shared"] += pss - numbers["Anonymous"]
            else:
                usage.pss[_kind(permissions, name, numbers["Size"])] += pss
    return usage


def _mappings(pid: int) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(permissions, name, numbers in bytes) of each mapping."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as f:
        permissions, name, numbers = "", "", dict[str, int]()
        for line in f:
            if header := _HEADER.match(line):
                if numbers:
                    yield permissions, name, numbers
                permissions, name, numbers = header[1], header[3].strip(), {}
            elif line.endswith(" kB\n"):
                key, value = line.split(":")
                numbers[key] = int(value.split()[0]) << 10
        if numbers:
            yield permissions, name, numbers


def _is_template(name: str) -> bool:
    return name.removesuffix(" (deleted)").endswith("/memory")


def _kind(permissions: str, name: str, size: int) -> str:
    if name in ("[heap]", "[stack]"):
        return "heap"
    if name.startswith("/") and not name.startswith(("/memfd:", "/dev/zero")):
        return "libraries"
    if "x" in permissions and size >= MIB:
        return "code cache"
    if size >= _GUEST:
        return "guest, own"
    return "other" if name.startswith("[") else "heap"


def sandboxes(root: str = "") -> list[Sandbox]:
    """The sandboxes that live; of one ``--root`` only if it is named."""
    found = []
    for key in sorted(os.listdir(SANDBOXES)) if os.path.isdir(SANDBOXES) else ():
        with suppress(FileNotFoundError, ValueError):
            with open(f"{SANDBOXES}/{key}/sandbox.json", encoding="utf-8") as f:
                record = json.load(f)
            if (root and record["root"] != root) or "qemu" not in record:
                continue
            pids = {"qemu": [record["qemu"]["pid"]], "proxy": [record["proxy"]["pid"]],
                    "shim": list(_shims(record["containers"]))}
            roles = {role: Usage() for role in ROLES}
            for role, members in pids.items():
                for pid in members:
                    roles[role].add(process(pid))
            found.append(Sandbox(record["id"], sorted(record["containers"]), roles))
    return found


def _shims(containers: dict[str, dict[str, str]]) -> Iterator[int]:
    for name, entry in containers.items():
        with open(f"{entry['root']}/{name}/state.json", encoding="utf-8") as f:
            pid = json.load(f)["pid"]
        if pid:
            yield pid


def mean(found: Iterable[Sandbox]) -> dict[str, Usage]:
    """By role, what one sandbox takes on the average (of none: nothing)."""
    members = list(found)
    result = {role: Usage() for role in ROLES}
    for sandbox in members:
        for role, usage in sandbox.roles.items():
            result[role].add(usage)
    for usage in result.values():
        usage.pss = Counter({kind: value // len(members) for kind, value in usage.pss.items()})
        usage.rss //= max(1, len(members))
        usage.private //= max(1, len(members))
    return result


def table(roles: dict[str, Usage]) -> str:
    """One line a role, MiB."""
    lines = [f"{'MiB':8}{'PSS':>8}" + "".join(f"{kind:>15}" for kind in KINDS) + f"{'RSS':>8}"]
    whole = Usage()
    for usage in roles.values():
        whole.add(usage)
    for name, usage in (*roles.items(), ("all", whole)):
        cells = "".join(f"{usage.pss[kind] / MIB:15.1f}" for kind in KINDS)
        lines.append(f"{name:8}{usage.total / MIB:8.1f}{cells}{usage.rss / MIB:8.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="What live sandboxes take of the host's memory.")
    parser.add_argument("--root", default="", help="only the sandboxes of this kata --root")
    found = sandboxes(parser.parse_args().root)
    if not found:
        print("no sandbox lives")
        return 0
    print(f"{len(found)} sandboxes, on the average:\n{table(mean(found))}")
    for sandbox in found:
        print(f"{sandbox.total / MIB:8.1f} MiB  {sandbox.id}: {len(sandbox.containers)} containers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
