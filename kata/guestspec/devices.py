"""Devices: which become disks of the guest, which the guest makes by number.

A block device that the host has is attached as a disk.  A character device is
made in the guest with the number it has on the host, which for /dev/null, a
tty, FUSE or tun means the same device; others are the guest's own, and named
in a warning.  VFIO devices are refused.

With ``--privileged`` an engine lists every device of the host.  The character
devices and FIFOs are made; the disks are not attached, since a container
should not get all disks of the host unless it names them.
"""

from __future__ import annotations

import os
import stat

from kata.contract import Disk
from kata.errors import UnsupportedError
from kata.guestspec.host import Host
from kata.oci import Bundle

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

MAX_DISKS = 16  #: of one container; a machine has 20 ports for all that is plugged in
#: (major, minor) of character devices that are the same in every Linux; minor -1 = all.
_SAME = {(1, -1), (5, -1), (10, 200), (10, 229), *((major, -1) for major in range(136, 144))}


class Devices:
    """The devices of one container.

    :ivar spec: devices of the guest's configuration.
    :ivar disks: devices of the host that are attached.
    :ivar rules: device rules for the guest's cgroup.
    :ivar warnings: what does not hold.
    """

    def __init__(self, bundle: Bundle, host: Host) -> None:
        self.host = host
        self.rules: list[Mapping[str, Any]] = list(bundle.resources.get("devices", ()))
        self.spec: list[Mapping[str, Any]] = []
        self.disks: list[Disk] = []
        self.warnings: list[str] = []
        self._own: list[str] = []  # character devices that are not the host's
        self._left: list[str] = []  # disks of a privileged container
        privileged = is_privileged(self.rules)
        # The same path twice, as in "--privileged --device": the last one counts.
        for device in {d["path"]: d for d in bundle.devices}.values():
            self._add(device, privileged)
        if self._own:
            self.warnings.append(f"linux.devices: {_listed(self._own)}: the guest's own device, not the host's")
        if self._left:
            self.warnings.append(f"linux.devices: {_listed(self._left)}: disks of the host are not given to a "
                                 "privileged container; name them with --device instead of --privileged")

    def _add(self, device: Mapping[str, Any], privileged: bool) -> None:
        path, kind = device["path"], device["type"]
        if kind == "b":
            source = self.host.block_device(device["major"], device["minor"])
            if privileged and source:
                self._left.append(path)
            elif source:
                number = (device["major"], device["minor"])
                self.attach(source, number, path, not self._may_write(number), device)
            else:
                self._own.append(path)
                self.spec.append(_guest(device))
            return
        if path.startswith("/dev/vfio/") and path != "/dev/vfio/vfio" and not privileged:
            raise UnsupportedError(f"linux.devices: {path!r}: devices cannot be passed through by VFIO",
                                   "this runtime does not support an IOMMU")
        if kind != "p" and not {(device["major"], -1), (device["major"], device["minor"])} & _SAME:
            self._own.append(path)
        self.spec.append(_guest(device))

    def bind(self, source: str, destination: str, read_only: bool, storage: dict[str, Any] | None) -> None:
        """Attach the block device of a mount; ``storage`` gets its serial as source if it backs a file system."""
        found = self.host.stat(source)
        number = (os.major(found.st_rdev), os.minor(found.st_rdev))
        device = {"fileMode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
        disk = self.attach(source, number, destination, read_only, device)
        if storage is not None:
            storage["source"] = f"serial:{disk.serial}"

    def attach(self, source: str, number: tuple[int, int], path: str, read_only: bool,
               device: Mapping[str, Any]) -> Disk:
        """A disk; the serial is the same for the same device, which can be attached only once to a sandbox."""
        disk = Disk(source=source, serial=f"blk-{number[0]}-{number[1]}{'-ro' if read_only else ''}",
                    read_only=read_only, container_path=path, mode=device.get("fileMode", 0o660) & 0o7777,
                    uid=device.get("uid", 0), gid=device.get("gid", 0))
        self.disks.append(disk)
        if len(self.disks) > MAX_DISKS:
            raise UnsupportedError(f"linux.devices: more than {MAX_DISKS} disks of the host", "pass fewer")
        # The guest gives the disk another number and its own rule; the host's number is some other disk there.
        self.rules = [r for r in self.rules if (r.get("type"), r.get("major"), r.get("minor")) != ("b", *number)]
        return disk

    def _may_write(self, number: tuple[int, int]) -> bool:
        """Whether the device rules let the container write: the last rule for exactly this device counts."""
        for rule in reversed(self.rules):
            if (rule.get("type"), rule.get("major"), rule.get("minor")) == ("b", *number):
                return bool(rule["allow"]) and "w" in rule.get("access", "rwm")
        return True


def is_privileged(rules: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every device is allowed, as ``--privileged`` asks."""
    for rule in reversed(rules):
        if rule.get("type", "a") in ("a", "") and rule.get("major", -1) < 0 and rule.get("minor", -1) < 0:
            return bool(rule["allow"])
    return False


def _guest(device: Mapping[str, Any]) -> dict[str, Any]:
    """The device without the file type that some engines leave in its mode."""
    result = dict(device)
    if "fileMode" in result:
        result["fileMode"] &= 0o7777
    return result


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
