"""What each scope of pause asks of the machine and of the guest, in which order."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from kata.errors import HostError, WrongState
from kata.proxy import pausing
from kata.proxy.ops import NEED_GUEST, Operations


class Guest:
    """A sandbox that only writes down what it is asked."""

    def __init__(self, *containers: tuple[str, str, str]) -> None:
        self.asked: list[str] = []
        self.refuses = ""
        self.containers = {name: self._container(name, scope, status) for name, scope, status in containers}
        self.machine = SimpleNamespace(pause=lambda: self._note("stop"), resume=lambda: self._note("cont"))
        self.agent = SimpleNamespace(agent=lambda name, _request: self._note(name))
        self.network = SimpleNamespace(hold=lambda: self.asked.append("hold"),
                                       release=lambda: self.asked.append("release"))
        self.pooled = self.resuming = False

    def _container(self, name: str, scope: str, status: str) -> Any:
        made = SimpleNamespace(id=name, status=status, plan=SimpleNamespace(pause_scope=scope))
        made.set_status = lambda value: setattr(made, "status", value)
        return made

    async def _note(self, what: str) -> None:
        self.asked.append(what)
        if what == self.refuses:
            raise HostError("no")

    async def signal(self, _container: str, _process: str, number: int) -> None:
        await self._note(signal.Signals(number).name)

    async def let_go_on(self) -> None:
        await pausing.resume(self, pausing.halted(self))  # type: ignore[arg-type]

    def pause(self, name: str) -> list[str]:
        asyncio.run(pausing.pause(self, self.containers[name]))  # type: ignore[arg-type]
        return [c.status for c in self.containers.values()]

    def resume(self, name: str) -> list[str]:
        asyncio.run(pausing.resume(self, self.containers[name]))  # type: ignore[arg-type]
        return [c.status for c in self.containers.values()]


def test_a_container_is_frozen() -> None:
    guest = Guest(("a", "container", "running"), ("b", "container", "running"))
    assert guest.pause("a") == ["paused", "running"] and guest.resume("a") == ["running", "running"]
    assert guest.asked == ["PauseContainer", "ResumeContainer"]


def test_processes_are_stopped_while_none_can_fork() -> None:
    guest = Guest(("a", "process", "running"))
    assert guest.pause("a") == ["paused"] and pausing.halted(guest) is None  # type: ignore[arg-type]
    assert guest.resume("a") == ["running"]
    assert guest.asked == ["PauseContainer", "SIGSTOP", "ResumeContainer", "SIGCONT"]


def test_a_machine_stands_still_with_all_that_runs_in_it() -> None:
    guest = Guest(("a", "vm", "running"), ("b", "vm", "running"), ("c", "vm", "created"))
    assert guest.pause("a") == ["paused", "paused", "created"]
    assert guest.resume("b") == ["running", "running", "created"]
    assert guest.asked == ["hold", "stop", "cont", "release"]


@pytest.mark.parametrize(("scope", "refuses", "asked"), [
    ("process", "SIGSTOP", ["PauseContainer", "SIGSTOP", "ResumeContainer"]),
    ("vm", "stop", ["hold", "stop", "release"]),
    ("container", "PauseContainer", ["PauseContainer"])])
def test_a_pause_that_fails_leaves_nothing_standing(scope: str, refuses: str, asked: list[str]) -> None:
    guest = Guest(("a", scope, "running"))
    guest.refuses = refuses
    with pytest.raises(HostError):
        guest.pause("a")
    assert guest.asked == asked and guest.containers["a"].status == "running"


@pytest.mark.parametrize("name", sorted(NEED_GUEST))
def test_nobody_waits_for_a_machine_that_stands_still(name: str) -> None:
    guest = Guest(("a", "vm", "paused"), ("b", "vm", "created"))

    async def ask(request: dict[str, Any]) -> None:
        operations = Operations.__new__(Operations)
        operations.sandbox = guest  # type: ignore[assignment]
        operations._ops = {name: answer}
        await operations(None, request, [])  # type: ignore[arg-type]

    async def answer(*_: Any) -> dict[str, Any]:
        guest.asked.append(name)
        return {}

    with pytest.raises(WrongState, match="the machine is paused with container a"):
        asyncio.run(ask({"op": name, "id": "b", "signal": 15}))
    assert not guest.asked
    if name == "kill":
        asyncio.run(ask({"op": name, "id": "b", "signal": 9}))
        assert guest.asked == ["cont", "release", "kill"] and guest.containers["a"].status == "running"
