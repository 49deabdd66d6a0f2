"""runV's settings: options of its command line, and variables of the container's process.

runV has no configuration file.  What it was told on the command line is a
table here as another flavor's file is.
"""

from __future__ import annotations

import os

from kata.config.keys import Key, Table, choice, integer, text

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any

_QEMU = ("qemu", "qemu-kvm", "kvm")
_OTHERS = ("xen", "xenpv", "libvirt", "kvmtool", "hyperkit", "vbox")
NO_CBFS = "QEMU boots the kernel itself: give --kernel and --initrd, or --bios"

#: What holds without options, where it is not Kata's (fields of RuntimeConfig).
DEFAULTS: dict[str, Any] = {
    "machine_type": "pc", "internetworking_model": "mirred", "default_vcpus": 1, "default_memory": 128,
}
MAX_VCPUS = 8  #: of any runV machine
DEBUGGED = ("hypervisor", "proxy", "shim", "agent", "runtime")  #: what --debug is for


def file(value: Any) -> str:
    """A path, relative to where runV is called."""
    name = text(value)
    if not name:
        raise ValueError("a path")
    return os.path.abspath(name)


#: Global option -> what it sets.  Others are the command line's own.
OPTIONS: Table = {
    "driver": Key(choice(*_QEMU, *_OTHERS), neutral=_QEMU, refused="QEMU is the only hypervisor: use --driver qemu"),
    "agent": Key(choice("kata", "hyperstart"), neutral=("kata",),
                 refused="hyperstart's protocol is not spoken: use --agent kata, which is the default"),
    "default_cpus": Key(integer(1, MAX_VCPUS), "default_vcpus"),
    "default_memory": Key(integer(1), "default_memory"),
    "kernel": Key(file, "kernel"),
    "initrd": Key(file, "initrd"),
    "bios": Key(file, "firmware"),
    "cbfs": Key(file, refused=NO_CBFS),
    "template": Key(file, "template_path"),
    "vsock": Key(text, refused="the agent's channel is a virtio-serial port, which works on every host"),
}

#: Kind of guest file -> name of it in a folder, as runV looks for it.
FILES = {"kernel": "kernel", "initrd": "hyper-initrd.img", "bios": "bios.bin", "cbfs": "cbfs.rom"}
#: Kind -> field of RuntimeConfig.
FIELDS = {"kernel": "kernel", "initrd": "initrd", "bios": "firmware"}
VARIABLE = "hypervisor."  #: of the process: hypervisor.kernel=/path
