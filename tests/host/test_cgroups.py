"""Host cgroups on the real cgroup file system."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kata import cgroups
from kata.cgroups.group import ASIDE, Cgroup, pids_of, read
from kata.errors import HostError, InUse
from kata.spawn import reap, spawn, stop

# A machine of the test's own that keeps taking memory: what must never be the OOM killer's victim.
GREEDY = """
import mmap, os, time
m = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(0, 32 << 20, 4096): m[i] = 1
os.write(1, b"r")
i = 32 << 20
while i < 256 << 20:
    m[i] = 1
    i += 4096
    if not i % (1 << 20): time.sleep(0.002)
os.write(1, b"d")
time.sleep(100)
"""


def start_in(cgroup: Cgroup, argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, preexec_fn=cgroup.join, stdout=subprocess.PIPE)  # noqa: PLW1509


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    parent = f"/katatest{os.getpid()}"
    cgroup = cgroups.for_container(f"{parent}/c1", "c1")
    cgroup.create()
    yield cgroup
    cgroup.remove(kill=True)
    for directory in cgroup.directories.values():
        with suppress(FileNotFoundError):
            os.rmdir(os.path.dirname(directory))


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"])
    yield process.pid
    process.kill()
    process.wait()


def test_create_add_remove(cgroup: Cgroup, sleeper: int) -> None:
    again = cgroups.at(cgroup.path)
    again.add(sleeper)
    assert cgroup.procs() == [sleeper]
    own = Path(f"/proc/{sleeper}/cgroup").read_text()
    for hierarchy in cgroup.directories:
        assert f":{hierarchy.key}:{cgroup.path}\n" in own
    with pytest.raises(InUse, match=str(sleeper)):
        cgroup.create()
    with pytest.raises(InUse, match=str(sleeper)):
        cgroup.remove()
    assert cgroup.procs() == [sleeper]
    with pytest.raises(ProcessLookupError):
        cgroup.add(2**22 - 1)
    cgroup.remove(kill=True)
    assert not any(os.path.exists(d) for d in cgroup.directories.values())
    cgroup.remove()  # again: nothing to do


def test_remove_takes_what_is_below(cgroup: Cgroup, sleeper: int) -> None:
    for directory in cgroup.directories.values():
        os.makedirs(f"{directory}/deep/er")
    memory = cgroup.directory("memory")
    Path(memory, "deep/er/cgroup.procs").write_text(str(sleeper))
    assert cgroup.procs() == [sleeper]
    cgroup.remove(kill=True)
    assert not os.path.exists(memory)


def test_remove_moves_processes(cgroup: Cgroup, sleeper: int) -> None:
    other = cgroups.for_container(f"{cgroup.path}-2", "c2")
    other.create()
    other.add(sleeper)
    other.remove(move_to=cgroup)
    assert cgroup.procs() == [sleeper]


def test_many_processes_are_killed(cgroup: Cgroup) -> None:
    shell = start_in(cgroup, ["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do (sleep 100 & sleep 100) & done; wait"])
    cgroup.remove(kill=True)
    assert shell.wait(timeout=5) == -9


def test_join_like(cgroup: Cgroup, sleeper: int) -> None:
    cgroup.add(sleeper)
    pid = spawn(["sleep", "100"], before_exec=lambda: cgroups.join_like(sleeper))
    assert cgroup.procs() == sorted([sleeper, pid])
    stop(pid)
    reap(pid)
    with pytest.raises(HostError, match="4194305"):
        cgroups.join_like(2**22 + 1)


def test_cpuset_is_never_empty(cgroup: Cgroup) -> None:
    if cgroup.unified:
        pytest.skip("cgroup v2 needs no initial cpuset")
    directory = cgroup.directory("cpuset")
    assert read(f"{directory}/cpuset.cpus") == read("/sys/fs/cgroup/cpuset/cpuset.cpus")
    assert read(f"{directory}/cpuset.mems")


def test_limits_that_hold_on_the_host(cgroup: Cgroup) -> None:
    resources = {"cpu": {"shares": 512, "quota": 10000, "cpus": "0"}, "memory": {"limit": 1 << 20},
                 "pids": {"limit": 1}}
    assert cgroups.apply(cgroup.path, resources) == []
    if not cgroup.unified:
        assert read(f"{cgroup.directory('cpu')}/cpu.shares") == "512"
        assert read(f"{cgroup.directory('cpu')}/cpu.cfs_quota_us") == "-1"
        assert int(read(f"{cgroup.directory('memory')}/memory.limit_in_bytes")) > 1 << 40
        assert read(f"{cgroup.directory('pids')}/pids.max") == "max"
    assert read(f"{cgroup.directory('cpuset')}/cpuset.cpus") == "0"
    with pytest.raises(HostError, match=r"cpuset\.cpus.*'999'"):
        cgroups.apply(cgroup.path, {"cpu": {"cpus": "999"}})


def test_missing_files_are_named(cgroup: Cgroup) -> None:
    missing = cgroups.apply(cgroup.path, {"blockIO": {"weight": 100}})
    directory = cgroup.directory("blkio")
    has = any(os.path.exists(f"{directory}/{n}") for n in ("blkio.weight", "blkio.bfq.weight", "io.weight"))
    assert bool(missing) != has


def test_failure_leaves_nothing(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    other = cgroups.for_container(f"{cgroup.path}-3", "c3")
    last = list(other.directories)[-1]
    other.directories[last] = "/proc/none/c3"
    with pytest.raises(HostError, match="/proc/none"):
        other.create()
    assert not [d for d in other.directories.values() if os.path.exists(d)]


def engine_eventfd(cgroup: Cgroup) -> int:
    """An eventfd that is registered as containerd's shim and conmon do (cgroup v1)."""
    if cgroup.unified:
        pytest.skip("memory.oom_control is of cgroup v1")
    directory = cgroup.directory("memory")
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY)
    Path(directory, "cgroup.event_control").write_text(f"{fd} {control}")
    os.close(control)
    return fd


def test_oom_is_signalled_and_nobody_is_harmed(cgroup: Cgroup) -> None:
    fd = engine_eventfd(cgroup)
    directory = cgroup.directory("memory")
    names = ("memory.limit_in_bytes", "memory.swappiness")
    before = [read(f"{directory}/{name}") for name in names]
    greedy = start_in(cgroup, [sys.executable, "-c", GREEDY])
    assert greedy.stdout is not None
    assert greedy.stdout.read(1) == b"r"
    for _ in range(3):  # while it keeps growing
        cgroups.signal_oom(cgroup.path)
        assert os.eventfd_read(fd) > 0
        assert [read(f"{directory}/{name}") for name in names] == before
        assert "oom_kill_disable 0" in read(f"{directory}/memory.oom_control")
        assert pids_of(directory) == [greedy.pid]
        assert not os.path.exists(directory + ASIDE)
    assert greedy.stdout.read(1) == b"d"
    assert greedy.poll() is None
    greedy.stdout.close()
    greedy.kill()
    greedy.wait()
    os.close(fd)


def test_oom_signalled_from_inside(cgroup: Cgroup) -> None:
    """As the proxy does it, a member of the cgroup itself: none of its system calls may fail by the limit."""
    program = "import sys; from kata import cgroups\nfor _ in range(20): cgroups.signal_oom(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, cgroup.path], preexec_fn=cgroup.join,
                          capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_oom_with_page_cache(cgroup: Cgroup, tmp_path: Path) -> None:
    fd = engine_eventfd(cgroup)
    writer = start_in(cgroup, ["sh", "-c", f"dd if=/dev/zero of={tmp_path}/f bs=1M count=100 2>&1; echo; sleep 100"])
    assert writer.stdout is not None
    while writer.stdout.readline().strip():
        pass
    cgroups.signal_oom(cgroup.path)
    assert os.eventfd_read(fd) > 0
    assert writer.poll() is None
    writer.stdout.close()
    writer.kill()
    writer.wait()
    os.close(fd)


def test_limit_left_by_a_killed_proxy_is_released(cgroup: Cgroup, sleeper: int) -> None:
    if cgroup.unified:
        pytest.skip("cgroup v2 needs no limit on the container's own cgroup")
    directory = cgroup.directory("memory")
    Path(directory, "memory.limit_in_bytes").write_text("100M")
    aside = Path(directory + ASIDE)
    aside.mkdir()
    Path(aside, "cgroup.procs").write_text(str(sleeper))
    assert sleeper in cgroup.procs()
    cgroups.release_limit(cgroup.path)
    assert int(read(f"{directory}/memory.limit_in_bytes")) > 1 << 40
    assert pids_of(directory) == [sleeper] and not aside.exists()


def test_oom_needs_a_cgroup() -> None:
    with pytest.raises(HostError, match="no memory controller"):
        cgroups.signal_oom("/katatest-none")
