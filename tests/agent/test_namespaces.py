"""Namespaces, user ids, sysctls, pods."""

from __future__ import annotations

import os

import pytest

from kata_agent.protocol import guest_pb2
from tests.agent.client import RpcError


def links(b, exec_id="", kinds="pid mnt ipc uts cgroup net user time"):
    out = b.exec(["sh", "-c", f"for k in {kinds}; do readlink /proc/self/ns/$k; done"])[1]
    return dict(zip(kinds.split(), out.splitlines(), strict=True))


def test_own_and_shared_namespaces(box):
    a = box("sleep", "100").create().start()
    b = box("sleep", "100").create().start()
    one, two = links(a), links(b)
    for kind in ("pid", "mnt", "ipc", "uts", "cgroup"):
        assert one[kind] != two[kind]
    for kind in ("net", "user"):
        assert one[kind] == two[kind]


def test_joining_a_container(box):
    a = box("sleep", "100")
    a.spec.Hostname = "first"
    a.create().start()
    b = box("sleep", "100")
    for kind in ("pid", "ipc", "uts"):
        b.extras.join.add(type=kind, container_id=a.id)
    b.create().start()
    one, two = links(a), links(b)
    for kind in ("pid", "ipc", "uts"):
        assert one[kind] == two[kind]
    assert one["mnt"] != two["mnt"]
    assert b.exec(["hostname"])[1] == "first\n"
    b.client.SignalProcess(container_id=b.id, exec_id=b.id, signal=9)
    assert b.client.guest.WaitProcess(container_id=b.id).status == 137
    assert a.exec(["true"])[0] == 0
    c = box("true")
    c.extras.join.add(type="pid", container_id="nonesuch")
    with pytest.raises(RpcError) as info:
        c.create()
    assert "there is no container" in info.value.message


def test_shared_pid_namespace_of_the_sandbox(box):
    boxes = [box("sleep", "100").create(sandbox_pidns=True).start() for _ in range(2)]
    assert links(boxes[0])["pid"] == links(boxes[1])["pid"]
    assert "pause" in boxes[0].exec(["cat", "/proc/1/comm"])[1]


def test_hostname_domainname_sysctl(box):
    b = box("sh", "-c", "hostname; cd /proc/sys; cat kernel/domainname kernel/msgmax net/ipv4/ip_forward")
    b.spec.Hostname = "hosty"
    b.extras.domainname = "dom.example"
    b.spec.Linux.Sysctl["kernel.msgmax"] = "12345"
    b.spec.Linux.Sysctl["net.ipv4.ip_forward"] = "1"
    assert b.run()[1] == "hosty\ndom.example\n12345\n1\n"
    b = box("true")
    b.spec.Linux.Sysctl["kernel.nonesuch"] = "1"
    with pytest.raises(RpcError) as info:
        b.create()
    assert info.value.message.startswith("sysctl kernel.nonesuch")
    b = box("true")
    b.spec.Linux.Sysctl["../../etc/passwd"] = "1"
    with pytest.raises(RpcError) as info:
        b.create()
    assert "no sysctl" in info.value.message


def test_user_namespace(box, rootfs, tmp_path):
    (tmp_path / "v").mkdir(mode=0o700)
    for path in (rootfs, *rootfs.rglob("*")):
        os.chown(path, 100000, 100000, follow_symlinks=False)
    b = box("sh", "-c", "id -u; cat /proc/self/uid_map; echo $$; mount | grep -c proc; "
                        "touch /tmp/f; cat /dev/null && echo null; "
                        "ls -ld /v | awk '{print $3}'")
    b.spec.Linux.Namespaces.add(Type="user")
    b.spec.Linux.UIDMappings.add(HostID=100000, ContainerID=0, Size=65536)
    b.spec.Linux.GIDMappings.add(HostID=100000, ContainerID=0, Size=65536)
    b.spec.Mounts.add(type="sysfs", source="sysfs", destination="/sys", options=["ro"])
    b.spec.Mounts.add(type="bind", source=str(tmp_path / "v"), destination="/v", options=["rbind"])
    _status, out, err = b.run()
    lines = out.splitlines()
    assert lines[0] == "0", (out, err)
    assert lines[1].split() == ["0", "100000", "65536"]
    assert lines[2] == "1"
    assert "null" in lines
    assert (rootfs / "tmp/f").stat().st_uid == 100000
    b = box("sleep", "100")
    b.spec.Linux.Namespaces.add(Type="user")
    b.spec.Linux.UIDMappings.add(HostID=100000, ContainerID=0, Size=65536)
    b.spec.Linux.GIDMappings.add(HostID=100000, ContainerID=0, Size=65536)
    b.create().start()
    assert b.exec(["sh", "-c", "id -u; cat /proc/self/uid_map; cat /proc/1/comm"])[1].split() == \
        ["0", "0", "100000", "65536", "sleep"]


def test_time_namespace(box):
    b = box("cat", "/proc/uptime")
    b.spec.Linux.Namespaces.add(Type="time")
    b.extras.time_offsets.add(clock="boottime", secs=1_000_000_000)
    assert float(b.run()[1].split()[0]) > 1e9
    b = box("true")
    b.extras.time_offsets.add(clock="boottime", secs=1)
    with pytest.raises(RpcError):
        b.create()


def test_idmapped_mount(box, tmp_path):
    source = tmp_path / "v"
    source.mkdir()
    (source / "f").write_text("x")
    b = box("stat", "-c", "%u:%g", "/v/f")
    b.spec.Mounts.add(type="bind", source=str(source), destination="/v", options=["bind", "idmap"])
    ids = [guest_pb2.IdMap(container_id=0, host_id=500, size=10)]
    b.extras.mounts.add(index=len(b.spec.Mounts) - 1, uid_mappings=ids, gid_mappings=ids)
    assert b.run()[1] == "500:500\n"


def test_contradictions(box):
    b = box("true")
    b.spec.Linux.Namespaces.add(Type="pid")
    with pytest.raises(RpcError) as info:
        b.create()
    assert "listed twice" in info.value.message
    b = box("true")
    b.spec.Linux.Namespaces.add(Type="cgroup", Path="/proc/1/ns/cgroup")
    with pytest.raises(RpcError) as info:
        b.create()
    assert "mean nothing in the guest" in info.value.message
