"""``update``: change the resources of a container."""

from __future__ import annotations

import copy
import re
from typing import Any

from kata import cgroups, state
from kata.cli.context import Context
from kata.errors import KataError, UnsupportedError, UsageError, WrongState
from kata.table import Argument, Namespace, Option, Verb

#: option -> (path in linux.resources, is it a size in bytes)
FIELDS: dict[str, tuple[tuple[str, str], bool]] = {
    "blkio-weight": (("blockIO", "weight"), False),
    "cpu-period": (("cpu", "period"), False),
    "cpu-quota": (("cpu", "quota"), False),
    "cpu-share": (("cpu", "shares"), False),
    "cpu-rt-period": (("cpu", "realtimePeriod"), False),
    "cpu-rt-runtime": (("cpu", "realtimeRuntime"), False),
    "memory": (("memory", "limit"), True),
    "memory-reservation": (("memory", "reservation"), True),
    "memory-swap": (("memory", "swap"), True),
    "kernel-memory": (("memory", "kernel"), True),
    "kernel-memory-tcp": (("memory", "kernelTCP"), True),
    "pids-limit": (("pids", "limit"), False),
}
TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}

VERB = Verb(
    "Change the resources of a container; the machine grows when they ask for more than it has.",
    Option("--resources", "-r", help="file with linux.resources as JSON, - for standard input", metavar="FILE"),
    *(Option(f"--{name}", metavar="SIZE" if size else "N", help=".".join(path))
      for name, (path, size) in FIELDS.items()),
    *(Option(f"--{name}", metavar="LIST", help=".".join(path)) for name, path in TEXTS.items()),
    Option("--l3-cache-schema", help="refused: no Intel RDT in a virtual machine", metavar="TEXT"),
    Option("--mem-bw-schema", help="refused: no Intel RDT in a virtual machine", metavar="TEXT"),
    arguments=[Argument("id")],
)

_SIZE = re.compile(r"(-?\d+)([bkmgt]?)b?", re.IGNORECASE)


def run(context: Context, args: Namespace) -> int:
    container = context.container(args["id"])
    for option in ("l3_cache_schema", "mem_bw_schema"):
        if args[option]:
            raise UnsupportedError(f"--{option.replace('_', '-')} cannot hold: no Intel RDT in a virtual machine",
                                   "leave it out")
    change = _change(args)
    if container.status() not in ("created", "running", "paused"):
        raise WrongState("container not running", f"container {container.id} is {container.status()}")
    recorded = container.made_of("resources")
    merged = merge(recorded["resources"], change)
    size = _size(context, container, merged)
    for warning in cgroups.apply(container.record["cgroup"], change):
        context.log.warning(f"container {container.id}: {warning}")
    try:
        context.ask(container, "update", timeout=120, resources=change, merged=merged, size=size)
    except KataError:
        cgroups.apply(container.record["cgroup"], recorded["resources"])
        raise
    state.write_json(f"{container.dir}/process.json", {**recorded, "resources": merged})
    return 0


def _change(args: Namespace) -> dict[str, Any]:
    """The resources that the options name.

    :raise UsageError: nothing, or not a number.
    """
    from kata import oci

    if args["resources"]:
        resources, _notes = oci.load_resources(args["resources"])
        return resources
    change: dict[str, Any] = {}
    for name, ((table, key), is_size) in FIELDS.items():
        text = args[name.replace("-", "_")]
        if text:
            change.setdefault(table, {})[key] = _number(name, text, is_size)
    for name, (table, key) in TEXTS.items():
        text = args[name.replace("-", "_")]
        if text:
            change.setdefault(table, {})[key] = text
    if not change:
        raise UsageError("nothing to update is given", "name a resource, or give --resources FILE")
    oci.check_resources(change, "update")
    return change


def _number(name: str, text: str, is_size: bool) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or (match[2] and not is_size):
        raise UsageError(f"--{name} {text} is not a number" + (" of bytes, as 64m" if is_size else ""))
    return int(match[1]) << 10 * "bkmgt".index((match[2] or "b").lower())


def merge(old: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``old`` with the values of ``change``; tables are merged, lists replaced."""
    merged = copy.deepcopy(old)
    for key, value in change.items():
        merged[key] = merge(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


def _size(context: Context, container: state.Container, merged: dict[str, Any]) -> dict[str, int] | None:
    """The size for the sandbox once the container has these resources."""
    backend = context.backend_of(container)
    if not backend.capabilities.resize:
        return None
    config = backend.load_config(context.invocation(), container.record["annotations"])
    others = [c["resources"] for c in context.ask(container, "containers")["containers"] if c["id"] != container.id]
    plan = backend.plan_resize(config, [*others, merged])
    return {"vcpus": plan.vcpus, "memory": plan.memory}
