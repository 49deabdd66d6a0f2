"""Facts about the host that plans depend on: processors, memory, KVM, the time stamp counter."""

from __future__ import annotations

import fcntl
import os

from kata.record import Record

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping

_KVM_CREATE_VM = 0xAE01  # linux/kvm.h


class HostFacts(Record):
    """``memory`` in MiB, ``tsc_khz`` 0 when it is not known for certain."""

    cpus: int
    memory: int
    kvm_usable: bool
    tsc_khz: int


def collect() -> HostFacts:
    """The facts, all read anew: well under a millisecond."""
    processor = first_processor("/proc/cpuinfo")
    return HostFacts(os.cpu_count() or 1, _memory(), kvm_usable(processor), tsc_khz(processor))


def first_processor(path: str) -> dict[str, str]:
    """The first block of /proc/cpuinfo, which on a large host is long."""
    with open(path, "rb") as f:
        text = f.read(16384).decode(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in text.split("\n"))
    return {name.strip(): value.strip() for name, _colon, value in pairs}


def kvm_usable(processor: Mapping[str, str], device: str = "/dev/kvm") -> bool:
    """Whether the processor can do it and the kernel makes a machine.

    The flags decide: where they are missing, /dev/kvm may exist and even make
    a machine, in which a guest then hangs.
    """
    if not {"vmx", "svm"} & set(processor.get("flags", "").split()):
        return False
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def tsc_khz(processor: Mapping[str, str]) -> int:
    """Frequency of the time stamp counter.

    In a virtual machine "cpu MHz" is that of the counter.  On hardware it is
    the processor's current speed, but Intel's model name has the nominal one.
    """
    flags = processor.get("flags", "").split()
    if not {"constant_tsc", "tsc_reliable", "nonstop_tsc"} & set(flags):
        return 0
    if "hypervisor" in flags:
        try:
            return int(float(processor.get("cpu MHz", "0")) * 1000)
        except ValueError:
            return 0
    nominal = processor.get("model name", "").partition("@ ")[2].partition("GHz")[0]
    return int(float(nominal) * 1_000_000) if nominal.replace(".", "", 1).isdecimal() else 0


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
