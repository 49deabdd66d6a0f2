"""The warm pool: a claim is exclusive, a claimed machine is a sandbox like any other, and nothing is ever lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from harness.factory import Factory, factory, pids
from harness.netns import NetworkNamespace
from harness.oci import Container, Oci
from harness.proc import environment
from harness.sandbox import Parts, assert_nothing_left, kill
from harness.wait import alive, eventually, process_end
from kata.pool import WANTED

pytestmark = pytest.mark.vm_only


@pytest.fixture(scope="module")
def kept(oci: Oci) -> Iterator[Factory]:
    """Two machines and their keeper."""
    with factory(oci, "pool", 2) as f:
        f.keep()
        yield f


@pytest.fixture
def pool(kept: Factory) -> Factory:
    kept.await_machines(2)
    return kept


def create(pool: Factory, container: Container) -> None:
    container.launch_verb("create", globals=pool.globals).ok()


def claimed(pool: Factory, container: Container) -> bool:
    return "claimed sandbox" in Parts(pool.oci.root, container.id).log()


def ended(machine: dict[str, int]) -> None:
    for name, pid in machine.items():
        process_end(pid, f"{name} of a machine of the pool", 20)


# --- what a claimed machine is --------------------------------------------------------------


def test_claim(oci: Oci, pool: Factory) -> None:
    """Every verb works as ever; the machine is in the container's cgroup; the keeper makes another one."""
    before = {m: pids(m) for m in pool.machines()}
    with oci.container(oci.bundle("read x; echo got $x; hostname; exit 3")) as c:
        read, write = os.pipe()
        c.launch_verb("create", globals=pool.globals, stdin=read).ok()
        os.close(read)
        parts = Parts(oci.root, c.id)
        assert claimed(pool, c)
        (gone,) = set(before) - set(pool.machines())
        assert {"proxy": parts.proxy, "qemu": parts.qemu} == before[gone]
        for pid in (parts.proxy, parts.qemu):
            assert Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{c.pid}/cgroup").read_text()
            assert {os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir(f"/proc/{pid}/task")} == {0}
            session = Path(f"/proc/{pid}/autogroup")
            assert not session.exists() or session.read_text().endswith(" nice 0\n")
        assert c.status == "created"
        assert oci.verb("list", "--quiet").ok().stdout.split().count(c.id) == 1
        c.start().ok()
        assert c.exec("hostname").ok().out == "guest"
        os.write(write, b"this\n")
        os.close(write)
        assert c.wait() == 3
        assert c.stdout == "got this\nguest\n"
        c.delete().ok()
        assert_nothing_left(oci.root, c.id, (str(c.bundle.path),))
        ended(before[gone])
    assert gone not in pool.await_machines(2)


def test_claims_at_the_same_time(oci: Oci, pool: Factory) -> None:
    """Five starts, two machines: all work, no two in one machine."""
    with ThreadPoolExecutor(5) as threads:
        ids = [oci.new_id() for _ in range(5)]
        bundles = [oci.bundle("cat /proc/sys/kernel/random/uuid").write() for _ in ids]

        def start(i: int) -> str:
            return subprocess.run(
                oci.argv(*pool.globals, "run", "--bundle", str(bundles[i].path), ids[i]), env=environment(), check=True,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120).stdout

        said = list(threads.map(start, range(5)))
    assert len(set(said)) == 5, said
    for id, bundle in zip(ids, bundles, strict=True):
        assert_nothing_left(oci.root, id, (str(bundle.path),))


@pytest.mark.parametrize("victims", [("proxy",), ("proxy", "qemu")], ids="+".join)
def test_engines_network(oci: Oci, pool: Factory, wired: NetworkNamespace, victims: tuple[str, ...]) -> None:
    """A namespace that is given: its interface is in the guest, others join by it, a new proxy finds it, and it is
    left clean whoever dies."""
    mac = json.loads(wired.run("ip", "-j", "link", "show", "eth0").ok().stdout)[0]["address"]
    with oci.container(oci.bundle().in_network(wired.path)) as c:
        create(pool, c)
        c.start().ok()
        parts = Parts(oci.root, c.id)
        assert claimed(pool, c)
        assert mac in c.exec("ip", "link", "show", "eth0").ok().out
        with oci.container(oci.bundle().in_network(wired.path)) as second:
            create(pool, second)
            second.start().ok()
            assert second.exec("ip", "-o", "address").ok().out.count("10.214.17.2/24") == 1
            assert not Parts(oci.root, second.id).folder.exists(), "it has a sandbox of its own"
        pid = {"proxy": parts.proxy, "qemu": parts.qemu}
        for victim in victims:
            kill(pid[victim], victim)
        if "qemu" not in victims:
            assert mac in c.exec("ip", "link", "show", "eth0").ok().out
            assert "took over" in parts.log()
            wired.run("ip", "address", "add", "10.214.18.2/24", "dev", "eth0").ok()
            eventually("the new address in the guest", lambda: "10.214.18.2" in c.exec("ip", "address").ok().out, 20)
        c.delete("--force").ok()
        assert "ingress" not in wired.run("tc", "qdisc", "show").stdout
        assert "kata" not in wired.run("ip", "link").stdout
        assert_nothing_left(oci.root, c.id)


def test_own_network_survives_the_proxy(oci: Oci, pool: Factory) -> None:
    """Without a namespace that is given the machine's own is the container's."""
    with oci.container(oci.bundle()) as c:
        create(pool, c)
        c.start().ok()
        parts = Parts(oci.root, c.id)
        assert claimed(pool, c)
        assert os.readlink(f"/proc/{c.pid}/ns/net") == os.readlink(f"/proc/{parts.qemu}/ns/net")
        assert os.readlink(f"/proc/{c.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        parts.kill_proxy()
        assert c.exec("echo", "still").ok().out == "still"
        assert os.readlink(f"/proc/{parts.proxy}/ns/net") == os.readlink(f"/proc/{c.pid}/ns/net")


def test_root_out_of_reach(oci: Oci, pool: Factory) -> None:
    """Records on a file system that a machine's proxy cannot see: the machine is not wasted, the start is another."""
    before = pool.machines()
    root = oci.work_dir / "root"
    root.mkdir()
    bundle, id = oci.bundle("echo works").write(), oci.new_id()
    script = f'mount -t tmpfs none {root} && exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", oci.runtime.path,
            "--root", str(root), *pool.globals, "run", "--bundle", str(bundle.path), id]
    done = subprocess.run(argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90,
                          check=False)
    assert (done.returncode, done.stdout) == (0, "works\n"), done
    assert pool.machines() == before


# --- what dies --------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["proxy", "qemu"])
def test_machine_that_dies_is_replaced(pool: Factory, victim: str) -> None:
    machine = pool.machines()[0]
    parts = pids(machine)
    kill(parts[victim], victim)
    pool.await_machines(2, without=(machine,))
    ended(parts)


@pytest.mark.parametrize("victim", ["proxy", "qemu"])
def test_dead_machine_is_not_used(oci: Oci, pool: Factory, victim: str) -> None:
    """Without a keeper a start finds out itself, and boots."""
    pool.stop(signal.SIGKILL)
    try:
        machines = pool.machines()
        parts = [pids(machine) for machine in machines]
        for each in parts:
            kill(each[victim], victim)
        bundle, id = oci.bundle("echo works").write(), oci.new_id()
        assert pool.verb("run", "--bundle", str(bundle.path), id).ok().out == "works"
        assert_nothing_left(oci.root, id, (str(bundle.path),))
        assert not set(machines) & set(pool.machines())
        for each in parts:
            ended(each)
    finally:
        pool.keep()


def test_dead_machines_are_cleaned_up(pool: Factory) -> None:
    """Without a keeper: those that died go, those that live stay."""
    pool.stop(signal.SIGKILL)
    try:
        dead, live = pool.machines()
        parts = pids(dead)
        kill(parts["proxy"], "the proxy")
        said = pool.verb("cleanup").ok().stdout
        assert dead.name in said and live.name not in said
        assert pool.machines() == [live]
        ended(parts)
    finally:
        pool.keep()


@pytest.mark.parametrize("how", ["delete", "cleanup"])
def test_claimer_killed(oci: Oci, pool: Factory, how: str) -> None:
    """The verb is killed between its claim and the machine's answer."""
    before = {m: pids(m) for m in pool.machines()}
    for machine in before.values():
        os.kill(machine["proxy"], signal.SIGSTOP)  # it hears nothing
    bundle, id = oci.bundle().write(), oci.new_id()
    verb = subprocess.Popen(oci.argv(*pool.globals, "create", "--bundle", str(bundle.path), id), env=environment(),
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        (gone,) = eventually("the claim", lambda: set(before) - set(pool.machines()), 60, 0.002)
        verb.kill()
        verb.wait()
    finally:
        for machine in before.values():
            os.kill(machine["proxy"], signal.SIGCONT)
    if how == "delete":
        oci.verb("delete", "--force", id).ok()
    said = oci.verb("cleanup").ok()
    assert "failed" not in said.stdout, said
    assert_nothing_left(oci.root, id, (str(bundle.path),))
    ended(before[gone])


def test_proxy_killed_during_the_claim(oci: Oci, pool: Factory) -> None:
    """The machine is ended and another way taken."""
    before = {m: pids(m) for m in pool.machines()}
    for machine in before.values():
        os.kill(machine["proxy"], signal.SIGSTOP)
    bundle, id = oci.bundle("echo works").write(), oci.new_id()
    verb = subprocess.Popen(oci.argv(*pool.globals, "run", "--bundle", str(bundle.path), id), env=environment(),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    for count in (1, 2):  # one after the other
        gone = eventually("the claim", lambda n=count: len(x := set(before) - set(pool.machines())) == n and x, 60)
        for machine in gone:
            kill(before[machine]["proxy"], "the proxy")
    assert verb.communicate(timeout=90)[0] == "works\n"
    assert verb.returncode == 0
    assert_nothing_left(oci.root, id, (str(bundle.path),))
    for machine in before.values():
        ended(machine)


def test_qemu_killed_after_the_claim(oci: Oci, pool: Factory, wired: NetworkNamespace) -> None:
    """Its owner has been told yes, and has run its hooks: another machine is booted, and they do not run again."""
    before = {m: pids(m) for m in pool.machines()}
    for machine in before.values():
        os.kill(machine["qemu"], signal.SIGSTOP)  # it is claimed and does not go on
    ran = oci.work_dir / "hooks-ran"
    bundle, id = oci.bundle("ip -o -4 address").in_network(wired.path), oci.new_id()
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"echo ran >>{ran}"]}]}
    bundle.write()
    verb = subprocess.Popen(oci.argv(*pool.globals, "run", "--bundle", str(bundle.path), id), env=environment(),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        eventually("the hook", ran.exists, 60)
        (gone,) = set(before) - set(pool.machines())
        kill(before[gone]["qemu"], "qemu")
    finally:
        for machine in before.values():
            with suppress(ProcessLookupError):
                os.kill(machine["qemu"], signal.SIGCONT)
    assert "10.214.17.2/24" in verb.communicate(timeout=90)[0]
    assert verb.returncode == 0 and ran.read_text() == "ran\n"
    assert "kata" not in wired.run("ip", "link").stdout
    assert_nothing_left(oci.root, id, (str(bundle.path),))
    ended(before[gone])


# --- the keeper -------------------------------------------------------------------------------


def test_keeper_killed(oci: Oci, pool: Factory) -> None:
    """In the middle of making a machine: those that are whole are claimed as ever, the next keeper keeps them and
    removes what is half made."""
    whole = pool.machines()
    pool.configure(3)
    pool.stop()
    pool.keep()
    (making,) = eventually("a machine in the making", pool.half_made, 60, 0.005)
    eventually("its machine", lambda: pids(making)["qemu"], 60, 0.005)
    parts = pids(making)
    pool.stop(signal.SIGKILL)
    try:
        assert pool.machines() == whole and pool.half_made() == [making]
        with oci.container(oci.bundle("true")) as c:
            create(pool, c)
            assert claimed(pool, c)
        pool.configure(2)
    finally:
        pool.keep()
    kept = [m for m in whole if m in pool.await_machines(2)]
    assert len(kept) == 1, "a keeper ended a machine that was whole"
    ended(parts)


def test_half_made_machine_is_cleaned_up(pool: Factory) -> None:
    pool.configure(3)
    pool.stop()
    pool.keep()
    (making,) = eventually("a machine in the making", pool.half_made, 60, 0.005)
    parts = eventually("its machine", lambda: pids(making), 60, 0.005)
    assert making.name not in pool.verb("cleanup").ok().stdout, "a keeper is at it"
    pool.stop(signal.SIGKILL)
    pool.configure(2)
    try:
        if pool.half_made():  # it may have been ready by then
            assert making.name in pool.verb("cleanup").ok().stdout
            ended(parts)
        assert not pool.half_made()
    finally:
        pool.keep()


def test_fewer_are_wanted_while_it_fills(pool: Factory) -> None:
    """A keeper at work on many machines reads its configuration after each of them."""
    def told(size: int) -> None:
        pool.configure(size)
        (pool.pool / WANTED).write_bytes(b"")

    ready = pool.log.read_text().count("is ready")
    told(6)
    eventually("a machine in the making", pool.half_made, 60, 0.005)
    told(2)
    pool.await_machines(2)
    assert pool.log.read_text().count("is ready") == ready + 1


def test_one_keeper(pool: Factory) -> None:
    assert "has a keeper already" in pool.verb("factory", "run", timeout=20).fails(1).stderr
    said = pool.verb("factory", "status").ok().stdout
    assert "vm factory is on" in said and "2 of 2 machines ready" in said
    assert pool.process is not None and f"pid {pool.process.pid}" in said


def test_other_plan(oci: Oci, pool: Factory) -> None:
    """A start that finds no machine of its plan wakes the keeper, which makes those and ends the others."""
    before = {m: pids(m) for m in pool.machines()}
    pool.configure(2, hypervisor='kernel_params = "pooltest=1"')
    try:
        bundle, id = oci.bundle("cat /proc/cmdline").write(), oci.new_id()
        assert "pooltest=1" in pool.verb("run", "--bundle", str(bundle.path), id).ok().out
        pool.await_machines(2, without=tuple(before))
        for machine in before.values():
            ended(machine)
        with oci.container(oci.bundle("true")) as c:
            create(pool, c)
            assert claimed(pool, c)
    finally:
        pool.configure(2)
        pool.stop()
        pool.keep()


def test_without_templates(oci: Oci) -> None:
    """The pool's machines boot then, and so do starts that find none."""
    with factory(oci, "plain", 1) as f:
        f.configure(1, factory="enable_template = false")
        bundle, id = oci.bundle("echo booted").write(), oci.new_id()
        assert f.verb("run", "--bundle", str(bundle.path), id).ok().out == "booted"
        f.keep()
        f.await_machines(1)
        with oci.container(oci.bundle("echo claimed")) as c:
            create(f, c)
            assert claimed(f, c)
            assert c.finish() == (0, "claimed\n", "")
        assert not f.templates.exists()


def test_not_without_its_endpoint(oci: Oci) -> None:
    """A pool on another file system, or so deep that no socket fits: an error that says so."""
    shm = Path("/dev/shm") / oci.tag
    with factory(oci, "elsewhere", 1) as f:
        try:
            for place, text in ((shm, "another file system"), (oci.run_dir / ("x" * 80), "too long")):
                f.pool = place
                f.configure(1)
                assert text in f.verb("factory", "run", timeout=20).fails(1).stderr
        finally:
            shutil.rmtree(shm)


# --- size ---------------------------------------------------------------------------------------

SIZE = "nproc; grep MemTotal /proc/meminfo"


@pytest.mark.parametrize("way", ["cold", "template", "pool"])
def test_size(oci: Oci, pool: Factory, way: str) -> None:
    """Limits of the container add to the machine, at its start and by ``update``, however it starts."""
    if way == "cold":
        pool.configure(0, factory="enable_template = false")
    elif way == "template":
        pool.configure(0)
    try:
        bundle = oci.bundle()
        bundle.linux["resources"].update(memory={"limit": 200 << 20}, cpu={"quota": 100_000, "period": 100_000})
        with oci.container(bundle) as c:
            create(pool, c)
            c.start().ok()
            log = Parts(oci.root, c.id).log()
            assert ("claimed sandbox" in log) == (way == "pool")
            processors, memory = c.sh(SIZE).ok().out.split("\n")
            assert processors == "2"
            assert 390 << 10 < int(memory.split()[1]) < 640 << 10, memory
            assert c.exec("cat", "/sys/fs/cgroup/memory.max").ok().out == str(200 << 20)
            oci.verb(*pool.globals, "update", "--memory", str(600 << 20), c.id).ok()
            _processors, more = c.sh(SIZE).ok().out.split("\n")
            assert int(more.split()[1]) > int(memory.split()[1]) + (250 << 10), (memory, more)
            assert c.exec("cat", "/sys/fs/cgroup/memory.max").ok().out == str(600 << 20)
    finally:
        pool.configure(2)


# --- the end ----------------------------------------------------------------------------------


def test_destroy(oci: Oci) -> None:
    """Keeper and machines end, templates go."""
    with factory(oci, "destroyed", 1) as f:
        f.keep()
        (machine,) = f.await_machines(1)
        parts = pids(machine)
        assert "1 machines ended" in f.verb("factory", "destroy").ok().stdout
        ended(parts)
        assert f.process is not None and f.process.wait(10) == 0
        assert not f.machines() and not list(f.templates.glob("*/memory"))
        assert "vm factory is off" in f.verb("factory", "status").ok().stdout
        assert not any(alive(pid) for pid in parts.values())
