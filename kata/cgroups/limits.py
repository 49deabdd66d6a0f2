"""The few limits of ``linux.resources`` that hold on the host as well.

``cpu.shares`` (a weight), ``cpuset`` and ``blockIO`` name host processors,
memory nodes and devices, or weigh a container against others.  Everything else
is applied in the guest only, see :mod:`kata.cgroups`.
"""

from __future__ import annotations

from kata.cgroups.group import Cgroup, write
from kata.errors import HostError

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_THROTTLE = {
    "throttleReadBpsDevice": ("blkio.throttle.read_bps_device", "rbps"),
    "throttleWriteBpsDevice": ("blkio.throttle.write_bps_device", "wbps"),
    "throttleReadIOPSDevice": ("blkio.throttle.read_iops_device", "riops"),
    "throttleWriteIOPSDevice": ("blkio.throttle.write_iops_device", "wiops"),
}


def apply(cgroup: Cgroup, resources: Mapping[str, Any]) -> list[str]:
    """Set them; returns a sentence for each that this kernel has no file for.

    :param resources: ``linux.resources`` of the bundle, or an update of it.
    :raise HostError: the kernel refuses a value (a processor that does not exist...).
    """
    missing = []
    for controller, names, value in _settings(resources, cgroup.unified):
        directory = cgroup.directory(controller)
        refused: OSError | None = None
        for name in names:
            try:
                write(f"{directory}/{name}", value)
                refused = None
                break
            except FileNotFoundError as error:
                refused = error
            except OSError as error:
                raise HostError(f"cannot set {name} of cgroup {directory} to {value!r}: {error.strerror}") from error
        if refused is not None:
            missing.append(f"{names[0]}: the host's kernel does not have it, the limit holds in the guest only")
    return missing


def _settings(resources: Mapping[str, Any], unified: bool) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """``(controller, alternative file names, value)`` of each setting."""
    cpu = resources.get("cpu") or {}
    if cpu.get("shares"):
        shares = int(cpu["shares"])
        yield ("cpu", ("cpu.weight",), str(cpu_weight(shares))) if unified else ("cpu", ("cpu.shares",), str(shares))
    # Memory nodes first: processors of a node that is not allowed are of no use.
    for key, name in (("mems", "cpuset.mems"), ("cpus", "cpuset.cpus")):
        if cpu.get(key):
            yield "cpuset", (name,), str(cpu[key])
    block = resources.get("blockIO") or {}
    yield from _weights(block, unified)
    for key, (v1, v2) in _THROTTLE.items():
        for entry in block.get(key) or ():
            device = f"{entry['major']}:{entry['minor']}"
            rate = int(entry["rate"])
            if unified:
                yield "io", ("io.max",), f"{device} {v2}={rate or 'max'}"
            else:
                yield "blkio", (v1,), f"{device} {rate}"


def _weights(block: Mapping[str, Any], unified: bool) -> Iterator[tuple[str, tuple[str, ...], str]]:
    weight = int(block.get("weight") or 0)
    if weight and unified:
        # The io controller of iocost has io.weight, the BFQ scheduler a file of its own with v1's range.
        yield "io", ("io.weight",), str(io_weight(weight))
    elif weight:
        yield "blkio", ("blkio.weight", "blkio.bfq.weight"), str(weight)
    for entry in block.get("weightDevice") or ():
        device, value = f"{entry['major']}:{entry['minor']}", int(entry.get("weight") or 0)
        if value and unified:
            yield "io", ("io.weight",), f"{device} {io_weight(value)}"
        elif value:
            yield "blkio", ("blkio.weight_device", "blkio.bfq.weight_device"), f"{device} {value}"


def cpu_weight(shares: int) -> int:
    """cpu.weight (1..10000) of cpu.shares (2..262144), as runc and crun convert it."""
    shares = min(max(shares, 2), 262144)
    return 1 + (shares - 2) * 9999 // 262142


def io_weight(weight: int) -> int:
    """io.weight (1..10000) of blkio.weight (10..1000)."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990
