"""Resource limits: seen inside, held by the kernel, changed by update, told by events."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from harness.oci import Container, Oci
from harness.proc import environment, run
from harness.sandbox import Parts
from harness.text import compare, script, sections

MIB = 1 << 20


def value(v1: str, v2: str) -> str:
    """Shell: a limit of the container's own cgroup, whichever hierarchy its kernel has."""
    controller = v1.partition(".")[0]
    return f"cat /sys/fs/cgroup/{controller}/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}"


def cpu_share(shares: int) -> int:
    """cgroup v2 weight of v1 shares, as OCI runtimes convert."""
    return 1 + ((shares - 2) * 9999) // 262142


LIMITS = script(
    memory=value("memory.limit_in_bytes", "memory.max"),
    reservation=value("memory.soft_limit_in_bytes", "memory.low"),
    pids=value("pids.max", "pids.max"),
    shares=value("cpu.shares", "cpu.weight"),
    quota="cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us 2>/dev/null | tr '\\n' ' ' "
    "| grep . || cat /sys/fs/cgroup/cpu.max",
    cpus=value("cpuset.cpus", "cpuset.cpus"),
)


def limits(c: Container) -> dict[str, str]:
    return sections(c.sh(LIMITS).ok().stdout)


def test_limits_inside(oci: Oci) -> None:
    """Memory, cpu, cpuset, pids as asked; then `update` by options and by a file changes them."""
    bundle = oci.bundle()
    bundle.linux["resources"].update(
        {
            "memory": {"limit": 128 * MIB, "reservation": 64 * MIB},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
            "pids": {"limit": 50},
        }
    )
    with oci.running(bundle) as c:
        compare(
            limits(c),
            {
                "memory": str(128 * MIB), "reservation": str(64 * MIB), "pids": "50",
                "shares": lambda v: v in ("512", str(cpu_share(512))), "quota": "50000 100000", "cpus": "0",
            },
        )  # fmt: skip
        options = ["--memory", str(160 * MIB), "--memory-reservation", str(80 * MIB), "--cpu-quota", "80000"]
        options += ["--cpu-period", "200000", "--cpu-share", "256", "--pids-limit", "60"]
        oci.verb("update", *options, c.id).ok()
        compare(
            limits(c),
            {
                "memory": str(160 * MIB), "reservation": str(80 * MIB), "pids": "60",
                "shares": lambda v: v in ("256", str(cpu_share(256))), "quota": "80000 200000", "cpus": "0",
            },
        )  # fmt: skip
        resources = {"memory": {"limit": 96 * MIB}, "cpu": {"quota": -1}, "pids": {"limit": 70}}
        oci.verb("update", "--resources", "-", c.id, input=json.dumps(resources)).ok()
        compare(limits(c), {"memory": str(96 * MIB), "pids": "70", "quota": lambda v: v[:2] in ("-1", "ma")})
        for bad in (["--memory", "many"], ["--cpu-quota", "x"], ["--resources", "/nosuch"], ["--pids-limit", "1.5"]):
            refused = oci.verb("update", *bad, c.id, timeout=15).fails()
            assert refused.stderr.strip(), refused
        assert limits(c)["memory"] == str(96 * MIB)


@pytest.mark.vm_only
def test_huge_pages_and_block_io(oci: Oci) -> None:
    """hugepageLimits and a weight hold in the guest; limits of a host's disk on the host, where it is read."""
    image = oci.work_dir / "limited.img"
    with open(image, "wb") as f:
        f.truncate(4 << 20)
    device = run("losetup", "--find", "--show", str(image)).ok().out
    try:
        rdev = os.stat(device).st_rdev
        number = {"major": os.major(rdev), "minor": os.minor(rdev)}
        bundle = oci.bundle()
        bundle.linux["devices"] = [{"path": "/dev/disk", "type": "b", "fileMode": 0o660, **number}]
        bundle.linux["resources"]["devices"].append({"allow": True, "type": "b", "access": "rwm", **number})
        bundle.linux["resources"]["hugepageLimits"] = [{"pageSize": "2MB", "limit": 4 * MIB}]
        bundle.linux["resources"]["blockIO"] = {
            "weight": 300, "throttleReadBpsDevice": [{**number, "rate": MIB}],
            "throttleWriteIOPSDevice": [{**number, "rate": 77}],
        }
        with oci.running(bundle) as c:
            seen = sections(c.sh(script(
                huge="cat /sys/fs/cgroup/hugetlb.2MB.max",
                weight="cat /sys/fs/cgroup/io.weight /sys/fs/cgroup/io.bfq.weight 2>/dev/null",
                read="dd if=/dev/disk bs=1M 2>/dev/null | wc -c")).ok().stdout)
            compare(seen, {"huge": str(4 * MIB), "weight": lambda v: "default" in v and "default 100" not in v,
                           "read": "4194304"})
            qemu = Parts(oci.root, c.id).qemu
            assert throttles(qemu) == {f"rbps {os.major(rdev)}:{os.minor(rdev)} {MIB}",
                                       f"wiops {os.major(rdev)}:{os.minor(rdev)} 77"}
    finally:
        run("losetup", "--detach", device).ok()
        image.unlink()


def throttles(pid: int) -> set[str]:
    """What limits the disk access of a process on the host."""
    lines = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "blkio" in lines:
        folder = Path(f"/sys/fs/cgroup/blkio{lines['blkio']}")
        files = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
        return {f"{short} {line}" for short, name in files.items()
                for line in (folder / f"blkio.throttle.{name}_device").read_text().splitlines()}
    found = set()
    for line in Path(f"/sys/fs/cgroup{lines['']}/io.max").read_text().splitlines():
        device, *settings = line.split()
        found |= {f"{s.replace('=', f' {device} ')}" for s in settings if not s.endswith("=max")}
    return found


def test_memory_limit_holds(oci: Oci) -> None:
    """A process beyond the limit dies by KILL; the container lives; events tell of it."""
    bundle = oci.bundle()
    bundle.linux["resources"]["memory"] = {"limit": 48 * MIB, "swap": 48 * MIB}
    with oci.running(bundle) as c:
        events = subprocess.Popen(
            oci.argv("events", "--interval", "1s", c.id), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment(),
        )  # fmt: skip
        assert events.stdout
        first = json.loads(events.stdout.readline())
        assert first["type"] == "stats" and first["id"] == c.id
        result = c.sh("dd if=/dev/zero of=/dev/null bs=150M count=1")
        assert result.rc == 137, result
        kinds: list[str] = []
        while "oom" not in kinds:
            line = events.stdout.readline()
            assert line, f"events ended; it told of {kinds}"
            kinds.append(json.loads(line)["type"])
        assert c.status == "running"
        c.kill("KILL").ok()
        if not oci.runtime.is_vm:
            events.kill()  # runc's goes on as long as it is not deleted
        assert events.wait(20) == 0 or not oci.runtime.is_vm, "events did not end well with its container"


def test_pids_limit_holds(oci: Oci) -> None:
    """A fork bomb meets the limit; the container lives and takes an exec afterwards."""
    bundle = oci.bundle()
    bundle.linux["resources"]["pids"] = {"limit": 20}
    with oci.running(bundle) as c:
        bomb = "i=0; while [ $i -lt 40 ]; do sleep 300 >/dev/null 2>&1 & i=$((i+1)); done; echo forked all"
        assert "forked all" not in c.sh(bomb).stdout
        assert c.sh("pkill sleep; echo alive").out == "alive"
        c.kill("KILL").ok()
        assert c.wait() == 137


def test_stats(oci: Oci, shared: Container) -> None:
    """events --stats: numbers that are true of the container."""
    shared.sh("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done").ok()
    first = json.loads(oci.verb("events", "--stats", shared.id).ok().stdout)
    assert first["type"] == "stats" and first["id"] == shared.id
    data = first["data"]
    assert data["cpu"]["usage"]["total"] > 10_000_000, "less than 10 ms of processor time"
    assert 100_000 < data["memory"]["usage"]["usage"] < 2 << 30
    assert data["pids"]["current"] >= 2
    shared.sh("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done").ok()
    second = json.loads(oci.verb("events", "--stats", shared.id).ok().stdout)["data"]
    assert second["cpu"]["usage"]["total"] > data["cpu"]["usage"]["total"]


def test_cgroups_path(oci: Oci) -> None:
    """linux.cgroupsPath: the host's side of the container is in it, and goes with it."""
    parent = f"{oci.tag}-parent"
    bundle = oci.bundle()
    bundle.linux["cgroupsPath"] = f"/{parent}/inner"
    bundle.linux["resources"]["memory"] = {"limit": 256 * MIB}
    place = "memory" if os.path.isdir("/sys/fs/cgroup/memory") else ""
    with oci.running(bundle) as c:
        with open(f"/proc/{c.pid}/cgroup") as f:
            groups = f.read()
        assert f"/{parent}/inner" in groups, groups
        if not oci.runtime.is_vm:
            with open(f"/sys/fs/cgroup/{place}/{parent}/inner/cgroup.procs") as procs:
                assert str(c.pid) in procs.read().split()
        if oci.runtime.is_vm:  # runc 1.1 shares it
            refused = oci.run(bundle, timeout=30).fails(1)
            assert "another container uses the same linux.cgroupsPath" in refused.stderr, refused
            assert c.sh("echo lives").ok().stdout == "lives\n"
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        assert not (top.endswith(parent) and "inner" in folders), f"{top}/inner was left behind"
    for hierarchy in os.listdir("/sys/fs/cgroup"):
        path = f"/sys/fs/cgroup/{hierarchy}/{parent}"
        if os.path.isdir(path):
            os.rmdir(path)


@pytest.mark.parametrize(
    "resources",
    [{"memory": {"limit": "much"}}, {"cpu": {"cpus": "0-x"}}, {"pids": {"limit": "9"}}, {"cpu": {"cpus": "999"}}],
)
def test_impossible_limits(oci: Oci, resources: dict[str, object]) -> None:
    """Values that are no limit are refused, with the limit's name."""
    bundle = oci.bundle("true")
    bundle.linux["resources"].update(resources)
    refused = oci.run(bundle, timeout=30).fails(1)
    assert refused.stderr.strip() and "Traceback" not in refused.stderr, refused
