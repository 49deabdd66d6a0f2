"""Volumes, bind mounts, devices and images of docker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.dockerd import IMAGE, Docker
from harness.proc import Result, run
from harness.text import compare, script, sections
from harness.wait import eventually

from .conftest import Start

Once = Callable[..., Result]


@pytest.fixture
def folder(docker: Docker) -> Iterator[Path]:
    path = docker.data_dir.parent / "shared folder"
    path.mkdir()
    (path / "file").write_text("host\n")
    os.chown(path / "file", 1000, 100)
    yield path
    run("rm", "-r", str(path)).ok()


def test_bind_mounts(docker: Docker, start: Start, folder: Path) -> None:
    """-v and --mount of folders and files, rw and ro, both ways and live."""
    name = start(
        "-v", f"{folder}:/rw", "-v", f"{folder}:/ro:ro", "-v", f"{folder}/file:/etc/single:ro",
        "--mount", f"type=bind,src={folder},dst=/mnt/deep/er", "--mount", "type=tmpfs,dst=/tm,tmpfs-size=1m",
    )  # fmt: skip
    got = sections(
        docker.sh(
            name,
            script(
                read="cat /ro/file /etc/single /mnt/deep/er/file; stat -c '%u %g' /rw/file",
                ro="touch /ro/x 2>&1; echo y > /etc/single",
                write="echo inside > /rw/new; chown 5:6 /rw/new; cat /ro/new",
                tmpfs="df -k /tm | awk 'END { print $2 }'",
            ),
        ).ok().stdout
    )  # fmt: skip
    compare(
        got,
        {
            "read": "host\nhost\nhost\n1000 100", "ro": lambda v: v.count("Read-only") == 2, "write": "inside",
            "tmpfs": "1024",
        },
    )  # fmt: skip
    assert (folder / "new").read_text() == "inside\n" and (folder / "new").stat().st_uid == 5
    (folder / "live").write_text("later\n")
    assert docker("exec", name, "cat", "/rw/live").ok().stdout == "later\n"


def test_volumes(docker: Docker, once: Once) -> None:
    """A named volume is filled from the image, kept between containers, shared by two at once."""
    docker("volume", "create", "kept").ok()
    try:
        filled = once("ls /etc/passwd && echo one > /etc/mine && cat /etc/mine", "-v", "kept:/etc").ok()
        assert filled.stdout.split() == ["/etc/passwd", "one"]
        assert once("cat /again/mine; touch /again/x", "-v", "kept:/again:ro").fails().stdout == "one\n"
        place = docker("volume", "inspect", "-f", "{{.Mountpoint}}", "kept").ok().out
        assert (Path(place) / "mine").read_text() == "one\n"
    finally:
        docker("volume", "rm", "kept").ok()


def test_volumes_from_and_anonymous(docker: Docker, start: Start, once: Once) -> None:
    """--volumes-from shares a live volume; anonymous ones go with `rm -v`."""
    name = start("-v", "/data")
    docker.sh(name, "echo shared > /data/f").ok()
    assert once("cat /data/f; echo back > /data/g", "--volumes-from", name).ok().stdout == "shared\n"
    assert eventually("the other's file", lambda: docker.sh(name, "cat /data/g").ok().out, 10) == "back"
    docker("rm", "-f", "-v", name).ok()
    assert not docker("volume", "ls", "-q").ok().out


def test_block_device(docker: Docker, once: Once) -> None:
    """--device: a host block device is a disk inside: same bytes, same size; writes come back; :r is read-only."""
    image = docker.data_dir.parent / "device.img"
    image.write_bytes(b"on the host\n" + bytes((4 << 20) - 12))
    loop = run("losetup", "--find", "--show", str(image))
    if loop.rc != 0:
        pytest.skip(f"no loop device: {loop.stderr.strip()}")
    try:
        checks = script(
            read="head -c 11 /dev/xvda",
            kind="stat -c %F /dev/xvda",
            size="blockdev --getsize64 /dev/xvda",
            write="echo inside | dd of=/dev/xvda bs=512 seek=2 conv=notrunc 2>/dev/null; sync",
        )
        got = sections(once(checks, "--device", f"{loop.out}:/dev/xvda").ok().stdout)
        compare(got, {"read": "on the host", "kind": "block special file", "size": str(4 << 20)})
        ro = once("echo x > /dev/xvda", "--device", f"{loop.out}:/dev/xvda:r")
        assert ro.rc != 0, ro
    finally:
        run("losetup", "--detach", loop.out).ok()
    assert image.read_bytes()[1024:1031] == b"inside\n"
    image.unlink()


def test_character_device(once: Once) -> None:
    """--device of a character device that every kernel has."""
    got = once("stat -c '%F %t,%T' /dev/mine && echo x > /dev/mine && echo ok", "--device", "/dev/null:/dev/mine").ok()
    assert got.stdout == "character special file 1,3\nok\n"


def test_layers(docker: Docker, start: Start, once: Once) -> None:
    """Layers of overlay2: each container writes its own; big files are copied up whole; whiteouts hide."""
    one, two = start(), start()
    docker.sh(one, "echo one >> /etc/os-release; rm -r /home; mkdir /home; touch /bin/busybox").ok()
    assert "one" not in docker.sh(two, "cat /etc/os-release; ls /home").ok().stdout
    assert docker.sh(two, "ls /home").ok().out == "user"
    assert (
        docker.sh(one, "ls /home; sha256sum < /bin/busybox").ok().out
        == docker.sh(two, "sha256sum < /bin/busybox").ok().out
    )
    assert once("ls /home").ok().out == "user"


def test_export_and_save(docker: Docker, start: Start) -> None:
    """export of a running container holds what it wrote; save and load keep the image."""
    name = start(script="echo written > /written; echo up; while :; do sleep 1; done")
    docker.wait_logs(name, "up")
    exported = docker.run_dir / "export.tar"
    docker("export", "-o", str(exported), name).ok()
    assert run("tar", "-xOf", str(exported), "written").ok().stdout == "written\n"
    docker("save", "-o", str(exported), IMAGE).ok()
    docker("load", "-i", str(exported)).ok()
    exported.unlink()
