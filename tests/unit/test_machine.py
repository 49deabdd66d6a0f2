"""A machine over QMP: what waits for a guest's word ends with the machine."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kata.errors import VmError
from kata.vm.machine import Machine
from unit.test_argv import PLAN


class Silent:
    """A QEMU that takes every command, and whose guest never does what it asks for."""

    async def execute(self, _command: str, _arguments: Mapping[str, Any] | None = None) -> Any:
        return {}

    async def events(self) -> AsyncIterator[Any]:
        await asyncio.get_running_loop().create_future()
        yield {}


def test_nobody_waits_for_a_machine_that_has_ended(tmp_path: Path) -> None:
    """podman takes a container's interface away just before it deletes it: the card's end is that of the machine."""
    async def main() -> None:
        qemu = subprocess.Popen(["sleep", "60"])
        machine = Machine(PLAN, qemu.pid, str(tmp_path))
        machine.qmp = Silent()  # type: ignore[assignment]
        removing = asyncio.ensure_future(machine.remove_nic("nic1"))
        await asyncio.sleep(0.05)
        assert not removing.done()
        qemu.kill()
        with pytest.raises(VmError, match="device nic1: the machine ended"):
            await asyncio.wait_for(removing, 5)

    asyncio.run(main())
