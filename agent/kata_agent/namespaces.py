"""Which namespaces a container gets: new ones, another container's, or the sandbox's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kata_agent.child import ChildPlan
from kata_agent.errors import invalid
from kata_agent.launch import PerProcess
from kata_agent.linux import syscalls as sc
from kata_agent.protocol import guest_pb2, oci_pb2

_JOINABLE = ("pid", "ipc", "uts", "cgroup", "user", "time")
_CLOCKS = ("monotonic", "boottime")


class Namespaces:
    """The decision for one container.

    A type that is not listed in the specification is the sandbox's.  Two are
    exceptions, because the guest's own are no use to a container: every
    container has a mount and a cgroup namespace.  The network namespace is
    always the sandbox's: the host wires interfaces to a sandbox.

    :param pidfd_of: pidfd of the first process of a container by id.
    :param sandbox_pidns: pidfd of the first process of the pid namespace that
        all containers share, -1 = there is none, or it is not wanted.
    :raise AgentError: the specification contradicts itself.
    """

    __slots__ = ("flags", "id_maps", "joined", "new", "own_pid", "per_process", "user")

    def __init__(
        self, spec: oci_pb2.Spec, extras: guest_pb2.PrepareContainerRequest, pidfd_of: Callable[[str], int],
        sandbox_pidns: int, agent_pidns: bool,
    ) -> None:
        self.per_process = PerProcess()
        self.joined: list[tuple[int, int]] = []
        self.id_maps = ("", "")
        listed: dict[str, str] = {}
        for namespace in spec.Linux.Namespaces:
            if namespace.Type not in sc.NAMESPACES:
                raise invalid(f"unknown namespace type {namespace.Type!r}")
            if namespace.Type in listed:
                raise invalid(f"namespace {namespace.Type} is listed twice")
            listed[namespace.Type] = namespace.Path
        joins = {join.type: join.container_id for join in extras.join}
        for kind in joins:
            if kind not in _JOINABLE:
                raise invalid(f"cannot join a {kind!r} namespace")
        for kind, path in listed.items():
            if path and kind != "network" and kind not in joins:
                raise invalid(f"{kind} namespace {path}: paths of the host mean nothing in the guest")
        wanted = {kind for kind in listed if kind not in joins and kind != "network"} | {"mount"}
        if "cgroup" not in joins:
            wanted.add("cgroup")
        if sandbox_pidns >= 0 or extras.sandbox_pidns_host or agent_pidns:
            wanted.discard("pid")
        self.new = wanted
        self.user = "user" in wanted
        if self.user:
            self.id_maps = (_id_map(spec.Linux.UIDMappings, "uid"), _id_map(spec.Linux.GIDMappings, "gid"))
        for kind, container_id in joins.items():
            fd = pidfd_of(container_id)
            flag = sc.NAMESPACES[kind]
            if kind in ("pid", "time"):
                self.per_process.join.append((fd, flag))
            elif kind == "user":
                self.joined.insert(0, (fd, flag))
            else:
                self.joined.append((fd, flag))
        if sandbox_pidns >= 0 and "pid" not in joins and not agent_pidns and not extras.sandbox_pidns_host:
            self.per_process.join.append((sandbox_pidns, sc.CLONE_NEWPID))
        self._time(extras.time_offsets, wanted)
        self.flags = 0
        for each in wanted - {"user", "time", "pid"}:
            self.flags |= sc.NAMESPACES[each]
        if "pid" in wanted:
            if self.user or "user" in joins:
                self.flags |= sc.CLONE_NEWPID
            else:
                self.per_process.new |= sc.CLONE_NEWPID
        #: The container's first process is pid 1 of a namespace that ends with it.
        self.own_pid = "pid" in wanted

    def _time(self, offsets: Iterable[guest_pb2.TimeOffset], wanted: set[str]) -> None:
        lines = []
        for offset in offsets:
            if offset.clock not in _CLOCKS:
                raise invalid(f"unknown clock {offset.clock!r} in timeOffsets")
            lines.append(f"{offset.clock} {offset.secs} {offset.nanosecs}\n")
        if "time" in wanted:
            self.per_process.new |= sc.CLONE_NEWTIME
            self.per_process.time_offsets = "".join(lines)
        elif lines:
            raise invalid("timeOffsets need a time namespace")

    def apply(self, plan: ChildPlan) -> None:
        """What the child has to do itself."""
        plan.unshare = self.flags
        plan.join = list(self.joined)
        plan.userns = self.user

    def of_exec(self) -> int:
        """CLONE_NEW* mask with which a further process joins the first one's namespaces."""
        flags = sc.CLONE_NEWNET
        for name in self.new - {"pid", "time"}:
            flags |= sc.NAMESPACES[name]
        for _fd, flag in self.joined:
            flags |= flag
        return flags


def _id_map(mappings: Iterable[oci_pb2.LinuxIDMapping], what: str) -> str:
    text = id_map((m.ContainerID, m.HostID, m.Size) for m in mappings)
    if not text:
        raise invalid(f"a user namespace needs {what} mappings")
    return text


def id_map(entries: Iterable[tuple[int, int, int]]) -> str:
    """Contents of /proc/PID/uid_map from (id inside, id outside, count)."""
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in entries)
