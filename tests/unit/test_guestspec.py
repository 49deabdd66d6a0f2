"""From a bundle to the guest's configuration: shares, disks, devices, extras, warnings."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata import oci, seccomp
from kata.contract import ContainerPlan, Disk, RuntimeConfig, Share
from kata.errors import BundleError, KataError, UnsupportedError
from kata.guestspec import (
    FileSystem,
    GuestSpec,
    Host,
    build,
    container_plan,
    exec_extras,
    memory_of,
    process_extras,
    vcpus_of,
)
from kata.guestspec.mounts import loopback_nameservers
from kata.guestspec.rootdisk import RootDisk, guest_reads, mounted_whole
from kata.planjson import from_json, to_json

Build = Callable[..., GuestSpec]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters compiled here are not left on the host."""
    monkeypatch.setattr(seccomp, "CACHE", "")


class FakeHost(Host):
    """A host with the files that a test names: path -> (mode, rdev or None, file system, content)."""

    def __init__(self, files: dict[str, Any] | None = None, blocks: dict[tuple[int, int], str] | None = None) -> None:
        self.files = files or {}
        self.blocks = blocks or {}
        self.root: RootDisk | None = None

    def stat(self, path: str) -> os.stat_result:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        entry = self.files[path]
        values = list(os.stat("/"))
        values[0] = entry["mode"]
        values[4], values[5] = entry.get("owner", (0, 0))
        return os.stat_result(values, {"st_rdev": entry.get("rdev", 0)})

    def file_system(self, path: str) -> FileSystem:
        return self.files[path].get("fs", FileSystem("ext4", 1 << 30))

    def read(self, path: str, limit: int) -> bytes:
        data: bytes = self.files[path].get("data", b"")
        return data[:limit]

    def block_device(self, major: int, minor: int) -> str:
        return self.blocks.get((major, minor), "")

    def root_disk(self, path: str) -> RootDisk | None:
        return self.root


DIR, FILE, CHAR, BLOCK = ({"mode": m | 0o755} for m in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK))


@pytest.fixture
def make(tmp_path: Path) -> Build:
    """The guest's part of a plain bundle with ``mounts`` and changes to ``linux``, ``process`` and the rest."""
    (tmp_path / "rootfs").mkdir()

    def maker(host: Host | None = None, mounts: list[dict[str, Any]] | None = None, linux: dict[str, Any] | None = None,
              process: dict[str, Any] | None = None, config: RuntimeConfig | None = None, **rest: Any) -> GuestSpec:
        return build(config or RuntimeConfig(), bundle(tmp_path, mounts, linux, process, **rest), host or FakeHost())

    return maker


def bundle(folder: Path, mounts: list[dict[str, Any]] | None = None, linux: dict[str, Any] | None = None,
           process: dict[str, Any] | None = None, **rest: Any) -> oci.Bundle:
    namespaces = [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup")]
    config = {"ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/", **(process or {})},
              "root": {"path": "rootfs"}, "mounts": mounts or [], "linux": {"namespaces": namespaces, **(linux or {})},
              **rest}
    (folder / "config.json").write_text(json.dumps(config))
    return oci.load(str(folder), "c1")


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": destination, "options": list(options or ("rbind",))}


# --- the frame ----------------------------------------------------------------------------


def test_root_is_a_share(make: Build, tmp_path: Path) -> None:
    guest = make()
    assert guest.shares == (Share(str(tmp_path / "rootfs"), "rootfs", True, False),)
    assert guest.spec["root"] == {"path": "/run/kata/shared/c1/rootfs", "readonly": False}
    assert guest.spec["linux"]["cgroupsPath"] == "/kata/c1"


def test_host_only_parts_do_not_reach_the_guest(make: Build) -> None:
    guest = make(
        hooks={k: [{"path": f"/h/{k}", "args": ["a"], "timeout": 2}] for k in oci.HOOKS},
        linux={"namespaces": [{"type": "network", "path": "/run/netns/x"}, {"type": "mount"}, {"type": "uts"},
                              {"type": "pid", "path": "/proc/9/ns/pid"}],
               "cgroupsPath": "/docker/abc", "mountLabel": "l"},
        process={"apparmorProfile": "x", "selinuxLabel": "y"})
    text = json.dumps(guest.spec)
    for hidden in ("/run/netns", "/proc/9", "/docker", "/h/", "apparmor", "selinux", "mountLabel", '"network"'):
        assert hidden not in text
    assert guest.spec["linux"]["namespaces"] == [{"type": "mount"}, {"type": "uts"}, {"type": "pid"}]
    assert guest.extras["start_container_hooks"] == [
        {"path": "/h/startContainer", "args": ["a"], "env": [], "timeout_seconds": 2}]


def test_plan_survives_json(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    b = bundle(tmp_path, linux={"resources": {"memory": {"limit": 1 << 28}, "cpu": {"quota": 150000}}})
    plan = container_plan(RuntimeConfig(), b, sandbox_id="s", role="single", flavor="unified",
                          guest_process_at="start", pause_scope="vm")
    assert from_json(ContainerPlan, json.loads(json.dumps(to_json(plan)))) == plan
    assert (plan.vcpus, plan.memory, plan.extras["defer_process"]) == (2, 256, True)


# --- mounts ---------------------------------------------------------------------------------


def test_binds_become_shares(make: Build, tmp_path: Path) -> None:
    guest = make(FakeHost({"/data": DIR, "/etc/x,y z": FILE, str(tmp_path / "rel"): DIR}), [
        {"type": "tmpfs", "source": "tmpfs", "destination": "/tmp", "options": ["size=1m"]},
        bind("/data", "/mnt/data", "rbind", "rprivate"),
        bind("/etc/x,y z", "/etc/odd name,1", "bind", "ro"),
        {"destination": "/rel", "source": "rel", "type": "none", "options": ["bind", "ro", "rw"]},
        {"destination": "/typed", "source": "/data", "type": "bind"},
    ])
    assert guest.shares[1:] == (
        Share("/data", "1-data", True, False), Share("/etc/x,y z", "2-odd_name_1", False, True, recursive=False),
        Share(str(tmp_path / "rel"), "3-rel", True, False, recursive=False), Share("/data", "4-typed", True, False))
    assert guest.spec["mounts"][1] == {
        "destination": "/mnt/data", "type": "bind", "source": "/run/kata/shared/c1/1-data",
        "options": ["rbind", "rprivate"]}
    assert guest.spec["mounts"][4]["options"] == ["rbind"]
    assert guest.spec["mounts"][0]["options"] == ["size=1m"] and not guest.warnings


def test_depth_and_propagation_of_binds(make: Build) -> None:
    guest = make(FakeHost({"/d": DIR}), [
        bind("/d", "/a", "rbind", "rslave"), bind("/d", "/b", "bind", "private"), bind("/d", "/c", "rbind", "rshared"),
        {"destination": "/e", "type": "bind", "source": "/d"}])
    assert [(s.recursive, s.propagation) for s in guest.shares[1:]] == [
        (True, "slave"), (False, "private"), (True, "slave"), (True, "private")]
    assert len(guest.warnings) == 1 and "mounts[2]: mounts made in the container" in guest.warnings[0]


def test_bind_source_must_exist(make: Build) -> None:
    with pytest.raises(BundleError, match=r"mounts\[0\].source: '/gone': no such file") as e:
        make(FakeHost(), [bind("/gone", "/mnt/x")])
    assert "/mnt/x" in e.value.hint
    with pytest.raises(BundleError, match=r"mounts\[0\].source: is missing"):
        make(FakeHost(), [{"destination": "/x", "options": ["bind"]}])


def test_unknown_option_of_a_bind_is_refused_and_of_a_tmpfs_is_data(make: Build) -> None:
    with pytest.raises(BundleError, match="unknown option 'size=1m'"):
        make(FakeHost({"/d": DIR}), [bind("/d", "/x", "bind", "size=1m")])
    guest = make(mounts=[{"destination": "/t", "type": "tmpfs", "source": "t",
                          "options": ["nr_inodes=9", "tmpcopyup"]}])
    assert guest.spec["mounts"][0]["options"] == ["nr_inodes=9"]
    assert guest.extras["mounts"] == [{"index": 0, "copy_up": True}]


def test_what_the_guest_has_itself(make: Build) -> None:
    guest = make(FakeHost({"/dev": DIR, "/dev/null": CHAR, "/dev/kvm": CHAR}), [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        bind("/sys/fs/cgroup", "/sys/fs/cgroup", "rbind", "ro", "rslave"),
        bind("/proc", "/host/proc", "rbind", "ro"), bind("/sys/kernel", "/k"), bind("/dev", "/host/dev"),
        bind("/dev/null", "/masked", "bind"), bind("/dev/kvm", "/dev/kvm", "bind")])
    mounts = guest.spec["mounts"]
    assert [m["type"] for m in mounts] == ["cgroup2", "cgroup2", "bind", "bind", "bind", "bind", "bind"]
    assert mounts[1]["options"] == ["ro", "rslave"] and mounts[2]["source"] == "/proc"
    assert len(guest.shares) == 1
    assert [w.split(":")[0] for w in guest.warnings] == [f"mounts[{i}]" for i in (1, 2, 3, 4, 6)]


def test_shared_memory_is_a_tmpfs_of_the_guest(make: Build) -> None:
    shm = {"mode": stat.S_IFDIR | 0o1777, "fs": FileSystem("tmpfs", 64 << 20)}
    empty = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache"
    guest = make(FakeHost({"/c/shm": shm, empty: {**DIR, "fs": FileSystem("tmpfs", 0), "owner": (5, 6)},
                           "/disk": DIR}), [
        bind("/c/shm", "/dev/shm", "rbind", "rprivate"), bind(empty, "/cache"), bind("/disk", "/dev/shm/x")])
    assert [s.source for s in guest.shares[1:]] == ["/disk"]
    first, second = guest.storages
    assert first["driver"] == "ephemeral" and first["fstype"] == "tmpfs"
    assert first["options"] == ["nosuid", "nodev", "mode=1777", "uid=0", "gid=0", f"size={64 << 20}"]
    assert second["options"] == ["nosuid", "nodev", "mode=755", "uid=5", "gid=6"]
    assert guest.spec["mounts"][0] == {"destination": "/dev/shm", "type": "bind", "source": first["mount_point"],
                                       "options": ["rbind", "rprivate"]}


def test_the_same_shared_memory_is_the_same_storage(make: Build, tmp_path: Path) -> None:
    shm = FakeHost({"/c/shm": {"mode": stat.S_IFDIR | 0o1777, "fs": FileSystem("tmpfs", 1)}})
    assert make(shm, [bind("/c/shm", "/dev/shm")]).storages == make(shm, [bind("/c/shm", "/dev/shm", "bind")]).storages


def test_sockets_are_named(make: Build) -> None:
    guest = make(FakeHost({"/run/s": {"mode": stat.S_IFSOCK}, "/run/p": {"mode": stat.S_IFIFO}}),
                 [bind("/run/s", "/s"), bind("/run/p", "/p")])
    assert len(guest.shares) == 3
    assert "'/run/s' is a socket" in guest.warnings[0] and "'/run/p' is a FIFO" in guest.warnings[1]


@pytest.mark.parametrize("kind", ["overlay", "nfs", "fuse.sshfs", "", "zfs"])
def test_a_mount_that_needs_the_host_is_refused(make: Build, kind: str) -> None:
    with pytest.raises(UnsupportedError, match=r"mounts\[0\]: .* at '/x'"):
        make(mounts=[{"destination": "/x", "type": kind, "source": "a"}])


def test_mount_id_mappings(make: Build) -> None:
    ids = [{"containerID": 0, "hostID": 1000, "size": 10}]
    guest = make(FakeHost({"/d": DIR}), [{**bind("/d", "/x", "bind", "idmap"), "uidMappings": ids, "gidMappings": ids}])
    assert guest.extras["mounts"][0]["uid_mappings"] == [{"host_id": 1000, "container_id": 0, "size": 10}]


def test_loopback_name_servers() -> None:
    lines = (b"search x", b"nameserver 127.0.0.11", b" nameserver\t127.0.0.53 ", b"#nameserver 127.9.9.9",
             b"nameserver 8.8.8.8", b"nameserver 127.0.0.11", b"nameserver 127.1.1.1.1", b"")
    assert loopback_nameservers(b"\n".join(lines)) == ("127.0.0.11", "127.0.0.53")


def test_resolver_of_the_bind(make: Build) -> None:
    host = FakeHost({"/c/resolv.conf": {**FILE, "data": b"nameserver 127.0.0.11\n"}})
    assert make(host, [bind("/c/resolv.conf", "/etc/resolv.conf")]).dns_relay == ("127.0.0.11",)
    assert make(host, [bind("/c/resolv.conf", "/etc/other")]).dns_relay == ()


# --- devices --------------------------------------------------------------------------------


def test_block_device_becomes_a_disk(make: Build) -> None:
    device = {"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16, "fileMode": 0o60640, "uid": 1, "gid": 6}
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
             {"allow": True, "type": "b", "major": 8, "minor": 16, "access": "r"}]
    guest = make(FakeHost(blocks={(8, 16): "/dev/sdb"}), linux={"devices": [device], "resources": {"devices": rules}})
    assert guest.disks == (Disk("/dev/sdb", "blk-8-16-ro", True, "/dev/xvda", 0o640, 1, 6),)
    assert guest.extras["block_devices"] == [{"serial": "blk-8-16-ro", "container_path": "/dev/xvda", "mode": 0o640,
                                              "uid": 1, "gid": 6, "read_only": True}]
    assert "devices" not in guest.spec["linux"]
    assert guest.spec["linux"]["resources"]["devices"] == rules[:2]
    assert len(guest.disks[0].serial) <= 20


def test_bounds(make: Build) -> None:
    devices = [{"path": f"/dev/x{i}", "type": "b", "major": 8, "minor": 0} for i in range(17)]
    with pytest.raises(UnsupportedError, match="more than 16 disks"):
        make(FakeHost(blocks={(8, 0): "/dev/sda"}), linux={"devices": devices})
    with pytest.raises(BundleError, match="more than 1000"):
        make(mounts=[{"destination": f"/m{i}", "type": "tmpfs", "source": "t"} for i in range(1001)])


def test_block_device_bind_and_file_system(make: Build) -> None:
    disk = {**BLOCK, "rdev": os.makedev(8, 32)}
    guest = make(FakeHost({"/dev/sdc": disk}), [bind("/dev/sdc", "/dev/disk", "bind", "ro")])
    assert guest.disks == (Disk("/dev/sdc", "blk-8-32-ro", True, "/dev/disk", 0o755, 0, 0),)
    assert guest.spec["mounts"] == []
    guest = make(FakeHost({"/dev/sdc": disk}),
                 [{"destination": "/m", "type": "ext4", "source": "/dev/sdc", "options": ["noatime"]}])
    (storage,) = guest.storages
    assert storage == {"driver": "blk", "source": "serial:blk-8-32", "fstype": "ext4", "options": ["noatime"],
                       "mount_point": storage["mount_point"]}
    assert guest.spec["mounts"][0]["source"] == storage["mount_point"] and guest.disks[0].container_path == ""
    with pytest.raises(UnsupportedError, match="disable_block_device_use"):
        make(FakeHost({"/dev/sdc": disk}), [{"destination": "/m", "type": "ext4", "source": "/dev/sdc"}],
             config=RuntimeConfig(disable_block_device_use=True))


def test_root_that_is_a_disk(make: Build) -> None:
    host = FakeHost({"/dev/loop3": {**BLOCK, "rdev": os.makedev(7, 3)}})
    host.root = RootDisk("/dev/loop3", "erofs")
    guest = make(host)
    (disk,), (storage,) = guest.disks, guest.storages
    assert (disk.source, disk.read_only, disk.container_path) == ("/dev/loop3", True, "")
    assert storage == {"driver": "blk", "source": "serial:blk-7-3-ro", "fstype": "erofs", "options": ["ro"],
                       "mount_point": guest.spec["root"]["path"]}
    assert [share.name for share in guest.shares] == ["rootfs"]  # for the engine's view
    for config in (RuntimeConfig(disable_block_device_use=True), RuntimeConfig(agent_transport="yamux-grpc")):
        guest = make(host, config=config)
        assert not guest.disks and guest.spec["root"]["path"].endswith("/rootfs")


@pytest.mark.parametrize("more, found", [
    ("40 1 7:3 / /c/rootfs ro,relatime shared:1 - erofs /dev/loop3 ro,user_xattr", (7, 3, "erofs")),
    ("40 1 253:0 / /c/rootfs rw - ext4 /dev/dm-0 ro", (253, 0, "ext4")),
    ("40 1 7:3 / /c/rootfs ro - ext4 /dev/loop3 rw", None),  # read-only here, not everywhere
    ("40 1 7:3 /part /c/rootfs ro - erofs /dev/loop3 ro", None),
    ("40 1 7:3 / /c ro - erofs /dev/loop3 ro", None),
    ("40 1 7:3 / /c/rootfs ro - squashfs /dev/loop3 ro", None),  # not in every guest
    ("40 1 7:3 / /c/rootfs ro - erofs /dev/loop3 ro\n41 40 0:5 / /c/rootfs/data rw - tmpfs x rw", None),
    ("40 1 7:3 / /c/rootfs ro - erofs /dev/loop3 ro\n41 40 0:5 / /c/rootfs rw - tmpfs x rw", None),
    ("40 1 7:3 / /c/rootfs ro\nnonsense", None),
])
def test_whole_mounts(more: str, found: tuple[int, int, str] | None) -> None:
    lines = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw", *more.split("\n")]
    assert mounted_whole(lines, "/c/rootfs") == found


def test_file_systems_that_a_guest_reads() -> None:
    def block(**at: int) -> bytes:
        data = bytearray(256)
        for place, value in at.items():
            data[int(place[1:]) : int(place[1:]) + 4] = value.to_bytes(4, "little")
        return bytes(data)

    erofs = {"_0": 0xE0F5E1E2, "_12": 12}
    assert guest_reads("erofs", block(**erofs))
    assert guest_reads("erofs", block(**erofs, _80=0x3, _84=0x1))  # LZ4
    assert not guest_reads("erofs", block(**erofs, _80=0x3, _84=0x8))  # Zstandard
    assert not guest_reads("erofs", block(**erofs, _80=0x80))  # 48 bit, of Linux 6.15
    assert not guest_reads("erofs", block(**erofs, _84=0x1_0000))  # on two devices
    assert not guest_reads("erofs", block(_0=0xE0F5E1E2, _12=9))
    assert not guest_reads("erofs", block(_12=12)) and not guest_reads("erofs", b"")
    assert guest_reads("ext4", block(_56=0xEF53, _96=0x2C2))
    assert not guest_reads("ext4", block(_56=0xEF53, _96=0x2C6))  # the journal is not empty
    assert not guest_reads("ext4", block(_56=0xEF53, _96=0x202C2))  # case is folded


def test_character_devices(make: Build) -> None:
    devices = [{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o20666},
               {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}, {"path": "/dev/p", "type": "p"},
               {"path": "/dev/loop9", "type": "b", "major": 7, "minor": 9}]
    guest = make(linux={"devices": devices})
    assert guest.spec["linux"]["devices"][0]["fileMode"] == 0o666 and len(guest.spec["linux"]["devices"]) == 4
    assert guest.warnings == ("linux.devices: /dev/kvm, /dev/loop9: the guest's own device, not the host's",)
    with pytest.raises(UnsupportedError, match="VFIO"):
        make(linux={"devices": [{"path": "/dev/vfio/12", "type": "c", "major": 242, "minor": 0}]})


def test_privileged_does_not_get_the_hosts_disks(make: Build) -> None:
    devices = [{"path": f"/dev/{n}", "type": "b", "major": 8, "minor": i} for i, n in enumerate(("sda", "sdb"))]
    devices.append({"path": "/dev/vfio/1", "type": "c", "major": 242, "minor": 1})
    guest = make(FakeHost(blocks={(8, 0): "/dev/sda", (8, 1): "/dev/sdb"}),
                 linux={"devices": devices, "resources": {"devices": [{"allow": True, "access": "rwm"}]}})
    assert guest.disks == () and any("/dev/sda, /dev/sdb" in w for w in guest.warnings)


# --- resources and extras -------------------------------------------------------------------


def test_resources_are_what_the_guest_applies(make: Build) -> None:
    guest = make(linux={"resources": {
        "memory": {"limit": 1 << 28, "swap": 1 << 29, "reservation": 1, "kernel": 7, "swappiness": 60},
        "cpu": {"shares": 2, "quota": 5, "period": 10, "cpus": "0", "mems": "0", "burst": 4, "idle": 1,
                "realtimeRuntime": 3},
        "pids": {"limit": 9}, "blockIO": {"weight": 500, "leafWeight": 5, "throttleReadBpsDevice": [
            {"major": 8, "minor": 0, "rate": 5}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4}], "network": {"classID": 5},
        "unified": {"memory.high": "max"}}})
    assert guest.spec["linux"]["resources"] == {
        "memory": {"limit": 1 << 28, "swap": 1 << 29, "reservation": 1},
        "cpu": {"shares": 2, "quota": 5, "period": 10, "cpus": "0", "mems": "0"},
        "pids": {"limit": 9}, "blockIO": {"weight": 500}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}
    assert guest.extras["unified"] == {"memory.high": "max", "cpu.max.burst": "4", "cpu.idle": "1"}
    assert not guest.warnings  # throttleReadBpsDevice is the host cgroup's


@pytest.mark.parametrize(("resources", "vcpus", "memory"), [
    ({}, 0, 0),
    ({"cpu": {"quota": 150_000, "period": 100_000}}, 2, 0),
    ({"cpu": {"quota": 50_000}}, 1, 0),
    ({"cpu": {"quota": -1, "cpus": "0-2,4"}}, 4, 0),
    ({"cpu": {"quota": 100_000, "cpus": "0-7"}}, 1, 0),
    ({"cpu": {"cpus": "junk,99999999999,5-3,-,1-"}}, 1, 0),
    ({"cpu": {"cpus": "0-99999," * 20_000}}, 8192, 0),
    ({"memory": {"limit": (256 << 20) + 1}}, 0, 257),
    ({"memory": {"limit": -1}}, 0, 0),
])
def test_what_a_container_adds(resources: dict[str, Any], vcpus: int, memory: int) -> None:
    assert (vcpus_of(resources), memory_of(resources)) == (vcpus, memory)


def test_process_extras() -> None:
    process = {"user": {"umask": 0o27}, "oomScoreAdj": 0, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
               "scheduler": {"policy": "SCHED_FIFO", "priority": 4}, "execCPUAffinity": {"initial": "0"}}
    assert process_extras(process, b"12345678", 4) == {
        "seccomp_bpf": base64.b64encode(b"12345678").decode(), "seccomp_flags": 4, "has_umask": True, "umask": 0o27,
        "io_priority_class": 2, "io_priority": 3, "has_scheduler": True, "scheduler_policy": "SCHED_FIFO",
        "scheduler_nice": 0, "scheduler_priority": 4, "exec_cpu_affinity": ["0", ""], "has_oom_score_adj": True}
    with pytest.raises(UnsupportedError, match="SCHED_DEADLINE"):
        process_extras({"scheduler": {"policy": "SCHED_DEADLINE"}})


def test_exec_takes_the_containers_filter_and_umask() -> None:
    container = {"process": process_extras({"user": {"umask": 0o77}}, b"12345678", 4)}
    assert exec_extras({}, container) == {"has_umask": True, "umask": 0o77}  # the agent has the filter
    assert exec_extras({}, {"process": {}}) == {}
    assert exec_extras({"user": {"umask": 1}}, container)["umask"] == 1


def test_container_extras(make: Build) -> None:
    guest = make(linux={"namespaces": [{"type": t} for t in ("network", "mount", "uts", "time")],
                        "personality": {"domain": "LINUX32"}, "timeOffsets": {"boottime": {"secs": -5}}},
                 domainname="d")
    assert guest.extras["domainname"] == "d" and guest.extras["personality"] == 8
    assert guest.extras["time_offsets"] == [{"clock": "boottime", "secs": -5, "nanosecs": 0}]
    assert guest.extras["sandbox_pidns_host"] is True
    assert "sandbox_pidns_host" not in make().extras
    assert make(config=RuntimeConfig(enable_agent_pidns=True)).extras["sandbox_pidns_host"] is True


def test_extras_and_spec_fit_the_protocol(make: Build) -> None:
    """Every key is a field of the messages that the proxy fills from them."""
    pytest.importorskip("google.protobuf")
    guest_pb2 = pytest.importorskip("kata_agent.protocol.guest_pb2")
    oci_pb2 = pytest.importorskip("kata_agent.protocol.oci_pb2")
    from google.protobuf.json_format import ParseDict

    guest = make(
        FakeHost({"/d": DIR, "/dev/sdb": {**BLOCK, "rdev": os.makedev(8, 16)}}),
        [bind("/d", "/x"), bind("/dev/sdb", "/dev/sdb"),
         {"destination": "/t", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]}],
        linux={"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "sysctl": {"net.ipv4.ip_forward": "1"},
               "maskedPaths": ["/proc/kcore"], "rootfsPropagation": "rslave",
               "resources": {"unified": {"a": "b"}, "memory": {"limit": 5}, "pids": {"limit": 5},
                             "hugepageLimits": [{"pageSize": "2MB", "limit": 1}]},
               "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}]},
        process={"user": {"uid": 1, "gid": 1, "umask": 1, "additionalGids": [3]}, "env": ["A=b"], "oomScoreAdj": 5,
                 "capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": True,
                 "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]})
    ParseDict(guest.extras, guest_pb2.PrepareContainerRequest())

    def check(message: Any, value: Any, at: str) -> None:
        fields = {f.name.lower(): f for f in message.fields}
        for key, item in value.items():
            if at == "" and key == "ociVersion":
                continue
            field = fields.get(key.lower())
            assert field is not None, f"{at}.{key} has no field"
            nested = field.message_type
            if nested is None or nested.GetOptions().map_entry:
                continue
            for one in item if isinstance(item, list) else [item]:
                check(nested, one, f"{at}.{key}")

    check(oci_pb2.Spec.DESCRIPTOR, guest.spec, "")


def test_seccomp_can_be_turned_off(make: Build) -> None:
    config = RuntimeConfig(disable_guest_seccomp=True)
    guest = make(linux={"seccomp": {"defaultAction": "SCMP_ACT_KILL"}}, config=config)
    assert "seccomp_bpf" not in guest.extras["process"] and "disable_guest_seccomp" in guest.warnings[0]


# --- the real host ----------------------------------------------------------------------------


def test_real_host() -> None:
    host = Host()
    assert host.file_system("/proc").kind == "proc"
    assert host.block_device(4095, 1) == ""
    assert host.read("/dev/null", 10) == b""
    assert host.read("/proc/self/stat", 3) != b""


def test_real_bundle_with_a_missing_source_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(KataError):
        build(RuntimeConfig(), bundle(tmp_path, [bind("/nonexistent/x", "/x")]))
