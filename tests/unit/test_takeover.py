"""A proxy that takes a machine over from one that is gone: the guest says what runs, the records whose it is."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kata import state
from kata.contract import ContainerPlan, SandboxPlan
from kata.errors import HostError, NotFound, VmError
from kata.planjson import from_json, to_json
from kata.proxy import boot
from kata.proxy.record import SandboxRecord
from kata.proxy.sandbox import Sandbox
from kata.record import replace
from kata_agent.protocol import guest_pb2
from unit.test_plans import GOLDEN
from unit.test_state import record

PLANS = json.loads((GOLDEN / "plan-docker-unified.json").read_text())
PLANS["sandbox"]["machine"] |= {"cpu": "max", "tcg_cache": 32}  # which golden plans are without


class Guest:
    """What answers in the machine: these containers run."""

    def __init__(self, *running: str) -> None:
        self.running = running
        self.asked: list[str] = []

    async def connect(self) -> None:
        pass

    async def check(self, _timeout: float) -> None:
        pass

    async def close(self) -> None:
        pass

    async def agent(self, name: str, request: Any, **_: Any) -> None:
        self.asked.append(f"{name} {request.container_id}")
        await asyncio.sleep(0)  # others go on

    async def guest(self, name: str, _request: Any, **_: Any) -> Any:
        if name == "ListAll":
            return guest_pb2.Inventory(containers=[
                guest_pb2.ContainerInfo(container_id=c, state="running", processes=[guest_pb2.ProcessInfo()])
                for c in self.running])
        await asyncio.get_running_loop().create_future()  # nothing ever happens
        return None


class Machine:
    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def connect(self) -> None:
        pass

    async def stands_still(self) -> bool:
        return False

    def check_version(self) -> None:
        raise VmError("QEMU 5.2 cannot")

    async def kill(self) -> None:
        self.gone.set()


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "RUN_DIR", str(tmp_path / "run"))
    return tmp_path


def take_over(folder: Path, *names: str, then: Callable[[Sandbox], Awaitable[None]], gone: str = "") -> Guest:
    """A sandbox whose proxy is gone, with these containers; what ``then`` does with it once it is taken over.

    :param gone: one of them, which the guest does not have any more.
    """
    plan = replace(from_json(SandboxPlan, PLANS["sandbox"]), network_model="none")
    made = from_json(ContainerPlan, PLANS["container"])
    state.write_json(f"{folder}/sandbox.json", {
        "version": state.VERSION, "id": names[0], "root": f"{folder}/root", "flavor": "unified", "backend": "",
        "containers": {n: {"root": f"{folder}/root", "plan": to_json(replace(made, id=n)), "resources": {},
                           "making": False, "cgroup": ""} for n in names}})
    guest = Guest(*(n for n in names if n != gone))

    async def main() -> None:
        share: Any = SimpleNamespace(remove=lambda _id: None)
        machine: Any = Machine()
        sandbox = Sandbox(str(folder), plan, SandboxRecord(str(folder)), machine, guest, share,  # type: ignore[arg-type]
                          resuming=True)
        async with asyncio.timeout(10):
            await boot.take_over(sandbox)
            await then(sandbox)
            await sandbox.close()

    asyncio.run(main())
    return guest


@pytest.mark.parametrize("text", ["{", '{"version": 1}', '{"version": 99}', '{"init_process_pid": 1}'])
def test_a_record_that_cannot_be_read_harms_nobody(run_dir: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Its container goes on, too, and its engine hears of its end; what is on disk is left for somebody to look at."""
    for name in ("good", "bad"):
        state.new_container(f"{run_dir}/root", name, record(id=name, flavor="unified", status="created"))
    damaged = run_dir / "root/bad/state.json"
    damaged.write_text(text)

    async def then(sandbox: Sandbox) -> None:
        assert {c.id: c.status for c in sandbox.containers.values()} == {"good": "running", "bad": "running"}
        await asyncio.sleep(0)
        assert not any(f.done() for c in sandbox.containers.values() for f in c.processes.values())
        assert not await sandbox.delete("bad", True)

    guest = take_over(run_dir, "good", "bad", then=then)
    assert guest.asked == ["RemoveContainer bad"], "nobody is killed because of a file"
    assert damaged.read_text() == text
    assert state.load_container(f"{run_dir}/root", "good").record["status"] == "running"
    assert re.search(f"container bad goes on without its record: .*{damaged}", capfd.readouterr().out)


def test_a_container_that_the_guest_does_not_have_has_ended(run_dir: Path) -> None:
    for name in ("here", "gone"):
        state.new_container(f"{run_dir}/root", name, record(id=name, flavor="unified"))

    async def then(sandbox: Sandbox) -> None:
        assert {c.id: c.status for c in sandbox.containers.values()} == {"here": "running", "gone": "stopped"}
        assert sandbox.containers["gone"].processes["gone"].result() == 137, "for a shim that attaches"

    take_over(run_dir, "here", "gone", then=then, gone="gone")


def test_a_cgroup_that_refuses_harms_nobody(run_dir: Path, capfd: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        state.new_container(f"{run_dir}/root", name, record(id=name, flavor="unified", cgroup=f"/{name}"))

    def release(path: str) -> None:
        if path == "/a":
            raise HostError("cannot release the memory limit of cgroup /a: Device or resource busy")

    monkeypatch.setattr(boot.cgroups, "release_limit", release)

    async def then(sandbox: Sandbox) -> None:
        assert set(sandbox.containers) == {"a", "b"}

    take_over(run_dir, "a", "b", then=then)
    assert "cannot release the memory limit of cgroup /a" in capfd.readouterr().out


def test_who_leaves_last_takes_the_machine_along(run_dir: Path) -> None:
    """Of two that are deleted at the same time one is the last."""
    for name in ("a", "b", "c"):
        state.new_container(f"{run_dir}/root", name, record(id=name, flavor="unified"))

    async def then(sandbox: Sandbox) -> None:
        answers = await asyncio.gather(*(sandbox.delete(name, True) for name in ("a", "b", "c")))
        assert sorted(answers) == [False, False, True]
        assert sandbox.machine.gone.is_set() and not sandbox.containers

    take_over(run_dir, "a", "b", "c", then=then)


def test_nobody_waits_for_a_container_that_will_not_be(run_dir: Path) -> None:
    """Nor is the sandbox taken for one in which something is being made."""
    state.new_container(f"{run_dir}/root", "a", record(id="a", flavor="unified"))
    state.new_container(f"{run_dir}/root", "b", record(id="b", flavor="unified", creator_start=1))

    async def then(sandbox: Sandbox) -> None:
        with pytest.raises(NotFound, match="the verb that was to make container b is gone"):
            await sandbox.made("b")
        with pytest.raises(NotFound, match="does not exist"):
            await sandbox.made("c")
        assert not sandbox.expected

    take_over(run_dir, "a", then=then)


def test_the_process_of_a_dead_shim_waits_for_a_machine_that_stands_still(run_dir: Path) -> None:
    """To signal it would end the machine, which does not answer."""
    state.new_container(f"{run_dir}/root", "a", record(id="a", flavor="unified"))

    async def then(sandbox: Sandbox) -> None:
        container = sandbox.containers["a"]
        container.plan = replace(container.plan, pause_scope="vm")
        container.set_status("paused")
        ending = asyncio.ensure_future(sandbox.end_orphan("a", "exec-1"))
        await asyncio.sleep(0)
        assert not sandbox.agent.asked  # type: ignore[attr-defined]
        container.set_status("running")
        await ending
        assert sandbox.agent.asked == ["SignalProcess a"]  # type: ignore[attr-defined]

    take_over(run_dir, "a", then=then)


def test_a_full_disk_keeps_nobody_from_leaving(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the verb would take the machine for one that nobody can drive, and end the whole pod."""
    for name in ("a", "b"):
        state.new_container(f"{run_dir}/root", name, record(id=name, flavor="unified"))

    def full(path: str, _value: object) -> None:
        raise HostError(f"cannot write {path}: No space left on device")

    async def then(sandbox: Sandbox) -> None:
        monkeypatch.setattr(state, "write_json", full)
        assert not await sandbox.delete("a", True)
        assert set(sandbox.containers) == {"b"} and not sandbox.machine.gone.is_set()
        assert await sandbox.delete("b", True)

    take_over(run_dir, "a", "b", then=then)


def test_a_qemu_that_is_too_old_boots_no_guest_but_keeps_the_one_it_has(run_dir: Path) -> None:
    state.new_container(f"{run_dir}/root", "a", record(id="a", flavor="unified"))

    async def then(sandbox: Sandbox) -> None:
        with pytest.raises(VmError, match="QEMU"):
            await boot.boot(sandbox)

    assert not take_over(run_dir, "a", then=then).asked


def test_a_sandbox_of_another_version_is_named(run_dir: Path) -> None:
    """A proxy that is to take it over says so, and not where it broke."""
    state.write_json(f"{run_dir}/sandbox.json", {"version": state.VERSION, "plan": {"id": "s", "colour": "blue"}})
    program = (f"import sys; sys.path[:] = {sys.path!r}; from kata.proxy.__main__ import main; "
               "sys.exit(main(sys.argv[1:]))")
    words = [sys.executable, "-IS", "-c", program, str(run_dir), "--resume"]
    done = subprocess.run(["sh", "-c", 'exec "$@" 3</dev/null', "sh", *words], capture_output=True, text=True,
                          timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "cannot start: a SandboxPlan of another version of this runtime" in done.stdout
