"""Root file systems that are disks of their own: given to the guest where nobody can write to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bundle import Bundle
from harness.oci import Oci
from harness.proc import run
from harness.text import compare, script, sections
from harness.wait import eventually

ROOT_TYPE = "awk '$5 == \"/\" { sub(/.* - /, \"\"); print $1 }' /proc/self/mountinfo"
MAKE = {"erofs": ("mkfs.erofs", "-zlz4hc"), "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-d")}


def image(oci: Oci, bundle: Bundle, kind: str) -> Path:
    """A disk image with the bundle's root file system in it."""
    path = oci.work_dir / f"{kind}-{oci.new_id()}.img"
    if kind == "ext4":
        with open(path, "wb") as f:
            f.truncate(256 << 20)
        run(*MAKE[kind], str(bundle.rootfs), str(path)).ok()
    else:
        run(*MAKE[kind], str(path), str(bundle.rootfs)).ok()
    return path


@contextlib.contextmanager
def mounted(oci: Oci, bundle: Bundle, kind: str, *options: str) -> Iterator[Path]:
    """The bundle's root file system on a disk; afterwards nobody else may hold it."""
    path, place = image(oci, bundle, kind), oci.work_dir / f"mnt{oci.new_id()}"
    place.mkdir()
    bundle.config["root"]["path"] = str(place)
    loop = run("losetup", "--find", "--show", *(["--read-only"] if "ro" in options else []), str(path))
    if loop.rc != 0:
        pytest.skip(f"no loop device: {loop.stderr.strip()}")
    try:
        run("mount", "-t", kind, "-o", ",".join(options) or "rw", loop.out, str(place)).ok()
        try:
            yield place
        finally:
            run("umount", str(place)).ok()
    finally:
        # A mount of it in some namespace would keep it, invisibly: the kernel detaches it when it is free.
        run("losetup", "--detach", loop.out).ok()
        # Another worker's container may be on its way through a mount namespace of its own, for a moment.
        eventually("the disk to be free", lambda: not run("losetup", "--associated", str(path)).ok().out, 5)
        path.unlink()
        place.rmdir()


@pytest.mark.parametrize("kind", ["erofs", "ext4"])
def test_read_only_disk_is_the_guests(oci: Oci, kind: str) -> None:
    """Same files, owners, modes and links; no write; two machines share the disk."""
    bundle = oci.bundle()
    (bundle.rootfs / "big").write_bytes(bytes(range(256)) * 4096)
    (bundle.rootfs / "tool").write_text("#!/bin/sh\necho tool\n")
    (bundle.rootfs / "tool").chmod(0o4755)
    (bundle.rootfs / "link").symlink_to("big")
    expected = run("sha256sum", str(bundle.rootfs / "big")).out.split()[0]
    with mounted(oci, bundle, kind, "ro") as place:
        with oci.running(bundle) as c, oci.container(Bundle(oci.work_dir / f"b{oci.new_id()}", oci.rootfs)) as other:
            got = sections(c.sh(script(
                kind=ROOT_TYPE, big="sha256sum </big", link="readlink /link", tool="stat -c %a /tool; /tool",
                write="touch /new 2>&1", name="hostname")).ok().stdout)
            compare(got, {"kind": kind, "big": f"{expected}  -", "link": "big", "tool": "4755\ntool",
                          "write": lambda v: "Read-only file system" in v, "name": "guest"})
            # What an engine copies out of the container is read in the mount namespace of its pid.
            assert run("nsenter", "--mount", "--target", str(c.pid), "/bin/readlink", "/link").ok().out == "big"
            other.bundle.config["root"]["path"] = str(place)
            other.bundle.sh("sha256sum </big").write()
            other.launch_verb("create").ok()
            code, out, err = other.finish()
            assert (code, out) == (0, f"{expected}  -\n"), err


def test_writable_disk_stays_shared(oci: Oci) -> None:
    """The host has it mounted: both sides see what the other writes."""
    bundle = oci.bundle()
    with mounted(oci, bundle, "ext4") as place, oci.running(bundle) as c:
        (place / "from-host").write_text("host\n")
        assert c.sh("echo guest >/from-guest; cat /from-host").ok().out == "host"
        assert (place / "from-guest").read_text() == "guest\n"
