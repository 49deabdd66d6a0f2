"""The sandbox's record, ``sandbox.json``: what a later proxy or a clean-up needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kata import state
from kata.contract import ContainerPlan
from kata.planjson import to_json


class SandboxRecord:
    """Written before what it records is made, so that nothing made is unknown."""

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/sandbox.json"
        self.data: dict[str, Any] = state.read_json(self.path)

    def update(self, **changes: Any) -> None:
        self.data.update(changes)
        state.write_json(self.path, self.data)

    def add_container(self, root: str, plan: ContainerPlan, resources: Mapping[str, Any], cgroup: str, *,
                      making: bool = False) -> None:
        """:param making: it is not whole yet; a proxy that takes over removes it."""
        entry = {"root": root, "plan": to_json(plan), "resources": dict(resources), "cgroup": cgroup, "making": making}
        self.update(containers={**self.data["containers"], plan.id: entry})

    def remove_container(self, container_id: str) -> None:
        if container_id in self.data["containers"]:
            self.update(containers={k: v for k, v in self.data["containers"].items() if k != container_id})
