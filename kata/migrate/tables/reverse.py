"""Unified's configuration.toml -> Clear's, and -> runV's options."""

from __future__ import annotations

from kata.config import kata1
from kata.config.keys import Key, Language, choice
from kata.migrate import CHANGED, DROPPED, RENAMED, SAME, Behaviour, Rule
from kata.migrate.rules import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

#: Keys of Clear's tables, each as in Kata's.
_CLEARS = {
    "hypervisor.qemu": ("path", "kernel", "image", "machine_type", "kernel_params", "firmware", "machine_accelerators",
                        "default_vcpus", "default_bridges", "default_memory", "disable_block_device_use",
                        "block_device_driver", "enable_mem_prealloc", "enable_hugepages", "enable_swap", "enable_debug",
                        "disable_nesting_checks", "accelerator"),
    "agent.kata": ("enable_debug", "transport", "boot_timeout"),
    "runtime": ("enable_debug", "internetworking_model"),
}
LANGUAGE_OF_CLEAR: Language = {
    **{table: {key: kata1.LANGUAGE[table][key] for key in keys} for table, keys in _CLEARS.items()},
    "proxy.cc": kata1.LANGUAGE["proxy.kata"],
    "shim.cc": {key: kata1.LANGUAGE["shim.kata"][key] for key in ("path", "enable_debug")},
}
LANGUAGE_OF_CLEAR = {**LANGUAGE_OF_CLEAR, "runtime": {
    **LANGUAGE_OF_CLEAR["runtime"],
    "internetworking_model": Key(choice("macvtap", "bridged"), "internetworking_model")}}
TABLES_OF_CLEAR = {"proxy.kata": "proxy.cc", "shim.kata": "shim.cc"}

_MACVTAP = Rule(CHANGED, convert=lambda _value: "macvtap", fields=("sandbox.network_model",),
                why="Clear has macvtap and bridged; macvtap is its default")
_MODELS = {"macvtap": Rule(SAME), "bridged": Rule(SAME)}


def _absent(flavor: str) -> Any:
    def rule(table: str, key: str) -> Rule:
        return Rule(DROPPED, why=f"{flavor} has no such setting", instead="stay with unified",
                    fields=_FIELDS.get((table, key), ()))

    return rule


#: Fields of plans that go another way without a key.
_FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("factory", "enable_template"): ("sandbox.boot", "sandbox.template_path"),
    ("factory", "vm_cache_number"): ("sandbox.boot", "sandbox.pool_path"),
}


def _without(flavor: str, kept: dict[tuple[str, str], Rule], language: Language) -> dict[tuple[str, str], Rule]:
    """Rules for every key of unified: ``kept``, else dropped where ``language`` lacks it."""
    absent = _absent(flavor)
    rules = dict(kept)
    for table, keys in kata1.LANGUAGE.items():
        moved = TABLES_OF_CLEAR.get(table, table)
        rules |= {(table, key): absent(table, key) for key in keys
                  if (table, key) not in rules and key not in language.get(moved, {})}
    return rules


TO_CLEAR: dict[tuple[str, str], Rule] = _without("Clear Containers", {
    ("runtime", "internetworking_model"): Rule(SAME, convert=choose(_MODELS, _MACVTAP)),
    ("hypervisor.qemu", "initrd"): Rule(
        DROPPED, why="Clear's file has no key for an initrd: its machines boot an image",
        fields=("sandbox.machine.initrd",),
        instead="the annotation com.github.containers.virtcontainers.InitrdPath of a container"),
}, LANGUAGE_OF_CLEAR)

#: Unified's defaults that are not Clear's, and that Clear can be told.
DEFAULTS_FOR_CLEAR: dict[tuple[str, str], Any] = {
    ("hypervisor.qemu", "machine_type"): "q35",
    ("hypervisor.qemu", "block_device_driver"): "virtio-blk",
}

MAX_VCPUS = 8  #: of a runV machine


def _to_cpus(value: Any) -> Rule:
    wanted = min(max(int(value), 1), MAX_VCPUS)
    return Rule(RENAMED if wanted == value else CHANGED, "", "default_cpus", lambda _value: wanted,
                why="" if wanted == value else f"runV's machines have 1 to {MAX_VCPUS} vCPUs")


def _to_template(value: Any) -> Rule:
    if value:
        return Rule(RENAMED, convert=lambda _value: None, why="--template with the folder says it")
    return Rule(SAME, convert=lambda _value: None, why="runV makes templates only when told")


def _option(name: str) -> Rule:
    return Rule(RENAMED, key=name, convert=lambda value: value or None)


#: The target's key is an option.
TO_RUNV: dict[tuple[str, str], Rule] = _without("runV", {
    ("hypervisor.qemu", "default_vcpus"): Rule(RENAMED, convert=_to_cpus),
    ("hypervisor.qemu", "default_memory"): _option("default_memory"),
    ("hypervisor.qemu", "kernel"): _option("kernel"),
    ("hypervisor.qemu", "initrd"): _option("initrd"),
    ("hypervisor.qemu", "firmware"): _option("bios"),
    ("hypervisor.qemu", "enable_debug"): Rule(RENAMED, key="debug", convert=lambda value: value or None,
                                              why="--debug is for all components"),
    ("factory", "template_path"): _option("template"),
    ("factory", "enable_template"): Rule(RENAMED, convert=_to_template),
    ("hypervisor.qemu", "image"): Rule(DROPPED, why="runV's machines boot an initrd", instead="--initrd",
                                       fields=("sandbox.machine.image",)),
}, {})
DEFAULTS_FOR_RUNV: dict[tuple[str, str], Any] = {("", "default_memory"): 2048}


def behaviours(forward: Iterable[Behaviour]) -> list[Behaviour]:
    """The same differences the other way round."""
    return [Behaviour(b.what, b.new, b.old, "the other way round: this is how the flavor was", "", b.fields)
            for b in forward]
