"""Where a container's cgroup is: mounts of all kinds, and the forms of linux.cgroupsPath."""

from __future__ import annotations

import pytest

from kata.cgroups import limits, paths
from kata.cgroups.paths import Hierarchy
from kata.errors import BundleError, UnsupportedError

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /other/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
INSIDE = "50 49 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"


def test_hybrid_is_v1() -> None:
    found = paths.hierarchies(V1)
    assert [(h.mount, h.key) for h in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
        ("/sys/fs/cgroup/memory", "memory"),
        ("/sys/fs/cgroup/systemd", "name=systemd"),
    ]


def test_unified() -> None:
    (only,) = paths.hierarchies(V2)
    assert only.unified and only.key == "" and only.directory("/docker/x") == "/sys/fs/cgroup/docker/x"


def test_mount_inside_a_container() -> None:
    (only,) = paths.hierarchies(INSIDE)
    assert only.directory("/docker/abc/kata/c1") == "/sys/fs/cgroup/memory/kata/c1"
    assert only.directory("/docker/abc") == "/sys/fs/cgroup/memory"
    assert only.directory("/elsewhere") == "/sys/fs/cgroup/memory/elsewhere"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "mounted", lambda: paths.hierarchies(V1))
    monkeypatch.setattr(paths, "own", lambda pid="self": {"cpu,cpuacct": "/me", "memory": "/me/too",
                                                          "name=systemd": "/", "": "/"})


@pytest.mark.parametrize(("given", "expected"), [
    ("/docker/abc", "/docker/abc"),
    ("/docker/../abc/", "/abc"),
    ("/../../abc", "/abc"),
    ("//abc", "/abc"),
    ("rel", "cpu,cpuacct:/me/rel\nmemory:/me/too/rel\nname=systemd:/rel"),
    ("../../rel", "cpu,cpuacct:/me/rel\nmemory:/me/too/rel\nname=systemd:/rel"),
    ("", "cpu,cpuacct:/me/c1\nmemory:/me/too/c1\nname=systemd:/c1"),
])
def test_place(host: None, given: str, expected: str) -> None:
    assert paths.place(given, "c1", systemd=False) == expected


@pytest.mark.parametrize("given", ["/", "/..", ".", "a\0b", "/a\nb", "system.slice:docker:abc"])
def test_places_that_cannot_be(host: None, given: str) -> None:
    with pytest.raises(BundleError, match="cgroupsPath"):
        paths.place(given, "c1", systemd=False)


def test_relative_on_v2_is_beside_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "mounted", lambda: paths.hierarchies(V2))
    monkeypatch.setattr(paths, "own", lambda pid="self": {"": "/user.slice/session.scope"})
    assert paths.place("rel", "c1", systemd=False) == "/user.slice/rel"


def test_encode_and_decode() -> None:
    found = paths.hierarchies(V1)
    same = paths.encode({h.key: "/x" for h in found})
    assert same == "/x"
    assert set(paths.decode(same, found).values()) == {f"{h.mount}/x" for h in found}
    differ = paths.encode({"cpu,cpuacct": "/a", "memory": "/b"})
    assert paths.decode(differ, found) == {
        found[0]: "/sys/fs/cgroup/cpu,cpuacct/a", found[1]: "/sys/fs/cgroup/memory/b"}


def test_systemd_without_systemd_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_SYSTEMD", "/nonexistent")
    with pytest.raises(UnsupportedError, match="--systemd-cgroup"):
        paths.place("system.slice:docker:abc", "abc", systemd=True)


@pytest.mark.parametrize(("given", "expected"), [
    ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
    ("user-1000.slice:libpod:abc", "/user.slice/user-1000.slice/libpod-abc.scope"),
    ("-.slice:docker:abc", "/docker-abc.scope"),
    (":docker:abc", "/system.slice/docker-abc.scope"),
    ("machine.slice::abc", "/machine.slice/abc.scope"),
    ("kubepods.slice::kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
    ("", "/system.slice/kata-c1.scope"),
])
def test_systemd_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: object, given: str, expected: str) -> None:
    monkeypatch.setattr(paths, "_SYSTEMD", str(tmp_path))
    assert paths.place(given, "c1", systemd=True) == expected


@pytest.mark.parametrize("given", ["/docker/abc", "a:b", "a:b:c:d", "system:docker:abc", "a--b.slice:x:y", "a.slice:x:",
                                   "../x.slice:a:b", "-a.slice:x:y", ".slice:x:y"])
def test_bad_systemd_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: object, given: str) -> None:
    monkeypatch.setattr(paths, "_SYSTEMD", str(tmp_path))
    with pytest.raises(BundleError, match="slice"):
        paths.place(given, "c1", systemd=True)


def test_weights() -> None:
    assert [limits.cpu_weight(n) for n in (1, 2, 1024, 262144, 10**9)] == [1, 1, 39, 10000, 10000]
    assert [limits.io_weight(n) for n in (10, 1000)] == [1, 10000]


def test_settings_for_v2() -> None:
    resources = {"cpu": {"shares": 1024, "cpus": "0-1", "mems": "0"},
                 "blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
                             "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]}}
    assert list(limits._settings(resources, True)) == [
        ("cpu", ("cpu.weight",), "39"), ("cpuset", ("cpuset.mems",), "0"), ("cpuset", ("cpuset.cpus",), "0-1"),
        ("io", ("io.weight",), "4950"), ("io", ("io.weight",), "8:0 1"), ("io", ("io.max",), "8:0 rbps=1000"),
    ]
    assert [name for _c, (name, *_), _v in limits._settings(resources, False)] == [
        "cpu.shares", "cpuset.mems", "cpuset.cpus", "blkio.weight", "blkio.weight_device",
        "blkio.throttle.read_bps_device"]


def test_hierarchy_is_hashable() -> None:
    assert len({Hierarchy("/a", "/", ()), Hierarchy("/a", "/", ())}) == 1
