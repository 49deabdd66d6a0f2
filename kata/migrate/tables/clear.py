"""Clear Containers 3.0's configuration.toml -> unified.

Kata 1.x's language is Clear's, grown: a key that is not here means in unified what it meant in Clear.
"""

from __future__ import annotations

from kata import machineplan
from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, Behaviour, Rule
from kata.migrate.rules import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Where Clear Containers looked for it.
PLACES = ("/etc/clear-containers/configuration.toml", "/usr/share/defaults/clear-containers/configuration.toml")

#: Table -> the target's.
MOVED = {"proxy.cc": "proxy.kata", "shim.cc": "shim.kata", "agent.cc": "agent.kata", "agent.hyperstart": "agent.kata"}

DEFAULT_MEMORY = 2048  #: MiB
LEAST_ASKED = 8  #: MiB; less means the default
#: MiB below which a machine does not come up, with an image or an initrd.
LEAST_MEMORY = machineplan.LEAST_WITH_INITRD

#: Prefixes and names of what Clear's packages installed: it cannot serve here.
_OWN_ASSETS = "/usr/share/clear-containers/"
_OWN_QEMU = "qemu-lite-system-x86_64"


def _own(place: str, ours: str, field: str) -> Rule:
    return Rule(CHANGED, convert=lambda _value: None, fields=(field,),
                why=f"{place} is Clear Containers' own, and speaks another protocol or lacks what is asked of it; "
                    f"{ours}")


def _qemu(path: Any) -> Rule:
    if str(path).rpartition("/")[2] == _OWN_QEMU:
        return _own("qemu-lite", "qemu-system-x86_64 is used", "sandbox.machine.qemu_path")
    return Rule(SAME) if path else Rule(RENAMED, convert=lambda _value: None, why="empty is the default")


def _asset(kind: str) -> Any:
    def rule(path: Any) -> Rule:
        if str(path).startswith(_OWN_ASSETS):
            return _own(f"this {kind}", f"the {kind} of the asset store is used (kata {kind} list)",
                        f"sandbox.machine.{kind}")
        return Rule(SAME)

    return rule


def _memory(value: Any) -> Rule:
    if type(value) is not int or value < 0:
        return Rule(SAME)  # and an error
    asked = DEFAULT_MEMORY if value < LEAST_ASKED else value
    if asked < LEAST_MEMORY:
        return Rule(CHANGED, convert=lambda _value: LEAST_MEMORY,
                    fields=("sandbox.machine.memory", "sandbox.machine.max_memory", "sandbox.base_memory"),
                    why=f"our guest needs {LEAST_MEMORY} MiB to come up")
    if asked != value:
        return Rule(RENAMED, convert=lambda _value: asked, why="less than 8 MiB meant the default")
    return Rule(SAME)


_MODELS = {"macvtap": Rule(SAME), "bridged": Rule(SAME),
           "default": Rule(RENAMED, convert=lambda _value: "macvtap", why="it was Clear's word for macvtap"),
           "": Rule(RENAMED, convert=lambda _value: "macvtap", why="empty was Clear's default")}
_COMPONENT = Rule(DROPPED, why="the component is built into this runtime, so there is no path to it")

RULES: dict[tuple[str, str], Rule] = {
    ("hypervisor.qemu", "path"): Rule(SAME, convert=_qemu),
    ("hypervisor.qemu", "kernel"): Rule(SAME, convert=_asset("kernel")),
    ("hypervisor.qemu", "image"): Rule(SAME, convert=_asset("image")),
    ("hypervisor.qemu", "machine_type"): Rule(SAME, convert=choose(
        {"": Rule(RENAMED, convert=lambda _value: "pc", why="empty was Clear's default")}, Rule(SAME))),
    ("hypervisor.qemu", "default_memory"): Rule(SAME, convert=_memory),
    ("proxy.cc", "path"): _COMPONENT,
    ("shim.cc", "path"): _COMPONENT,
    ("proxy.kata", "path"): _COMPONENT,
    ("shim.kata", "path"): _COMPONENT,
    ("runtime", "internetworking_model"): Rule(SAME, convert=choose(_MODELS, Rule(
        DROPPED, why="nothing ever carried this model out; macvtap, Clear's default, is written",
        instead="tcfilter works with interfaces of every kind"))),
}

#: What held where a file said nothing, and does not in unified: it is written.
DEFAULTS: dict[tuple[str, str], Any] = {
    ("hypervisor.qemu", "machine_type"): "pc",
    ("hypervisor.qemu", "block_device_driver"): "virtio-scsi",
    ("runtime", "internetworking_model"): "macvtap",
    ("factory", "enable_template"): False,
}

_SIZE = ("sandbox.machine.memory", "sandbox.machine.max_memory", "sandbox.base_memory", "container.memory")
BEHAVIOURS = (
    Behaviour("memory limit of a container", "replaces default_memory", "is added to default_memory",
              "the machine's memory is the default plus the limits of all containers, so that the guest's own need "
              "does not come out of a container's limit; the container's limit holds inside as before",
              "lower default_memory where machines become too large", _SIZE),
    Behaviour("memory after the start", "fixed", "grows with update and with containers that join",
              "the machine has room for memory that is plugged in", fields=("sandbox.machine.max_memory",)),
    Behaviour("first process", "is made at start", "is made at create",
              "a program that does not exist fails create, as with other runtimes", "",
              ("container.guest_process_at", "container.extras.defer_process")),
    Behaviour("pause", "stops the whole machine", "freezes the container's processes",
              "other containers of a pod go on, and the guest still answers", "", ("container.pause_scope",)),
    Behaviour("joining a machine", "by pod annotations", "also by the network namespace of another container",
              "docker run --network container:NAME gets into NAME's machine instead of taking its interfaces"),
    Behaviour("annotations of containers", "com.github.containers.virtcontainers.{Kernel,Image,Initrd}{Path,Hash}",
              "io.katacontainers.config.hypervisor.{kernel,image,initrd}{,_hash}",
              "Clear's names are not looked at, and no container may set anything unless the configuration allows it",
              "name what containers may set in enable_annotations of [hypervisor.qemu]"),
    Behaviour("words, log and exit codes", "cc-runtime's", "kata-runtime's",
              "whoever reads them meets Kata's texts; `kata --flavor clear VERB` still speaks as cc-runtime"),
)
