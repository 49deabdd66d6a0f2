"""Storages: what the host wants mounted in the guest; and devices that containers get."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence

from kata_agent import blockdev, devices, log
from kata_agent.errors import AgentError, internal, invalid, unsupported
from kata_agent.linux import syscalls as sc
from kata_agent.mountopts import MountOptions
from kata_agent.protocol import agent_pb2, codes, guest_pb2, oci_pb2

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from kata_agent.sandbox import Sandbox

HANDLERS = ("9p", "virtio-fs", "blk", "scsi", "nvdimm", "local", "ephemeral")
_FSTYPES = {"9p": "9p", "virtio-fs": "virtiofs", "ephemeral": "tmpfs"}
_MAX_STORAGES = 1024

Done = Callable[[AgentError | None], None]


class Storages:
    """Mount points in the guest, counted: two containers may name the same one."""

    def __init__(self) -> None:
        self._users: dict[str, int] = {}
        self._mounted: set[str] = set()

    def take(self, point: str) -> bool:
        """Count a user; True for the first one, who mounts."""
        self._users[point] = self._users.get(point, 0) + 1
        if len(self._users) > _MAX_STORAGES:
            self.drop(point)
            raise AgentError(codes.RESOURCE_EXHAUSTED, f"more than {_MAX_STORAGES} storages")
        return self._users[point] == 1

    def mounted(self, point: str) -> None:
        """There is something to unmount."""
        self._mounted.add(point)

    def drop(self, point: str) -> None:
        """A user is gone; the last one's unmounts."""
        count = self._users.get(point, 0) - 1
        if count > 0:
            self._users[point] = count
            return
        self._users.pop(point, None)
        if point in self._mounted:
            self._mounted.discard(point)
            try:
                sc.umount2(point, sc.MNT_DETACH)
            except OSError as error:
                log.warning(f"unmount {point}: {error.strerror}")

    def drop_all(self) -> None:
        """Unmount everything, the last first."""
        for point in reversed(list(self._users)):
            self._users[point] = 1
            self.drop(point)


def mount_all(sandbox: Sandbox, wanted: Sequence[agent_pb2.Storage], taken: list[str], done: Done) -> None:
    """Mount storages one after the other, waiting for disks that are still to come.

    :param taken: gets the mount points, of which each must be dropped later,
        also after a failure.
    """
    todo = list(wanted)

    def step() -> None:
        while todo:
            storage = todo.pop(0)
            try:
                if not _prepare(sandbox, storage, taken):
                    continue
                if storage.driver in blockdev.HANDLERS:
                    _await_disk(sandbox, storage, after)
                    return
                _mount(sandbox, storage, storage.source)
            except AgentError as error:
                done(error)
                return
            except OSError as error:
                done(_failed(storage, error))
                return
        done(None)

    def after(error: AgentError | None) -> None:
        if error is not None:
            done(error)
        else:
            step()

    step()


def _failed(storage: agent_pb2.Storage, error: OSError) -> AgentError:
    return internal(f"cannot mount {storage.driver} {storage.source!r} on {storage.mount_point}: {error.strerror}")


def _prepare(sandbox: Sandbox, storage: agent_pb2.Storage, taken: list[str]) -> bool:
    """Check a storage and count its mount point; False if it is there already."""
    driver = storage.driver
    if driver in ("mmioblk", "blk-ccw"):
        blockdev.check_type(driver)
    if driver not in HANDLERS:
        raise invalid(f"unknown storage driver {driver!r}")
    point = os.path.normpath(storage.mount_point)
    if not point.startswith("/") or ".." in storage.mount_point.split("/") or point == "/":
        raise invalid(f"{storage.mount_point!r} is no mount point")
    first = sandbox.storages.take(point)
    taken.append(point)
    return first


def _await_disk(sandbox: Sandbox, storage: agent_pb2.Storage, done: Done) -> None:
    seconds = sandbox.settings.hotplug_timeout

    def found(path: str | None) -> None:
        if path is None:
            done(AgentError(codes.DEADLINE_EXCEEDED,
                            f"{storage.driver} device {storage.source} did not appear within {seconds:g} s"))
            return
        try:
            _mount(sandbox, storage, path)
        except OSError as error:
            done(_failed(storage, error))
        else:
            done(None)

    if blockdev.find(storage.driver, storage.source) is None:
        sandbox.find_drivers()
    sandbox.uevents.wait(lambda: blockdev.find(storage.driver, storage.source), seconds, found)


def _mount(sandbox: Sandbox, storage: agent_pb2.Storage, source: str) -> None:
    point = os.path.normpath(storage.mount_point)
    options = MountOptions(storage.options)
    if storage.driver == "local":
        mode = next((o.removeprefix("mode=") for o in storage.options if o.startswith("mode=")), "755")
        os.makedirs(point, exist_ok=True)
        os.chmod(point, int(mode, 8) & 0o7777)
        return
    fstype = storage.fstype or _FSTYPES.get(storage.driver, "")
    if not fstype and not options.bind:
        raise invalid(f"storage {storage.source!r} has no file system type")
    if options.bind and not os.path.isdir(source):
        os.makedirs(os.path.dirname(point), exist_ok=True)
        os.close(os.open(point, os.O_CREAT | os.O_CLOEXEC, 0o644))
    else:
        os.makedirs(point, exist_ok=True)
    flags = options.flags | (sc.MS_BIND if options.bind else 0) | (sc.MS_REC if options.recursive else 0)
    sc.mount(source or fstype, point, fstype, flags, options.data)
    sandbox.storages.mounted(point)


# --- devices -------------------------------------------------------------------------


def wait_for(
    sandbox: Sandbox, wanted: Iterable[agent_pb2.Device], disks: Iterable[guest_pb2.BlockDevice], done: Done
) -> None:
    """Wait until every device of a container is there, all within one deadline."""
    checks: list[tuple[str, Callable[[], str | None]]] = []
    for device in wanted:
        try:
            blockdev.check_type(device.type)
            address = _address(device)
            blockdev.find(device.type, address)
        except AgentError as error:
            done(error)
            return
        checks.append((f"{device.type} {address}",
                       lambda kind=device.type, where=address: blockdev.find(kind, where)))  # type: ignore[misc]
    for disk in disks:
        checks.append((f"with serial number {disk.serial}",
                       lambda disk=disk: _find_disk(disk)))  # type: ignore[misc]
    seconds = sandbox.settings.hotplug_timeout
    missing: list[str] = []
    if any(find() is None for _what, find in checks):
        sandbox.find_drivers()

    def all_there() -> bool | None:
        missing[:] = [what for what, find in checks if find() is None]
        return None if missing else True

    def finished(result: bool | None) -> None:
        if result:
            done(None)
        else:
            done(AgentError(codes.DEADLINE_EXCEEDED,
                            f"the device {', '.join(missing)} did not appear within {seconds:g} s"))

    sandbox.uevents.wait(all_there, seconds, finished)


def _address(device: agent_pb2.Device) -> str:
    # Kata 1.x names a device by its PCI or SCSI address in id, or by its name in the guest.
    return device.vm_path if device.vm_path.startswith("/dev/") or not device.id else device.id


def _find_disk(disk: guest_pb2.BlockDevice) -> str | None:
    found = blockdev.by_serial(disk.serial) if disk.serial else None
    if found is None and disk.pci_address:
        found = blockdev.find("blk", disk.pci_address)
    return found


def device_nodes(
    spec: oci_pb2.Spec, wanted: Iterable[agent_pb2.Device], disks: Iterable[guest_pb2.BlockDevice]
) -> list[devices.DeviceNode]:
    """The device nodes of a container; numbers in the specification become the guest's.

    :raise AgentError: a device is not known or not there.
    """
    for device in wanted:
        path = blockdev.find(device.type, _address(device))
        if path is None:
            raise internal(f"device {device.id or device.vm_path} has vanished")
        _renumber(spec, device.container_path, os.stat(path))
    nodes = [devices.from_spec(device) for device in spec.Linux.Devices]
    for disk in disks:
        if not disk.container_path:
            continue
        path = _find_disk(disk)
        if path is None:
            raise internal(f"disk {disk.serial} has vanished")
        number = os.stat(path).st_rdev
        node = devices.DeviceNode(disk.container_path, "b", os.major(number), os.minor(number),
                                  disk.mode or 0o660, disk.uid, disk.gid, path)
        nodes = [n for n in nodes if n.path != node.path] + [node]
        spec.Linux.Resources.Devices.add(
            Allow=True, Type="b", Major=node.major, Minor=node.minor, Access="rm" if disk.read_only else "rwm")
    return nodes


def _renumber(spec: oci_pb2.Spec, path: str, info: os.stat_result) -> None:
    """Give the device ``path`` of a specification, and its rules, the numbers it has in the guest."""
    major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    kind = "b" if stat.S_ISBLK(info.st_mode) else "c"
    found = [device for device in spec.Linux.Devices if device.Path == path]
    if not found:
        raise unsupported(f"device {path} is not in linux.devices")
    for device in found:
        for rule in spec.Linux.Resources.Devices:
            if rule.Type == device.Type and rule.Major == device.Major and rule.Minor == device.Minor:
                rule.Type, rule.Major, rule.Minor = kind, major, minor
        device.Type, device.Major, device.Minor = kind, major, minor
