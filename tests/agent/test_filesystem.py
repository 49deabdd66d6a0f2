"""Mounts, devices, masks, links that lead out."""

from __future__ import annotations

import os

import pytest

from tests.agent.client import RpcError


def mounts_of(out: str) -> dict[str, list[str]]:
    """Mount point -> [type, options] of /proc/mounts."""
    return {f[1]: [f[2], *f[3].split(",")] for f in (line.split() for line in out.splitlines())}


def test_root_is_only_the_container(box):
    status, out, _ = box("sh", "-c", "ls -1 /; cat /proc/mounts").run()
    assert status == 0
    assert "/ " in out
    assert "work" not in out.split("/dev")[0].split()
    assert len(mounts_of("\n".join(line for line in out.splitlines() if len(line.split()) == 6))) == 4


def test_bind_mounts(box, tmp_path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("text")
    (tmp_path / "single").write_text("one")
    b = box("sh", "-c", "cat /a/deep/file /etc/single; echo new > /a/deep/new; echo x > /ro/y; cat /proc/mounts")
    b.spec.Mounts.add(type="bind", source=str(tmp_path / "dir"), destination="/a/deep", options=["rbind", "rw"])
    b.spec.Mounts.add(type="bind", source=str(tmp_path / "single"), destination="/etc/single", options=["bind", "ro"])
    b.spec.Mounts.add(source=str(tmp_path / "dir"), destination="/ro",
                      options=["rbind", "ro", "nosuid", "nodev", "noexec", "noatime", "rprivate"])
    _status, out, err = b.run()
    assert out.startswith("textone")
    assert "Read-only file system" in err
    assert (tmp_path / "dir/new").read_text() == "new\n"
    mounts = mounts_of(out[7:])
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(mounts["/ro"])
    assert "rw" in mounts["/a/deep"]
    assert "ro" in mounts["/etc/single"]


def test_missing_source(box):
    b = box("true")
    b.spec.Mounts.add(type="bind", source="/nonesuch", destination="/a", options=["bind"])
    with pytest.raises(RpcError) as info:
        b.create()
    # What this host's kernel lacks for a guest follows.
    assert info.value.message.startswith("mount /a: /nonesuch: open_tree: No such file or directory")
    assert not b.client.guest.ListAll().containers


def test_recursive_read_only(box, tmp_path):
    source = tmp_path / "dir"
    source.mkdir()
    b = box("sh", "-c", "grep /a /proc/mounts")
    b.spec.Mounts.add(type="bind", source=str(source), destination="/a", options=["rbind", "rro"])
    assert "ro," in b.run()[1]


def test_tmpfs(box, rootfs):
    (rootfs / "data").mkdir()
    (rootfs / "data/old").write_text("old")
    (rootfs / "data/sub").mkdir(mode=0o750)
    os.chown(rootfs / "data/old", 5, 6)
    (rootfs / "data").chmod(0o701)
    b = box("sh", "-c", "stat -c '%a %u' /data /s /c; ls /data; cat /c/old; stat -c %u:%g /c/old; df -k /s | tail -1; "
                        "grep -E ' /(s|c) ' /proc/mounts")
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/data", options=["nosuid"])
    b.spec.Mounts.add(type="tmpfs", source="shm", destination="/s", options=["size=1m", "mode=1777", "uid=7", "noexec"])
    (rootfs / "c").mkdir()
    (rootfs / "c/old").write_text("kept\n")
    os.chown(rootfs / "c/old", 5, 6)
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/c", options=["tmpcopyup", "nodev"])
    out = b.run()[1].splitlines()
    assert out[0] == "701 0"
    assert out[1] == "1777 7"
    assert out[3:5] == ["kept", "5:6"]
    assert out[5].split()[1] == "1024"
    assert "noexec" in out[6]
    assert "nodev" in out[7]


def test_links_do_not_lead_out(box, rootfs, tmp_path):
    """Mount points behind links of the image stay in the image."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "abs").symlink_to("/etc")
    (rootfs / "up").symlink_to("../../../../../../.." + str(outside))
    (rootfs / "dangling").symlink_to(f"{outside}/x/y")
    (rootfs / "loop").symlink_to("loop")
    source = tmp_path / "src"
    source.mkdir()
    (source / "mark").write_text("m")
    b = box("sh", "-c", f"ls /etc/inner; ls {outside}/in; ls {outside}/x/y")
    for destination in ("/abs/inner", "/up/in", "/dangling"):
        b.spec.Mounts.add(type="bind", source=str(source), destination=destination, options=["bind"])
    assert b.run()[1] == "mark\nmark\nmark\n"
    assert list(outside.iterdir()) == []
    b = box("true")
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/loop/x")
    with pytest.raises(RpcError) as info:
        b.create()
    assert "Too many levels of symbolic links" in info.value.message


def test_devices(box):
    b = box("sh", "-c", "ls -l /dev | awk '{print $1, $5, $6, $NF}'; echo x > /dev/null; head -c 3 /dev/zero | wc -c; "
                        "readlink /dev/fd; readlink /dev/ptmx; ls -l /dev/special /dev/pipe")
    b.spec.Linux.Devices.add(Path="/dev/special", Type="c", Major=1, Minor=5, FileMode=0o640, UID=3, GID=4)
    b.spec.Linux.Devices.add(Path="/dev/pipe", Type="p", FileMode=0o600)
    out = b.run()[1]
    for text in ("crw-rw-rw- 1, 3 /dev/null", "tty", "urandom"):
        assert text.split()[-1].rpartition("/")[2] in out
    assert "\n3\n/proc/self/fd\npts/ptmx\n" in out
    assert "crw-r-----    1 3        4" in out
    assert "prw-------" in out


def test_masked_and_read_only_paths(box, rootfs):
    (rootfs / "hide").mkdir()
    (rootfs / "hide/secret").write_text("s")
    (rootfs / "hide2").mkdir()
    (rootfs / "hide2/secret").write_text("s")
    (rootfs / "file").write_text("s")
    b = box("sh", "-c", "ls -A /hide /hide2; cat /file; echo x > /etc/x; "
                        "echo 1 > /proc/sys/kernel/printk; touch /hide/y")
    b.spec.Linux.MaskedPaths.extend(["/hide", "/hide2", "/file", "/missing"])
    b.spec.Linux.ReadonlyPaths.extend(["/etc", "/proc/sys", "/missing"])
    _status, out, err = b.run()
    assert out == "/hide:\n\n/hide2:\n"
    assert err.count("Read-only file system") == 3


def test_read_only_root(box):
    b = box("sh", "-c", "touch /x; touch /dev/x && echo dev; touch /tmp/y")
    b.spec.Root.Readonly = True
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/tmp", options=["mode=1777"])
    status, out, err = b.run()
    assert (status, out) == (0, "dev\n")
    assert "/x: Read-only file system" in err


def test_read_only_tmpfs_takes_mount_points(box):
    """podman --read-only has a read-only /dev with devices and mounts in it."""
    b = box("sh", "-c", "touch /dev/x; touch /data/x; echo > /dev/null && touch /data/in/x && ls /dev/pts/ptmx")
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/dev", options=["nosuid", "mode=755", "ro"])
    b.spec.Mounts.add(type="devpts", source="devpts", destination="/dev/pts", options=["newinstance", "ptmxmode=0666"])
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/data", options=["ro"])
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/data/in")
    status, out, err = b.run()
    assert (status, out) == (0, "/dev/pts/ptmx\n"), err
    assert err.count("Read-only file system") == 2, err


def test_rootfs_propagation(box):
    b = box("sh", "-c", "grep ' / / \\| /.* / ' /proc/self/mountinfo | head -1")
    b.spec.Linux.RootfsPropagation = "shared"
    assert "shared:" in b.run()[1]
    b = box("true")
    b.spec.Linux.RootfsPropagation = "odd"
    with pytest.raises(RpcError):
        b.create()


def test_mqueue_sysfs_and_overlay(box, rootfs, tmp_path):
    for name in ("low", "up", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/f").write_text("below")
    b = box("sh", "-c", "cat /o/f; grep -E 'mqueue|sysfs|overlay' /proc/mounts | awk '{print $2, $3}'")
    b.spec.Mounts.add(type="mqueue", source="mqueue", destination="/dev/mqueue", options=["nosuid", "noexec", "nodev"])
    b.spec.Mounts.add(type="sysfs", source="sysfs", destination="/sys", options=["nosuid", "noexec", "nodev", "ro"])
    b.spec.Mounts.add(type="tmpfs", source="tmpfs", destination="/scratch")
    b.spec.Mounts.add(type="overlay", source="overlay", destination="/o",
                      options=[f"lowerdir={tmp_path}/low", f"upperdir={tmp_path}/up", f"workdir={tmp_path}/work"])
    _status, out, err = b.run()
    assert "below" in out, err
    assert "/sys sysfs" in out
    assert "/dev/mqueue mqueue" in out


def test_storages(box, client, tmp_path):
    source = tmp_path / "share"
    source.mkdir()
    (source / "f").write_text("shared")
    from kata_agent.protocol import agent_pb2

    point = tmp_path / "point"
    storages = [
        agent_pb2.Storage(driver="9p", source=str(source), fstype="bind", options=["bind"], mount_point=str(point)),
        agent_pb2.Storage(driver="ephemeral", source="tmpfs", fstype="tmpfs", mount_point=str(tmp_path / "eph")),
        agent_pb2.Storage(driver="local", mount_point=str(tmp_path / "local"), options=["mode=0777"]),
    ]
    b = box("cat", "/v/f")
    b.spec.Mounts.add(type="bind", source=str(point), destination="/v", options=["bind"])
    assert b.run(storages=storages)[1] == "shared"
    for driver, text in (("mmioblk", "not supported"), ("blk-ccw", "not supported"), ("nfs", "unknown storage driver")):
        with pytest.raises(RpcError) as info:
            box("true").create(storages=[agent_pb2.Storage(driver=driver, mount_point="/x")])
        assert text in info.value.message
    with pytest.raises(RpcError) as info:
        box("true").create(storages=[agent_pb2.Storage(driver="blk", source="serial:none", fstype="ext4",
                                                       mount_point=str(tmp_path / "d"))])
    assert "did not appear within 1 s" in info.value.message
