"""Claims and keys of the pool and of templates, without any machine."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kata import pool, state, template
from kata.contract import MachinePlan, SandboxPlan
from kata.errors import HostError, InUse
from kata.log import Log
from kata.pool import keeper
from kata.record import replace


@pytest.fixture
def plan(tmp_path: Path) -> SandboxPlan:
    files = {name: tmp_path / name for name in ("qemu", "kernel", "initrd")}
    for path in files.values():
        path.write_text("x")
    machine = MachinePlan(
        qemu_path=str(files["qemu"]), machine_type="q35", machine_options="", accelerator="tcg", cpu="max", vcpus=1,
        max_vcpus=4, memory=256, max_memory=1024, memory_slots=10, kernel=str(files["kernel"]),
        initrd=str(files["initrd"]), image="", firmware="", kernel_params=(), hotplug_ports=4,
        block_driver="virtio-blk", iothreads=False, prealloc=False, hugepages=False, mlock=False, msize_9p=8192,
        entropy_source="/dev/urandom", tcg_cache=32, debug=False)
    return SandboxPlan(
        id="one", flavor="unified", machine=machine, base_vcpus=1, base_memory=256, boot="pool",
        template_path=str(tmp_path / "template"), agent_transport="ttrpc", boot_timeout=60.0, hostname="one",
        network_model="tcfilter", hotplug_network=True, shared_pidns=False, guest_hook_path="", kernel_modules=(),
        cgroup_only=False, pool_path=str(tmp_path / "pool"))


def test_what_a_key_depends_on(plan: SandboxPlan) -> None:
    """Whatever is fixed before a claim, and nothing that is not."""
    same = [replace(plan, id="two"), replace(plan, hostname="two"), replace(plan, network_model="none"),
            replace(plan, machine=replace(plan.machine, vcpus=3, memory=777)), pool.base_plan(plan)]
    assert {pool.key(p) for p in same} == {pool.key(plan)}
    others = [replace(plan, guest_hook_path="/h"), replace(plan, kernel_modules=("m",)), replace(plan, base_memory=300),
              replace(plan, shared_pidns=True), replace(plan, machine=replace(plan.machine, kernel_params=("a",)))]
    assert len({pool.key(p) for p in (plan, *others)}) == len(others) + 1


@pytest.mark.parametrize("name", ["qemu_path", "kernel", "initrd"])
def test_keys_depend_on_the_very_files(plan: SandboxPlan, name: str) -> None:
    before = template.key(plan), pool.key(plan)
    path = Path(getattr(plan.machine, name))
    aside = path.with_name("aside")
    aside.write_text("x")
    aside.rename(path)  # equal, but another file
    assert template.key(plan) != before[0] and pool.key(plan) != before[1]


def machine(plan: SandboxPlan, name: str) -> Path:
    path = Path(plan.pool_path) / f"{pool.key(plan)}.{name}"
    path.mkdir(parents=True)
    (path / "sandbox.json").write_text(name)
    return path


def test_each_machine_is_claimed_once(plan: SandboxPlan, tmp_path: Path) -> None:
    for name in "abc":
        machine(plan, name)
    other = machine(replace(plan, kernel_modules=("m",)), "d")
    targets = [tmp_path / f"sandbox{n}" for n in range(12)]
    for target in targets:
        target.mkdir()
    with ThreadPoolExecutor(12) as threads:
        won = list(threads.map(lambda t: pool.take(plan, str(t)), targets))
    taken = sorted((t / "sandbox.json").read_text() for t, w in zip(targets, won, strict=True) if w)
    assert taken == ["a", "b", "c"]
    assert pool.machines(plan.pool_path) == [str(other)]


def test_none_is_no_error(plan: SandboxPlan, tmp_path: Path) -> None:
    """No pool, an empty one, one whose machines are in the making."""
    (tmp_path / "sandbox").mkdir()
    assert not pool.take(plan, str(tmp_path / "sandbox"))
    (Path(plan.pool_path) / f"{pool.MAKING}{pool.key(plan)}.a").mkdir(parents=True)
    assert not pool.take(plan, str(tmp_path / "sandbox"))
    assert len(pool.half_made(plan.pool_path)) == 1


def test_not_over_another_sandbox(plan: SandboxPlan, tmp_path: Path) -> None:
    mine = machine(plan, "a")
    target = tmp_path / "sandbox"
    target.mkdir()
    (target / "sandbox.json").write_text("somebody's")
    with pytest.raises(HostError, match="cannot claim"):
        pool.take(plan, str(target))
    assert mine.exists() and (target / "sandbox.json").read_text() == "somebody's"


def test_dead_machines_are_left_overs(plan: SandboxPlan) -> None:
    """A record that cannot be read, or whose processes are gone; nobody's while there is a keeper."""
    dead = machine(plan, "a")
    assert keeper.left_over(plan.pool_path) == [str(dead)]
    assert keeper.keeper_of(plan.pool_path) == 0


def test_the_keeper_is_who_holds_the_lock(plan: SandboxPlan) -> None:
    """Nothing that an earlier one has left, and nobody who only looks; another one has no part in it."""
    path = plan.pool_path
    Path(path).mkdir()
    other = subprocess.Popen(["sleep", "100"])
    try:
        for said in (str(other.pid), "", "x" * 40):
            Path(path, pool.LOCK).write_text(said)
            looking = os.open(f"{path}/{pool.LOCK}", os.O_RDWR)
            fcntl.flock(looking, fcntl.LOCK_EX)
            assert keeper.keeper_of(path) == 0 and keeper.stop(path) == 0
            os.close(looking)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_one_keeper_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # of a short name: sockets are to live there
        path = f"{folder}/pool"
        program = ("import sys; from kata import state; from kata.pool.keeper import kept\n"
                   f"state.RUN_DIR = {folder!r}\nwith kept({path!r}): print('here', flush=True); sys.stdin.read()")
        monkeypatch.setattr(state, "RUN_DIR", folder)
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
            assert one.stdout and one.stdout.readline() == b"here\n"
            assert keeper.keeper_of(path) == one.pid
            with pytest.raises(InUse, match=f"has a keeper already .pid {one.pid}."), keeper.kept(path):
                pass
            assert keeper.keeper_of(path) == one.pid, "a look does not take it away"
            assert keeper.stop(path, timeout=20) == 0
        assert one.returncode == -signal.SIGTERM and keeper.keeper_of(path) == 0


def test_what_is_no_machine_and_no_template_is_left_alone(plan: SandboxPlan, tmp_path: Path) -> None:
    """The two places are a configuration's, and may hold what is somebody else's: a socket, folders of a user."""
    for place in (plan.pool_path, plan.template_path):
        for name in ("notes.d", "data", ".old-mine", "work.making", "f" * 30):
            (Path(place) / name).mkdir(parents=True)
        (Path(place) / "cache.sock").write_text("")
    assert keeper.left_over(plan.pool_path) == [] and keeper.stop(plan.pool_path) == 0
    assert template.unfinished(plan.template_path) == []
    for number in range(4):
        (Path(plan.template_path) / f"{number:024x}").mkdir()
    with template.making(plan, wait=False) as folder:
        assert folder is not None
    left = {path.name for path in Path(plan.template_path).iterdir()}
    assert left >= {"notes.d", "data", ".old-mine", "work.making", "f" * 30, template.key(plan)} and len(left) == 10
    socket = f"{plan.pool_path}/cache.sock"  # where Kata 1.x's configuration has a socket
    assert keeper.left_over(socket) == [] and not pool.take(replace(plan, pool_path=socket), str(tmp_path / "x"))


@pytest.mark.parametrize("text", ["[]", "7", "null", '{"read_only": true}', "{"])
def test_a_template_that_is_damaged_is_none(plan: SandboxPlan, text: str) -> None:
    folder = Path(plan.template_path, template.key(plan))
    folder.mkdir(parents=True)
    (folder / "memory").write_bytes(b"")
    os.truncate(folder / "memory", plan.base_memory << 20)
    (folder / "state").touch()
    (folder / "template.json").write_text('{"channel_token": "00", "read_only": false}')
    found = template.open_template(plan)
    assert found is not None
    found.close()
    (folder / "template.json").write_text(text)
    assert template.open_template(plan) is None


def test_a_template_that_somebody_has_removed_meanwhile(plan: SandboxPlan) -> None:
    template.discard(plan)
    assert not Path(plan.template_path).exists()


def test_a_maker_that_does_not_end_is_not_waited_for_without_end(plan: SandboxPlan,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SAVE_MARGIN", 0.05)
    late = replace(plan, boot_timeout=0.0)
    with template.making(plan, wait=False) as one:
        assert one is not None
        with template.making(late, wait=False) as other:
            assert other is None
        with pytest.raises(HostError, match=r"another process has held the lock of .* for 0\.05 s"), \
                template.making(late, wait=True):
            pass


def test_a_keeper_whose_pool_was_removed_ends(plan: SandboxPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock went with it: another may be at work already."""
    monkeypatch.setattr(pool, "await_starts", lambda: None)
    monkeypatch.setattr(keeper.Keeper, "_room", lambda _self: True)
    warm_up: Any = None
    mine = keeper.Keeper(plan.pool_path, lambda: keeper.Wanted(replace(plan, template_path=""), warm_up, 1), Log(""))
    with pytest.raises(HostError, match=r"the pool .* was removed"):
        mine._settle()
