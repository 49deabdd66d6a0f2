"""Mounts taken along, the private mount namespace, and the share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.errors import BundleError, HostError, InUse
from kata.storage import mountns
from kata.storage.clone import clone_mount
from kata.storage.share import ShareRoot
from kata_agent.linux import syscalls


def mounted(needle: str) -> list[str]:
    with open("/proc/thread-self/mountinfo", encoding="utf-8") as file:
        return [point for point in mountns.mount_points(file.read()) if needle in point]


def tmpfs(path: Path) -> None:
    path.mkdir(exist_ok=True)
    syscalls.mount("none", path, "tmpfs")


@pytest.fixture
def engine(home_mountns: int, tmp_path: Path) -> Iterator[Path]:
    """A folder in a mount namespace that plays the host, where a test may mount what it likes."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    tmpfs(tmp_path / "host")
    yield tmp_path / "host"


@pytest.fixture
def share(engine: Path, tmp_path: Path) -> Iterator[ShareRoot]:
    share = ShareRoot.create(str(tmp_path / "share"))
    yield share
    share.close()
    assert mounted(str(tmp_path / "share")) == []


def test_share_shows_mounts_and_refuses_everything_else(engine: Path, share: ShareRoot) -> None:
    (engine / "data").mkdir()
    (engine / "data" / "file").write_text("one")
    tmpfs(engine / "data" / "nested")
    (engine / "data" / "nested" / "deep").write_text("two")
    (engine / "hosts").write_text("127.0.0.1")
    for source, name in (("data", "rootfs"), ("hosts", "etc-hosts")):
        clone = clone_mount(str(engine / source), name)
        assert share.add("c1", name, clone.fd, clone.is_dir) == f"c1/{name}"
        os.close(clone.fd)
    view = Path(share.path)
    assert (view / "c1/rootfs/file").read_text() == "one"
    assert (view / "c1/rootfs/nested/deep").read_text() == "two"
    (view / "c1/rootfs/file").write_text("live")
    (view / "c1/etc-hosts").write_text("both ways")
    assert ((engine / "data/file").read_text(), (engine / "hosts").read_text()) == ("live", "both ways")
    for path in ("new", "c1/new"):
        with pytest.raises(OSError, match="Read-only"):
            (view / path).mkdir()
    assert (share.containers(), share.names("c1")) == (["c1"], ["etc-hosts", "rootfs"])
    share.remove("c1")
    share.remove("c1")
    assert (share.containers(), share.names("c1")) == ([], [])
    assert mounted(share.path) == [share.path]
    assert (engine / "data/nested/deep").read_text() == "two"


def test_read_only_covers_the_tree(engine: Path, share: ShareRoot) -> None:
    (engine / "data").mkdir()
    tmpfs(engine / "data" / "nested")
    clone = clone_mount(str(engine / "data"), "mount /data", read_only=True)
    share.add("c1", "data", clone.fd, True)
    os.close(clone.fd)
    for name in ("x", "nested/x"):
        with pytest.raises(OSError, match="Read-only"):
            (Path(share.path) / "c1/data" / name).touch()
        (engine / "data" / name).touch()  # the engine's own mount is as it was


def test_not_recursive(engine: Path, share: ShareRoot) -> None:
    (engine / "data").mkdir()
    tmpfs(engine / "data" / "nested")
    (engine / "data/nested/deep").touch()
    clone = clone_mount(str(engine / "data"), "mount /data", recursive=False)
    share.add("c1", "data", clone.fd, True)
    os.close(clone.fd)
    assert os.listdir(Path(share.path) / "c1/data/nested") == []


def test_links_and_devices_in_a_share_are_dead_for_the_host(engine: Path, share: ShareRoot) -> None:
    (engine / "data").mkdir()
    (engine / "data/link").symlink_to("/etc/passwd")
    os.mknod(engine / "data/null", 0o666 | 0o020000, os.makedev(1, 3))
    clone = clone_mount(str(engine / "data"), "mount /data")
    share.add("c1", "data", clone.fd, True)
    os.close(clone.fd)
    inside = Path(share.path) / "c1/data"
    with pytest.raises(OSError, match="symbolic links"):
        (inside / "link").read_text()
    assert os.readlink(inside / "link") == "/etc/passwd"
    with pytest.raises(PermissionError):
        (inside / "null").read_text()


@pytest.mark.parametrize("propagation", ["private", "slave"])
def test_later_mounts(engine: Path, share: ShareRoot, propagation: str) -> None:
    (engine / "data").mkdir()
    syscalls.mount(engine / "data", engine / "data", "", syscalls.MS_BIND)
    syscalls.mount("none", engine / "data", "", syscalls.MS_SHARED)
    clone = clone_mount(str(engine / "data"), "mount /data", propagation=propagation)
    share.add("c1", "data", clone.fd, True)
    os.close(clone.fd)
    tmpfs(engine / "data" / "later")
    (engine / "data/later/file").touch()
    seen = (Path(share.path) / "c1/data/later/file").exists()
    assert seen == (propagation == "slave")
    # Nothing goes the other way.
    (Path(share.path) / "c1/data/mine").mkdir()
    tmpfs(Path(share.path) / "c1/data/mine")
    assert not any("host/data/mine" in point for point in mounted("mine"))
    share.remove("c1")
    assert (engine / "data/later/file").exists()


def test_sources_that_cannot_be(engine: Path) -> None:
    (engine / "file").touch()
    for source in ("none", "file/x"):
        with pytest.raises(BundleError, match=r"mount /x: source .* does not exist"):
            clone_mount(str(engine / source), "mount /x")
    with pytest.raises(BundleError, match="null"):
        clone_mount("a\0b", "mount /x")
    (engine / "loop").symlink_to("loop")
    with pytest.raises(BundleError, match="symbolic links"):
        clone_mount(str(engine / "loop"), "mount /x")
    tmpfs(engine / "odd")
    syscalls.mount("none", engine / "odd", "", syscalls.MS_UNBINDABLE)
    with pytest.raises(BundleError, match="cannot be bind mounted"):
        clone_mount(str(engine / "odd"), "mount /x")


def test_kinds(engine: Path) -> None:
    (engine / "file").touch()
    os.mkfifo(engine / "fifo")
    os.mknod(engine / "char", 0o600 | 0o020000, os.makedev(1, 3))
    os.mknod(engine / "block", 0o600 | 0o060000, os.makedev(7, 0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(engine / "socket"))
    (engine / "link").symlink_to("file")
    for name in ("file", "fifo", "char", "block", "socket", "link", "."):
        clone = clone_mount(str(engine / name), "mount /x")
        assert clone.kind == {"link": "file", ".": "dir"}.get(name, name)
        os.close(clone.fd)


def test_clone_survives_the_engines_unmount(engine: Path, share: ShareRoot) -> None:
    tmpfs(engine / "merged")
    (engine / "merged/bin").touch()
    clone = clone_mount(str(engine / "merged"), "rootfs")
    share.add("c1", "rootfs", clone.fd, True)
    os.close(clone.fd)
    syscalls.umount2(engine / "merged")
    (engine / "merged").rmdir()
    assert (Path(share.path) / "c1/rootfs/bin").exists()


def test_failed_add_leaves_nothing(engine: Path, share: ShareRoot) -> None:
    (engine / "data").mkdir()
    plain = os.open(engine / "data", os.O_PATH)
    for container in ("c1", "c2"):
        with pytest.raises(HostError, match=f"{container}/data"):
            share.add(container, "data", plain, True)
    os.close(plain)
    clone = clone_mount(str(engine / "data"), "mount /data")
    with pytest.raises(HostError, match="cannot share"):
        share.add("c1", "data", clone.fd, False)  # a directory on a file
    assert share.containers() == []
    share.add("c1", "data", clone.fd, True)
    with pytest.raises(InUse, match="c1/data"):
        share.add("c1", "data", clone.fd, True)
    assert share.names("c1") == ["data"]
    os.close(clone.fd)


@pytest.mark.parametrize("name", ["", ".", "..", "...", "a/b", "a\0b", "x" * 256])
def test_names(share: ShareRoot, name: str) -> None:
    with pytest.raises(HostError, match="cannot be a name"):
        share.add(name, "data", 0, True)
    with pytest.raises(HostError, match="cannot be a name"):
        share.add("c1", name, 0, True)
    with pytest.raises(HostError, match="cannot be a name"):
        share.remove(name)


def test_share_has_a_limit(share: ShareRoot) -> None:
    filesystem = os.statvfs(share.path)
    assert filesystem.f_blocks * filesystem.f_frsize <= 1 << 20
    assert 0 < filesystem.f_files <= 65536
    assert os.stat(share.path).st_mode & 0o7777 == 0o700


def test_reopen(engine: Path, share: ShareRoot, tmp_path: Path) -> None:
    (engine / "data").mkdir()
    clone = clone_mount(str(engine / "data"), "mount /data")
    share.add("c1", "data", clone.fd, True)
    again = ShareRoot.reopen(share.path)
    assert again.names("c1") == ["data"]
    again.add("c1", "more", clone_mount(str(engine / "data"), "mount /data").fd, True)
    again.remove("c1")
    assert share.containers() == []
    again.release()
    os.close(clone.fd)
    with pytest.raises(HostError, match="not mounted"):
        ShareRoot.reopen(str(tmp_path))
    with pytest.raises(HostError, match="No such file"):
        ShareRoot.reopen(str(tmp_path / "none"))


def test_namespace_holds_what_is_needed_only(engine: Path, tmp_path: Path) -> None:
    tmpfs(engine / "program")
    (engine / "program/qemu").touch()
    tmpfs(engine / "other")
    tmpfs(engine / "other" / "nested")
    (engine / "link").symlink_to("program/qemu")
    outer = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    mountns.enter_private([str(engine / "link"), str(tmp_path)])
    assert sorted(mounted(str(tmp_path))) == [str(engine), str(engine / "program")]
    assert (engine / "link").exists()
    assert mounted("/proc")
    share = ShareRoot.create(str(tmp_path / "share"))
    syscalls.setns(outer, syscalls.CLONE_NEWNS)
    os.close(outer)
    assert mounted(str(tmp_path / "share")) == []
    assert len(mounted(str(engine / "other"))) == 2
    syscalls.umount2(engine / "other" / "nested")
    syscalls.umount2(engine / "other")
    share.release()


def test_join_names_the_process() -> None:
    with pytest.raises(HostError, match="process 4194305"):
        mountns.join(2**22 + 1)


def test_what_the_host_reads_of_a_container(engine: Path, share: ShareRoot) -> None:
    """A regular file of bounded size, and nothing a guest may have put in its place."""
    (engine / "etc").mkdir()
    (engine / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (engine / "etc/big").write_text("x" * 100)
    (engine / "etc/link").symlink_to("/etc/passwd")
    (engine / "etc/up").symlink_to("..")
    os.mkfifo(engine / "etc/fifo")
    os.mknod(engine / "etc/null", 0o020000 | 0o666, os.makedev(1, 3))
    clone = clone_mount(str(engine), "rootfs")
    share.add("c", "rootfs", clone.fd, clone.is_dir)
    os.close(clone.fd)
    assert share.read("c", "rootfs/etc/passwd", 99) == b"root:x:0:0::/root:/bin/sh\n"
    for path in ("etc/big", "etc/fifo", "etc"):
        with pytest.raises((ValueError, OSError)):
            share.read("c", f"rootfs/{path}", 99)
    for path in ("etc/link", "etc/up/etc/passwd", "../rootfs/../../etc/passwd", "etc/null"):
        with pytest.raises(OSError, match=r"\w"):
            share.read("c", f"rootfs/{path}", 99)
    with pytest.raises(FileNotFoundError):
        share.read("c", "rootfs/etc/nosuch", 99)
