"""The language of Clear Containers 3.0's configuration.toml.

It is Kata 1.x's older self: a key that both have means the same, and is taken
from Kata's tables.  What differs is here: defaults, tables of Clear's own
components, its network models, its annotations.
"""

from __future__ import annotations

from kata.config import kata1
from kata.config.keys import Key, Language, Table, choice, integer
from kata.record import replace

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any

#: What holds without a file, where it is not Kata's (fields of RuntimeConfig).
DEFAULTS: dict[str, Any] = {
    "machine_type": "pc", "block_device_driver": "virtio-scsi", "internetworking_model": "macvtap", "template": False,
}
DEFAULT_MEMORY = 2048  #: MiB
LEAST_ASKED = 8  #: MiB; less means the default

_KATA_HYPERVISOR = (
    "path", "kernel", "image", "kernel_params", "firmware", "machine_accelerators", "default_vcpus", "default_bridges",
    "disable_block_device_use", "block_device_driver", "enable_mem_prealloc", "enable_hugepages", "enable_swap",
    "enable_debug", "disable_nesting_checks",
    # Not Clear's: without it a host whose KVM does not work could not be told so.
    "accelerator",
)


def _memory(value: Any) -> int:
    """MiB as a file has it; less than :data:`LEAST_ASKED` is the default, as in Clear."""
    asked = integer(0)(value)
    return DEFAULT_MEMORY if asked < LEAST_ASKED else asked


HYPERVISOR: Table = {
    **{name: kata1.HYPERVISOR[name] for name in _KATA_HYPERVISOR},
    "machine_type": Key(choice("pc", "q35", aliases={"": "pc"}), "machine_type"),
    "default_memory": Key(_memory, "default_memory"),
}

RUNTIME: Table = {
    "enable_debug": kata1.RUNTIME["enable_debug"],
    "internetworking_model": Key(
        choice("macvtap", "bridged", "enlightened", aliases={"default": "macvtap"}), "internetworking_model",
        neutral=("macvtap", "bridged"),
        refused="nothing ever carried out the model \"enlightened\": use \"macvtap\" or \"bridged\""),
}

_PROXY, _SHIM = kata1.LANGUAGE["proxy.kata"], kata1.LANGUAGE["shim.kata"]

LANGUAGE: Language = {
    "hypervisor.qemu": HYPERVISOR,
    "proxy.cc": _PROXY,
    "shim.cc": {name: _SHIM[name] for name in ("path", "enable_debug")},
    # The agent is ours whatever is named; Clear's table has no keys.
    "agent.cc": {},
    "agent.hyperstart": {},
    # Since 3.0.15 Clear could be configured to run Kata's components.
    "proxy.kata": _PROXY,
    "shim.kata": {name: _SHIM[name] for name in ("path", "enable_debug")},
    "agent.kata": {name: replace(kata1.AGENT[name], annotation=False)
                   for name in ("enable_debug", "transport", "boot_timeout")},
    "runtime": RUNTIME,
}

#: Tables of Kata 1.x that Clear does not have.
REFUSED_TABLES = {
    "factory": "Clear Containers has no templates and no pool: use the flavor unified",
    "netmon": "Clear Containers has no network monitor: use the flavor unified",
    "hypervisor.firecracker": kata1.REFUSED_TABLES["hypervisor.firecracker"],
}

ANNOTATION_PREFIX = "com.github.containers.virtcontainers."
#: What Clear writes itself (the path of the bundle, the type of the container ...) is below this.
ANNOTATION_OWN = ANNOTATION_PREFIX + "pkg."
#: Annotation -> the field whose path it sets.
ANNOTATION_PATHS = {"KernelPath": "kernel", "ImagePath": "image", "InitrdPath": "initrd"}
#: Annotation -> the field whose file must have this hash.
ANNOTATION_HASHES = {"KernelHash": "kernel", "ImageHash": "image", "InitrdHash": "initrd"}
HASH_TYPE = "AssetHashType"
HASH_TYPES = ("sha512",)
