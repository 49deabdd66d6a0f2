"""Host cgroups: where the processes of a container are accounted.

Shim, proxy and QEMU are in the container's cgroup.  An engine reads the cgroup
of the shim's pid, so it sees what the machine really uses.

What limits the container is applied in the guest.  On the host only what says
*which* or *how much compared to others* is set as well: ``cpu.shares``,
``cpuset``, ``blockIO`` (:mod:`kata.cgroups.limits`).  A limit on memory or on
the number of processes would hit QEMU instead of the container, and a CPU
quota would slow the boot and everything the machine does on the container's
behalf a second time.

cgroup v1, v2 and the hybrid of both are supported; in the hybrid the unified
hierarchy is left alone, as engines do.
"""

from __future__ import annotations

from kata.cgroups.group import Cgroup
from kata.cgroups.oom import release_limit, signal_oom
from kata.cgroups.paths import own_lines, place

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Cgroup", "at", "for_container", "join_like", "release_limit", "signal_oom"]


def for_container(cgroups_path: str, container_id: str, *, systemd: bool = False) -> Cgroup:
    """The cgroup that ``linux.cgroupsPath`` names; nothing is made yet.

    :param cgroups_path: an absolute path, a path relative to the caller's own
        cgroup, "" for the container's id below that, or ``slice:prefix:name``.
    :param systemd: the engine said ``--systemd-cgroup``.
    :raise kata.errors.BundleError: the path cannot be one.
    :raise kata.errors.UnsupportedError: systemd's form without systemd.
    :raise kata.errors.HostError: no cgroup file system is mounted.
    """
    return Cgroup(place(cgroups_path, container_id, systemd=systemd))


def at(path: str) -> Cgroup:
    """The cgroup whose :attr:`Cgroup.path` is ``path``, in this or another process."""
    return Cgroup(path)


def join_like(pid: int) -> None:
    """Move the calling process into the cgroups of process ``pid``.

    :raise kata.errors.HostError: there is no such process, or the kernel refuses.
    """
    Cgroup(own_lines(pid)).join()


def apply(path: str, resources: Mapping[str, object]) -> list[str]:
    """See :func:`kata.cgroups.limits.apply`."""
    from kata.cgroups.limits import apply as apply_limits

    return apply_limits(Cgroup(path), resources)
