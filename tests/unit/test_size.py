"""How far a machine grows."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kata.proxy.sandbox import Sandbox


@pytest.mark.parametrize(("now", "most", "wanted", "added"), [
    (256, 8000, 512, [256]), (256, 8000, 300, [44]), (256, 8000, 200, []),
    (256, 7983, 65536, [7680]),  # a limit above the host's memory
    (256, 7983, 7980, [7680]),  # whole blocks would be more than there is room for
    (256, 300, 290, []), (2048, 2048, 4096, []), (2048, 1024, 4096, [])])
def test_memory_grows_as_far_as_there_is_room(now: int, most: int, wanted: int, added: list[int]) -> None:
    asked: list[Any] = []

    class Machine:
        async def memory(self) -> int:
            return now

        async def vcpus(self) -> int:
            return 1

        async def add_memory(self, mib: int) -> int:
            asked.append(mib)
            return mib

    async def agent(name: str, _request: Any) -> None:
        assert name == "OnlineCPUMem"

    sandbox = SimpleNamespace(plan=SimpleNamespace(machine=SimpleNamespace(max_memory=most)), machine=Machine(),
                              agent=SimpleNamespace(agent=agent))
    asyncio.run(Sandbox.grow(sandbox, 1, wanted))  # type: ignore[arg-type]
    assert asked == added
