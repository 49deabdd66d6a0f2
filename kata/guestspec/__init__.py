"""From a bundle to what the guest gets of it.

:func:`build` is pure but for looking at the host's files, which goes through
:class:`~kata.guestspec.host.Host`.  The configuration it makes holds only what
``oci.proto`` has a field for; the rest is in the extras, on the host (hooks,
network namespace) or named in the warnings.
"""

from __future__ import annotations

from kata.contract import ContainerPlan, Disk, RuntimeConfig, Share
from kata.digest import hexdigest
from kata.errors import UnsupportedError
from kata.guestspec.devices import Devices
from kata.guestspec.host import FileSystem, Host
from kata.guestspec.mounts import DISKS, SHARED, Mounts
from kata.oci import Bundle
from kata.oci.extras import container_extras, exec_extras, process_extras
from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["FileSystem", "GuestSpec", "Host", "build", "container_plan", "exec_extras", "memory_of", "process_extras",
           "vcpus_of"]

CGROUPS = "/kata"  #: cgroup of all containers in the guest
MIB = 1 << 20
MAX_CPUS = 8192  #: of any Linux

# Fields of oci.proto; what config.json has beyond them travels in the extras or stays on the host.
_PROCESS = ("terminal", "consoleSize", "args", "env", "cwd", "capabilities", "rlimits", "noNewPrivileges",
            "oomScoreAdj")
_USER = ("uid", "gid", "additionalGids", "username")
_LINUX = ("uidMappings", "gidMappings", "sysctl", "rootfsPropagation", "maskedPaths", "readonlyPaths")
_MEMORY = ("limit", "reservation", "swap")
_CPU = ("shares", "quota", "period", "cpus", "mems")


class GuestSpec(Record):
    """The parts of a :class:`~kata.contract.ContainerPlan` that any flavor needs.

    Of the storages, ``ephemeral`` is a tmpfs that exists once in a sandbox,
    whoever asks first; the source of a ``blk`` is ``serial:`` and that of a
    disk in ``extras["block_devices"]``.  Namespaces in ``spec`` have no paths: which
    container a ``Bundle.join`` path belongs to, only the engine knows.
    """

    spec: dict[str, Any]
    extras: dict[str, Any]
    storages: tuple[Mapping[str, Any], ...]
    shares: tuple[Share, ...]
    disks: tuple[Disk, ...]
    dns_relay: tuple[str, ...]
    warnings: tuple[str, ...]


def build(config: RuntimeConfig, bundle: Bundle, host: Host | None = None) -> GuestSpec:
    """Everything the guest needs to make the container.

    :raise BundleError: a source of a mount is missing, or an option is unknown.
    :raise UnsupportedError: a mount, device or filter that cannot hold.
    :raise HostError: libseccomp is missing.
    """
    host = host or Host()
    mounts = Mounts(bundle, host)
    devices = Devices(bundle, host)
    for source, destination, read_only, storage in mounts.block:
        if storage is not None and config.disable_block_device_use:
            raise UnsupportedError(f"mounts: {source!r} cannot be given to the guest: disable_block_device_use is set",
                                   "mount it on the host and use a bind mount")
        devices.bind(source, destination, read_only, storage)
        if storage is not None:
            mounts.storages.append(storage)
    root_path = _root_disk(config, bundle, host, devices, mounts) or f"{SHARED}/{bundle.id}/rootfs"
    warnings = mounts.warnings + devices.warnings  # beside the bundle's own

    bpf, flags = b"", 0
    if bundle.seccomp and config.disable_guest_seccomp:
        warnings.append("linux.seccomp: not applied, since disable_guest_seccomp is set")
    elif bundle.seccomp:
        from kata import seccomp  # ctypes and a compiler, for those who ask for a filter

        compiled = seccomp.compile_profile(bundle.seccomp)
        bpf, flags = compiled.bpf, compiled.flags
        warnings += compiled.warnings

    extras = container_extras(bundle, bpf, flags)
    if mounts.extras:
        extras["mounts"] = mounts.extras
    if devices.disks:
        extras["block_devices"] = [
            {"serial": d.serial, "container_path": d.container_path, "mode": d.mode, "uid": d.uid, "gid": d.gid,
             "read_only": d.read_only} for d in devices.disks]
    if "pid" not in bundle.namespaces or config.enable_agent_pidns:
        extras["sandbox_pidns_host"] = True

    spec = _spec(bundle, root_path, mounts, devices, _resources(bundle.resources, devices.rules))
    root = Share(source=bundle.rootfs, name="rootfs", is_dir=True, read_only=False)  # mount points may have to be made
    return GuestSpec(spec=spec, extras=extras, storages=tuple(mounts.storages), shares=(root, *mounts.shares),
                     disks=tuple(devices.disks), dns_relay=mounts.dns_relay, warnings=tuple(warnings))


def container_plan(config: RuntimeConfig, bundle: Bundle, *, sandbox_id: str, role: str, flavor: str,
                   guest_process_at: str, pause_scope: str, host: Host | None = None) -> ContainerPlan:
    """The plan of a container, for a flavor that sizes its sandbox by Kata's rules.

    Other flavors use :func:`kata.record.replace` on it.
    """
    guest = build(config, bundle, host)
    warnings = guest.warnings
    if role == "container":
        warnings += tuple(
            f"linux.resources.blockIO.{key}: the machine's disk access is in the cgroup of its first container"
            for key, value in sorted(bundle.resources.get("blockIO", {}).items()) if value and key.endswith("Device"))
    if guest_process_at == "start":
        guest.extras["defer_process"] = True
    return ContainerPlan(
        id=bundle.id, sandbox_id=sandbox_id, role=role, flavor=flavor, spec=guest.spec, extras=guest.extras,
        storages=guest.storages, shares=guest.shares, disks=guest.disks, guest_process_at=guest_process_at,
        pause_scope=pause_scope, vcpus=vcpus_of(bundle.resources), memory=memory_of(bundle.resources),
        dns_relay=guest.dns_relay, warnings=warnings)


def vcpus_of(resources: Mapping[str, Any]) -> int:
    """vCPUs that a container's CPU quota amounts to, rounded up; without a quota, the size of its CPU set."""
    cpu = resources.get("cpu", {})
    quota, period = cpu.get("quota", 0), cpu.get("period", 0) or 100_000
    if quota > 0:
        return -(-int(quota) // int(period))
    return cpu_count(cpu.get("cpus", ""))


def memory_of(resources: Mapping[str, Any]) -> int:
    """MiB of a container's memory limit, rounded up; 0 without one."""
    limit = resources.get("memory", {}).get("limit", 0)
    return -(-int(limit) // MIB) if limit > 0 else 0


def cpu_count(text: str) -> int:
    """How many CPUs a list like ``0-2,7`` names; what cannot be read counts for nothing here.

    The guest refuses it then.  A bit mask, since a hostile list may be long.
    """
    mask = 0
    for part in text.split(","):
        first, _dash, last = part.strip().partition("-")
        last = last or first
        if first.isdecimal() and last.isdecimal() and len(first) <= 5 and len(last) <= 5:
            low, high = int(first), min(int(last), MAX_CPUS - 1)
            if low <= high:
                mask |= (1 << high + 1) - (1 << low)
    return mask.bit_count()


def _root_disk(config: RuntimeConfig, bundle: Bundle, host: Host, devices: Devices, mounts: Mounts) -> str:
    """Attach the disk that is the container's root, if it is one; where the guest has it then.

    It is shared all the same: the engine's view of the container, and what is read on the host, are made from there.
    """
    if config.disable_block_device_use or config.agent_transport != "ttrpc":  # Kata 1.x's agent knows no serials
        return ""
    disk = host.root_disk(bundle.rootfs)
    if disk is None:
        return ""
    place = f"{DISKS}/{hexdigest(disk.source)[:16]}-root"
    storage = {"driver": "blk", "fstype": disk.kind, "mount_point": place, "options": ["ro"]}
    devices.bind(disk.source, "", True, storage)
    mounts.storages.append(storage)
    return place


def _spec(bundle: Bundle, root: str, mounts: Mounts, devices: Devices, resources: dict[str, Any]) -> dict[str, Any]:
    process = {k: v for k, v in bundle.process.items() if k in _PROCESS}
    process["user"] = {k: v for k, v in bundle.process.get("user", {}).items() if k in _USER}
    linux = {k: v for k, v in bundle.linux.items() if k in _LINUX}
    # The sandbox has the one network namespace; another container's are joined by its id, not by a host path.
    linux["namespaces"] = [{"type": t} for t in bundle.namespaces if t != "network"]
    linux["resources"] = resources
    linux["cgroupsPath"] = f"{CGROUPS}/{bundle.id}"
    if devices.spec:
        linux["devices"] = list(devices.spec)
    spec: dict[str, Any] = {
        "ociVersion": bundle.oci_version,
        "process": process,
        "root": {"path": root, "readonly": bundle.root_readonly},
        "mounts": mounts.spec,
        "linux": linux,
    }
    if bundle.hostname:
        spec["hostname"] = bundle.hostname
    if bundle.annotations:
        spec["annotations"] = dict(bundle.annotations)
    return spec


def _resources(resources: Mapping[str, Any], rules: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The limits that the guest applies; those on the host's disks are the host cgroup's."""
    kept: dict[str, Any] = {}
    if rules:
        kept["devices"] = [dict(r) for r in rules]
    for name, keys in (("memory", _MEMORY), ("cpu", _CPU), ("pids", ("limit",))):
        part = {k: v for k, v in resources.get(name, {}).items() if k in keys}
        if part:
            kept[name] = part
    block = resources.get("blockIO", {})
    if block.get("weight"):
        kept["blockIO"] = {"weight": block["weight"]}
    if resources.get("hugepageLimits"):
        kept["hugepageLimits"] = [dict(h) for h in resources["hugepageLimits"]]
    return kept
