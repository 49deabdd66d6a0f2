"""What oci.proto cannot carry: the JSON form of ``kata.v1.PrepareContainerRequest``."""

from __future__ import annotations

import binascii

from kata.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from kata.oci import Bundle

_IO_CLASS = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_PERSONALITY = {"LINUX": 0, "LINUX32": 8}  # personality(2)


def process_extras(process: Mapping[str, Any], bpf: bytes = b"", flags: int = 0) -> dict[str, Any]:
    """``kata.v1.ProcessExtras`` of a process and its compiled seccomp filter."""
    extras: dict[str, Any] = {}
    if bpf:
        extras["seccomp_bpf"] = binascii.b2a_base64(bpf, newline=False).decode()
        extras["seccomp_flags"] = flags
    user = process.get("user", {})
    if "umask" in user:
        extras.update(has_umask=True, umask=user["umask"])
    if "ioPriority" in process:
        priority = process["ioPriority"]
        extras.update(io_priority_class=_IO_CLASS[priority["class"]], io_priority=priority.get("priority", 0))
    if "scheduler" in process:
        scheduler = process["scheduler"]
        if scheduler["policy"] == "SCHED_DEADLINE" or scheduler.get("flags"):
            raise UnsupportedError("process.scheduler: SCHED_DEADLINE and scheduler flags are not supported",
                                   "use SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_FIFO or SCHED_RR")
        extras.update(has_scheduler=True, scheduler_policy=scheduler["policy"],
                      scheduler_nice=scheduler.get("nice", 0), scheduler_priority=scheduler.get("priority", 0))
    if "execCPUAffinity" in process:
        affinity = process["execCPUAffinity"]
        extras["exec_cpu_affinity"] = [affinity.get("initial", ""), affinity.get("final", "")]
    if "oomScoreAdj" in process:
        extras["has_oom_score_adj"] = True
    return extras


def exec_extras(process: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """``ProcessExtras`` of a further process: its own umask or else the container's.

    The container's filter is not among them: the agent has it, and no further process goes without.

    :param container: ``ContainerPlan.extras``.
    """
    own = process_extras(process)
    first = container.get("process", {})
    if "has_umask" not in own and "has_umask" in first:
        own.update(has_umask=True, umask=first["umask"])
    return own


def container_extras(bundle: Bundle, bpf: bytes, flags: int) -> dict[str, Any]:
    """All but mounts and block devices, which :mod:`kata.guestspec` adds."""
    extras: dict[str, Any] = {"container_id": bundle.id, "process": process_extras(bundle.process, bpf, flags)}
    if bundle.domainname:
        extras["domainname"] = bundle.domainname
    unified = dict(bundle.resources.get("unified", {}))
    cpu = bundle.resources.get("cpu", {})
    if cpu.get("burst"):
        unified.setdefault("cpu.max.burst", str(cpu["burst"]))
    if cpu.get("idle"):
        unified.setdefault("cpu.idle", str(cpu["idle"]))
    if unified:
        extras["unified"] = unified
    if bundle.hooks("startContainer"):
        extras["start_container_hooks"] = [
            {"path": h["path"], "args": h.get("args", []), "env": h.get("env", []),
             "timeout_seconds": h.get("timeout", 0)} for h in bundle.hooks("startContainer")]
    persona = _PERSONALITY[bundle.linux.get("personality", {}).get("domain", "LINUX")]
    if persona:
        extras["personality"] = persona
    if bundle.linux.get("timeOffsets"):
        extras["time_offsets"] = [{"clock": clock, "secs": o.get("secs", 0), "nanosecs": o.get("nanosecs", 0)}
                                  for clock, o in sorted(bundle.linux["timeOffsets"].items())]
    return extras
