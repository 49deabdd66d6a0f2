"""Finding disks: by serial number, by address, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kata_agent.errors import invalid, unsupported

HANDLERS = ("blk", "scsi", "nvdimm")
_REFUSED = {"mmioblk": "it belongs to Firecracker", "blk-ccw": "it belongs to IBM Z"}


def check_type(kind: str) -> None:
    """
    :raise AgentError: devices of this type cannot be found here.
    """
    if kind in _REFUSED:
        raise unsupported(f"device type {kind} is not supported: {_REFUSED[kind]}")
    if kind not in HANDLERS:
        raise invalid(f"unknown device type {kind!r}")


def by_serial(serial: str) -> str | None:
    """Path of the disk with this serial number."""
    for disk in _disks():
        if _serial(disk) == serial:
            return f"/dev/{disk}"
    return None


def _disks() -> list[str]:
    try:
        return sorted(os.listdir("/sys/block"))
    except FileNotFoundError:
        return []


def _serial(disk: str) -> str:
    try:
        with open(f"/sys/block/{disk}/serial", "rb") as file:  # virtio-blk
            return file.read(64).strip().decode(errors="replace")
    except OSError:
        pass
    try:
        with open(f"/sys/block/{disk}/device/vpd_pg80", "rb") as file:  # scsi: 4 bytes of header
            return file.read(256)[4:].strip(b"\0 ").decode(errors="replace")
    except OSError:
        return ""


def find(kind: str, address: str) -> str | None:
    """Path of the disk that a Kata 1.x runtime calls ``address``.

    :param address: ``/dev/NAME``; ``serial:SERIAL``; for blk ``BRIDGE/SLOT``
        (two hexadecimal PCI slots) or a full PCI address; for scsi ``ID:LUN``.
    :raise AgentError: INVALID_ARGUMENT, it is none of these.
    """
    import re  # only Kata 1.x clients name disks in ways that need it

    check_type(kind)
    if address.startswith("/dev/") and ".." not in address.split("/"):
        return address if os.path.exists(address) else None
    if address.startswith("serial:"):
        return by_serial(address.removeprefix("serial:"))
    if kind == "scsi" and re.fullmatch(r"\d+:\d+", address):
        return _by_scsi(*address.split(":"))
    if kind == "blk" and re.fullmatch(r"[0-9a-fA-F]{2}/[0-9a-fA-F]{2}", address):
        bridge, slot = address.split("/")
        return _first(_below(f"/sys/devices/pci0000:00/0000:00:{bridge}.0", rf"0000:[0-9a-f]+:{slot}\.0"))
    if kind == "blk" and re.fullmatch(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]", address):
        return _first(iter([f"/sys/bus/pci/devices/{address}"]))
    raise invalid(f"{address[:128]!r} is no address of a {kind} device")


def _by_scsi(target: str, lun: str) -> str | None:
    path = f"/sys/class/scsi_device/0:0:{target}:{lun}/device/block"
    if not os.path.isdir(path):
        # Hot plugged units are only seen when they are looked for.
        for host in _listdir("/sys/class/scsi_host"):
            try:
                with open(f"/sys/class/scsi_host/{host}/scan", "w", encoding="ascii") as file:
                    file.write(f"0 {target} {lun}")
            except OSError:
                pass
    names = _listdir(path)
    return f"/dev/{names[0]}" if names else None


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _below(folder: str, pattern: str) -> Iterator[str]:
    import re

    for name in _listdir(folder):
        if re.fullmatch(pattern, name):
            yield f"{folder}/{name}"


def _first(devices: Iterator[str]) -> str | None:
    """The disk of the first PCI device that has one."""
    for device in devices:
        for virtio in _below(device, r"virtio\d+"):
            for name in _listdir(f"{virtio}/block"):
                return f"/dev/{name}"
    return None
