"""Features of a valid configuration that cannot hold in a virtual machine.

Those that would change what the container is are refused; those that only
leave something out are named in the warnings.
"""

from __future__ import annotations

from kata.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def unsupported(spec: Mapping[str, Any]) -> list[str]:
    """Warnings about ``spec``.

    :raise UnsupportedError: a feature that cannot hold, by name.
    """
    linux = spec["linux"]
    types = {n["type"] for n in linux.get("namespaces", ())}
    paths = {n["type"]: n.get("path", "") for n in linux.get("namespaces", ())}
    if "network" not in types:
        raise UnsupportedError(
            "linux.namespaces: the host's network (--net=host) cannot be given to a virtual machine",
            "use a network of the engine, or --net=none")
    if "mount" not in types:
        raise UnsupportedError("linux.namespaces: a container needs a mount namespace of its own",
                               'add {"type": "mount"}')
    for kind in ("mount", "user", "time"):
        if paths.get(kind):
            raise UnsupportedError(f"linux.namespaces: joining the {kind} namespace {paths[kind]!r} is not possible",
                                   "it lies on the host, the container in a virtual machine")
    if spec.get("hostname") and "uts" not in types:
        raise UnsupportedError("hostname: cannot be set without a uts namespace", 'add {"type": "uts"}')
    if spec.get("domainname") and "uts" not in types:
        raise UnsupportedError("domainname: cannot be set without a uts namespace", 'add {"type": "uts"}')
    if linux.get("intelRdt"):
        raise UnsupportedError("linux.intelRdt: the guest has no cache or bandwidth allocation", "remove the section")
    if linux.get("timeOffsets") and "time" not in types:
        raise UnsupportedError("linux.timeOffsets: offsets need a time namespace", 'add {"type": "time"}')
    maps = linux.get("uidMappings") or linux.get("gidMappings")
    if maps and "user" not in types:
        raise UnsupportedError("linux.uidMappings: mappings need a user namespace", 'add {"type": "user"}')
    if "user" in types and not (linux.get("uidMappings") and linux.get("gidMappings")):
        raise UnsupportedError("linux.namespaces: a user namespace needs uidMappings and gidMappings",
                               "add them or remove the namespace")
    _seccomp(linux.get("seccomp"))
    return [*_namespaces(types), *_labels(spec), *_resources(linux.get("resources", {}))]


def _seccomp(seccomp: Mapping[str, Any] | None) -> None:
    if not seccomp:
        return
    actions = {seccomp["defaultAction"], *(s["action"] for s in seccomp.get("syscalls", ()))}
    if seccomp.get("listenerPath") or "SCMP_ACT_NOTIFY" in actions:
        raise UnsupportedError("linux.seccomp: SCMP_ACT_NOTIFY and listenerPath need a listener on the same kernel",
                               "decide in the profile, with SCMP_ACT_ERRNO or SCMP_ACT_ALLOW")


def _namespaces(types: set[str]) -> list[str]:
    names = {"pid": "--pid=host", "ipc": "--ipc=host", "uts": "--uts=host"}
    return [f"linux.namespaces: without a {kind} namespace ({option}) the container shares the guest's, not the host's"
            for kind, option in names.items() if kind not in types]


def _labels(spec: Mapping[str, Any]) -> list[str]:
    process, found = spec["process"], []
    if process.get("apparmorProfile", "unconfined") not in ("", "unconfined"):
        found.append(f"process.apparmorProfile: {process['apparmorProfile']!r} is a profile of the host's kernel "
                     "and does not hold in the guest")
    for at, label in (("process.selinuxLabel", process.get("selinuxLabel")),
                      ("linux.mountLabel", spec["linux"].get("mountLabel"))):
        if label:
            found.append(f"{at}: SELinux labels do not hold in the guest")
    return found


def _resources(resources: Mapping[str, Any]) -> list[str]:
    found = []
    network = resources.get("network", {})
    if network.get("classID") or network.get("priorities"):
        found.append("linux.resources.network: cgroup v2, which the guest has, knows no class id and no priorities")
    if resources.get("rdma"):
        found.append("linux.resources.rdma: the guest has no RDMA devices")
    memory = resources.get("memory", {})
    for key in ("kernel", "kernelTCP"):
        if memory.get(key, -1) > 0:
            found.append(f"linux.resources.memory.{key}: cgroup v2 counts kernel memory in memory.limit")
    if memory.get("swappiness", 2**64 - 1) <= 200:
        found.append("linux.resources.memory.swappiness: cgroup v2 has no swappiness of its own per group")
    if memory.get("disableOOMKiller"):
        found.append("linux.resources.memory.disableOOMKiller: cgroup v2 cannot turn its OOM killer off")
    cpu = resources.get("cpu", {})
    if cpu.get("realtimeRuntime") or cpu.get("realtimePeriod"):
        found.append("linux.resources.cpu.realtimeRuntime: cgroup v2 has no real-time budget")
    block = resources.get("blockIO", {})
    if block.get("leafWeight"):
        found.append("linux.resources.blockIO.leafWeight: cgroup v2 has no leaf weight")
    return found
