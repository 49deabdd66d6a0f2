"""What differs from runc in every machine, whatever the flavor, with the reason (docs/differences.md).

``(case, key): (value, reason)``.  A case is a pattern of ``suite/name``; a key is
an observed value's name, or ``"*"``: the case cannot be carried out.  The value is
the one that is declared; ``...`` stands for any, where it depends on the machine.
A flavor's package declares what differs in it alone, in the same form, as
``DIFFERENCES`` in its module ``differences``.
"""

from __future__ import annotations

from typing import Any

EVERY_MACHINE: dict[tuple[str, str], tuple[Any, str]] = {
    ("oci/linux-namespace-kernel", "kernel"): ("its own", "a machine has a kernel of its own: that is what it is for"),
    ("oci/linux-network-host", "how"): ("refused", "a machine has interfaces of its own, never the host's"),
    ("oci/mounts-bind-unlinked", "anew"): ("refused", "9p cannot open again what has no name any more"),
    ("oci/mounts-propagation-flags", "slave"): (
        "", "the master of a volume is a mount of the host, which no guest has; what it mounts later appears"),
    ("oci/bad-config-not-to-be-kept", "refused"): (
        ["unknown capability", "variable without =", "argument with NUL", "rlimit twice", "version 9.9.9",
         "negative memory"], "what cannot be kept is refused by name, never dropped in silence"),
    ("docker/run-kernel", "kernel"): ("its own", "a machine has a kernel of its own: that is what it is for"),
    ("*/network-host", "result"): ("refused by name", "a machine has interfaces of its own, never the host's"),
    ("cri/host-network", "result"): ("refused by name", "a machine has interfaces of its own, never the host's"),
    ("docker/join-pid", "result"): (
        "refused by name", "a container joins another's machine by pod annotations or its network, not by it"),
    ("docker/join-ipc", "result"): (
        "refused by name", "a container joins another's machine by pod annotations or its network, not by it"),
    ("docker/top", "children"): (
        False, "docker lists the host's processes: one for each that an engine started; `kata ps` lists the guest's"),
    ("docker/stats", "limit"): (
        "the host's memory", "the host's cgroup holds the whole machine, and a limit there would hit QEMU"),
}
