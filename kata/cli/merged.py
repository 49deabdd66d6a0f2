"""The second phase of the road: what a container of a retiring flavor would be in unified.

Said once per invocation, in the log: no stream that an engine parses.
"""

from __future__ import annotations

from kata import flavors, loader
from kata.cli.context import Context
from kata.cli.plan import plans
from kata.contract import InvocationOptions
from kata.errors import KataError
from kata.record import replace

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: What a user would notice: place in the plans -> its name.
NOTICED = {
    "sandbox.machine.machine_type": "machine", "sandbox.machine.vcpus": "vCPUs",
    "sandbox.machine.memory": "memory in MiB",
    "sandbox.machine.image": "root image", "sandbox.boot": "boot", "sandbox.network_model": "network",
    "container.guest_process_at": "process made at", "container.pause_scope": "pause of",
}


def warn(context: Context, options: InvocationOptions, bundle: str, container_id: str) -> None:
    """Write the warning."""
    name = context.flavor.name
    args = {"bundle": bundle, "id": container_id}
    try:
        now = plans(context.backend(), options, args)
        # The file is in the language of the retiring flavor.
        later = plans(loader.load(flavors.DEFAULT), replace(options, config_path=""), args)
    except KataError as e:
        text = f"it has no plan there: {e}"
    else:
        text = "; ".join(differences(now, later)) or "nothing would be different"
    context.log.warning(f"flavor {name} is deprecated on this host (roadmap phase {flavors.MERGED}). "
                        f"In {flavors.DEFAULT}: {text}. `kata migrate plan` says more")


def differences(now: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """``what then instead of now`` for everything a user would notice."""
    found = []
    for place, what in NOTICED.items():
        before, after = _at(now, place), _at(later, place)
        if before != after:
            found.append(f"{what} {after or 'none'} instead of {before or 'none'}")
    return found


def _at(plans: Mapping[str, Any], place: str) -> Any:
    value: Any = plans
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
