"""File systems: binds, tmpfs, shm, propagation, masked and read-only paths, devices."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.oci import Oci
from harness.proc import run
from harness.text import compare, script, sections
from harness.wait import eventually


@pytest.fixture
def volume(oci: Oci) -> Iterator[Path]:
    """A host folder with some of everything in it."""
    path = oci.work_dir / f"vol{oci.new_id()}"
    (path / "sub").mkdir(parents=True)
    (path / "file").write_text("host\n")
    os.chown(path / "file", 1234, 4321)
    (path / "file").chmod(0o640)
    (path / "sub/link").symlink_to("../file")
    (path / "tool").write_text("#!/bin/sh\necho tool\n")
    (path / "tool").chmod(0o4755)
    os.mkfifo(path / "fifo")
    yield path


def options_of(place: str) -> str:
    """Shell: the mount options of the topmost mount at a place (mountinfo field 6)."""
    return f"awk '$5 == \"{place}\" {{ o = $6 }} END {{ print o }}' /proc/self/mountinfo"


def has(*words: str) -> object:
    return lambda value: set(words) <= set(value.split(","))


def test_binds(oci: Oci, volume: Path) -> None:
    """Folders and single files, rw and ro, flags; ownership, modes, links; changes seen both ways."""
    single = oci.work_dir / "single"
    single.write_text("single\n")
    bundle = oci.bundle()
    bundle.bind(volume, "/rw").bind(volume, "/ro", "ro").bind(volume, "/flags", "nosuid", "nodev", "noexec")
    bundle.bind(single, "/etc/single").bind(single, "/made/on/the/way", "ro")
    (bundle.rootfs / "target").mkdir()
    (bundle.rootfs / "link").symlink_to("target")
    bundle.bind(volume, "/link/inside")
    with oci.running(bundle) as c:
        got = sections(
            c.sh(
                script(
                    owner="stat -c '%u %g %a %F' /rw/file",
                    setuid="stat -c %a /rw/tool; /rw/tool",
                    fifo="stat -c %F /rw/fifo",
                    link="readlink /rw/sub/link; cat /rw/sub/link",
                    ro="cat /ro/file; touch /ro/x; rm /ro/file; test -e /ro/file && echo still",
                    ro_options=options_of("/ro"),
                    rw_options=options_of("/rw"),
                    flags=options_of("/flags"),
                    noexec="/flags/tool || echo refused",
                    single="cat /etc/single; echo changed >> /etc/single",
                    single_ro="cat /made/on/the/way; echo x >> /made/on/the/way",
                    through_link="cat /target/inside/file",
                    write="echo guest > /rw/new; chown 77:88 /rw/new; chmod 604 /rw/new; mkdir -m 711 /rw/dir; "
                    "ln -s /nowhere /rw/dangling; ln /rw/new /rw/hard; mv /rw/sub /rw/moved; mknod /rw/pipe p",
                    unlinked="exec 3<>/rw/temp; rm /rw/temp; echo kept >&3; test -e /rw/temp || cat /proc/self/fd/3",
                )
            )
            .ok()
            .stdout
        )
        compare(
            got,
            {
                "owner": "1234 4321 640 regular file", "setuid": "4755\ntool", "fifo": "fifo",
                "link": "../file\nhost", "ro": lambda v: v.startswith("host") and v.endswith("still")
                and v.count("Read-only file system") == 2,
                "ro_options": has("ro"), "rw_options": has("rw"), "flags": has("rw", "nosuid", "nodev", "noexec"),
                "noexec": lambda v: v.endswith("refused"), "single": "single",
                "single_ro": lambda v: v.startswith("single\nchanged") and "Read-only" in v,
                "through_link": "host", "write": "",
            },
        )  # fmt: skip
        new = (volume / "new").stat()
        assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode), new.st_nlink) == (77, 88, 0o604, 2)
        assert (volume / "new").read_text() == "guest\n"
        assert stat.S_IMODE((volume / "dir").stat().st_mode) == 0o711
        assert os.readlink(volume / "dangling") == "/nowhere"
        assert (volume / "moved/link").is_symlink() and not (volume / "sub").exists()
        assert stat.S_ISFIFO((volume / "pipe").stat().st_mode)
        assert single.read_text() == "single\nchanged\n"

        (volume / "later").write_text("from the host\n")
        with open(volume / "file", "a") as f:
            f.write("more\n")
        (volume / "hard").unlink()
        assert c.sh("cat /rw/later /ro/file; test -e /rw/hard || echo gone").ok().stdout == (
            "from the host\nhost\nmore\ngone\n"
        )
    single.unlink()


def test_recursive_binds(oci: Oci, volume: Path) -> None:
    """rbind takes the mounts below along, bind does not; a mounted file system stays one."""
    run("mount", "-t", "tmpfs", "below", str(volume / "sub")).ok()
    try:
        (volume / "sub/deep").write_text("deep\n")
        bundle = oci.bundle("cat /r/sub/deep; test -e /b/sub/deep || echo absent; test -e /b/sub/link && echo covered")
        bundle.bind(volume, "/r", "rbind").bind(volume, "/b", "bind")
        assert oci.run(bundle).ok().stdout == "deep\nabsent\ncovered\n"
    finally:
        run("umount", str(volume / "sub")).ok()


def test_tmpfs_and_shm(oci: Oci) -> None:
    """Sizes, modes, owners; the limit holds; /dev/shm has the size asked for."""
    bundle = oci.bundle(
        script(
            size="df -k /t | awk 'END { print $2 }'",
            owner="stat -c '%a %u %g' /t",
            options=options_of("/t"),
            full="dd if=/dev/zero of=/t/f bs=1024 count=3000 2>&1 | grep -o 'No space left on device'; stat -c %s /t/f",
            ro="touch /tro/x",
            shm="df -k /dev/shm | awk 'END { print $2 }'; stat -c %a /dev/shm; touch /dev/shm/x && echo usable",
            mqueue="grep -c ' /dev/mqueue .* mqueue ' /proc/self/mountinfo",
            pts="ls /dev/pts; readlink /dev/ptmx",
            run="stat -c %a /run; ls /run",
        )
    )
    bundle.tmpfs("/t", "nosuid", "nodev", "noexec", "size=2048k", "mode=1770", "uid=1000", "gid=44")
    bundle.tmpfs("/tro", "ro", "size=64k").tmpfs("/run", "mode=755")
    bundle.mount_at("/dev/shm")["options"] = ["nosuid", "nodev", "noexec", "mode=1777", "size=12345k"]
    got = sections(oci.run(bundle).ok().stdout)
    compare(
        got,
        {
            "size": "2048", "owner": "1770 1000 44", "options": has("rw", "nosuid", "nodev", "noexec"),
            "full": f"No space left on device\n{2 << 20}", "ro": lambda v: "Read-only" in v,
            "shm": "12348\n1777\nusable", "mqueue": "1", "pts": "ptmx\npts/ptmx", "run": "755",
        },
    )  # fmt: skip


def test_read_only_root(oci: Oci) -> None:
    """root.readonly: nothing can be written but what is mounted writable."""
    bundle = oci.bundle(
        script(root="touch /x; mkdir /etc/y", mounted="echo ok > /tmp/x && cat /tmp/x",
               dev="echo x > /dev/null && echo ok",
               options=options_of("/"))
    )  # fmt: skip
    bundle.config["root"]["readonly"] = True
    bundle.tmpfs("/tmp")
    got = sections(oci.run(bundle).ok().stdout)
    compare(
        got,
        {"root": lambda v: v.count("Read-only") == 2, "mounted": "ok", "dev": "ok", "options": has("ro")},
    )
    assert not (bundle.rootfs / "x").exists()


def test_masked_and_read_only_paths(oci: Oci) -> None:
    """Masked files read empty, masked folders list empty, read-only ones refuse; missing ones are no error."""
    bundle = oci.bundle(
        script(
            file="cat /etc/os-release | wc -c; echo x > /etc/os-release && cat /etc/os-release | wc -c",
            folder="ls /home | wc -l; touch /home/x",
            kcore="head -c 16 /proc/kcore | wc -c",
            sys="echo 1 > /proc/sys/kernel/domainname; echo $?",
            ro="touch /root/x",
        )
    )
    bundle.linux["maskedPaths"] += ["/etc/os-release", "/home", "/nosuch/path"]
    bundle.linux["readonlyPaths"] += ["/root", "/nosuch/other"]
    got = sections(oci.run(bundle).ok().stdout)
    compare(
        got,
        {
            "file": "0\n0", "folder": lambda v: v.startswith("0") and "Read-only" in v,
            "kcore": lambda v: v.endswith("0"),
            "sys": lambda v: "Read-only" in v, "ro": lambda v: "Read-only" in v,
        },
    )  # fmt: skip


def test_devices(oci: Oci) -> None:
    """The default devices; those of linux.devices with mode and owner; the device cgroup."""
    bundle = oci.bundle(
        script(
            default="for d in null zero full random urandom tty; do stat -c '%n %a %t,%T' /dev/$d; done",
            links="for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done",
            works="head -c 4 /dev/zero | wc -c; echo x > /dev/full || echo full; head -c 8 /dev/urandom | wc -c",
            extra="stat -c '%F %a %u %g %t,%T' /dev/extra /dev/deep/er",
            extra_works="echo x > /dev/extra && head -c 3 /dev/deep/er | wc -c",
            forbidden="mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem || echo refused",
            fuse="stat -c '%t,%T' /dev/fuse2; cat /dev/fuse2",
        )
    )
    bundle.linux["devices"] = [
        {"path": "/dev/extra", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7, "gid": 8},
        {"path": "/dev/deep/er", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666},
        {"path": "/dev/fuse2", "type": "c", "major": 1, "minor": 4, "fileMode": 0o666},
    ]
    bundle.linux["resources"]["devices"] += [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
    ]
    got = sections(oci.run(bundle).ok().stdout)
    compare(
        got,
        {
            "default": "/dev/null 666 1,3\n/dev/zero 666 1,5\n/dev/full 666 1,7\n/dev/random 666 1,8\n"
            "/dev/urandom 666 1,9\n/dev/tty 666 5,0",
            "links": "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx",
            "works": lambda v: v.startswith("4\n") and v.endswith("full\n8"),
            "extra": "character special file 600 7 8 1,3\ncharacter special file 666 0 0 1,5",
            "extra_works": "3",
            "forbidden": lambda v: v.endswith("refused"),
            "fuse": lambda v: v.startswith("1,4") and "not permitted" in v,
        },
    )  # fmt: skip


def test_block_device(oci: Oci) -> None:
    """A host block device is a disk inside: same bytes, same size, writes come back."""
    image = oci.work_dir / "disk.img"
    with open(image, "wb") as f:
        f.write(b"on the host" + bytes(4096 - 11))
        f.truncate(8 << 20)
    loop = run("losetup", "--find", "--show", str(image))
    if loop.rc != 0:
        pytest.skip(f"no loop device: {loop.stderr.strip()}")
    device = loop.out
    try:
        rdev = os.stat(device).st_rdev
        bundle = oci.bundle(
            script(read="head -c 11 /dev/disk", kind="stat -c '%F %a' /dev/disk", size="blockdev --getsize64 /dev/disk",
                   write="echo -n 'from inside' | dd of=/dev/disk bs=1 seek=4096 conv=notrunc 2>/dev/null; sync")
        )  # fmt: skip
        number = {"type": "b", "major": os.major(rdev), "minor": os.minor(rdev)}
        bundle.linux["devices"] = [{"path": "/dev/disk", "fileMode": 0o660, **number}]
        bundle.linux["resources"]["devices"].append({"allow": True, "access": "rwm", **number})
        got = sections(oci.run(bundle).ok().stdout)
        compare(got, {"read": "on the host", "kind": "block special file 660", "size": str(8 << 20), "write": ""})
    finally:
        run("losetup", "--detach", device).ok()
    with open(image, "rb") as f:
        f.seek(4096)
        assert f.read(11) == b"from inside"
    image.unlink()


def test_propagation_flags(oci: Oci, volume: Path) -> None:
    """rshared, rprivate, runbindable mark the mount inside as asked (mountinfo's optional fields)."""
    field = (
        'awk -v p={} \'$5 == p {{ $1=$2=$3=$4=$5=$6=""; sub(/ - .*/, ""); print "[" $0 "]" }}\' /proc/self/mountinfo'
    )
    run("mount", "--bind", str(volume), str(volume)).ok()
    run("mount", "--make-shared", str(volume)).ok()
    try:
        bundle = oci.bundle(script(**{n: field.format(f"/{n}") for n in ("shared", "private", "unbindable", "root")}))
        bundle.bind(volume, "/shared", "rbind", "rshared").bind(volume, "/private", "rbind", "rprivate")
        bundle.bind(volume, "/unbindable", "rbind", "runbindable")
        got = sections(oci.run(bundle).ok().stdout)
    finally:
        run("umount", str(volume)).ok()
    compare(
        got,
        {
            "shared": lambda v: "shared:" in v,
            "private": lambda v: "shared:" not in v and "master:" not in v,
            "unbindable": lambda v: "unbindable" in v,
        },
    )


def test_slave_mount_follows_the_host(oci: Oci, volume: Path) -> None:
    """rslave: a file system that the host mounts later below the volume appears inside."""
    run("mount", "--bind", str(volume), str(volume)).ok()
    run("mount", "--make-shared", str(volume)).ok()
    try:
        bundle = oci.bundle().bind(volume, "/v", "rbind", "rslave")
        with oci.running(bundle) as c:
            assert c.sh("ls /v/sub").ok().out == "link"
            run("mount", "-t", "tmpfs", "later", str(volume / "sub")).ok()
            try:
                (volume / "sub/appeared").write_text("yes\n")
                eventually("the later mount", lambda: c.sh("cat /v/sub/appeared").rc == 0, 10)
            finally:
                run("umount", str(volume / "sub")).ok()
            eventually("its end", lambda: c.sh("ls /v/sub").ok().out == "link", 10)
    finally:
        run("umount", "--lazy", str(volume)).ok()


def test_file_system_semantics(oci: Oci, volume: Path) -> None:
    """What programs rely on, on the root and on a volume: append, rename over, sparse, long names."""
    probe = (
        "cd {0} && mkdir w && cd w && echo a > f && echo b >> f && wc -l < f; mv f g && echo c > f && mv f g && cat g; "
        "dd if=/dev/zero of=sparse bs=1 count=1 seek=1048575 2>/dev/null; stat -c %s sparse; "
        "n=$(head -c 250 /dev/zero | tr '\\0' n); touch $n && ls | grep -c '^nnn'; "
        "i=0; mkdir many; while [ $i -lt 300 ]; do : > many/$i; i=$((i+1)); done; ls many | wc -l; rm -r many; "
        "touch -d @1000000000 g; stat -c %Y g; truncate -s 5 g; stat -c %s g; chmod 0 g; stat -c %a g; cd ..; rm -r w; "
        "test -e w || echo clean"
    )
    bundle = oci.bundle(script(root=probe.format("/home"), volume=probe.format("/v"))).bind(volume, "/v")
    got = sections(oci.run(bundle).ok().stdout)
    want = "2\nc\n1048576\n1\n300\n1000000000\n5\n0\nclean"
    compare(got, {"root": want, "volume": want})


def test_overlay_root(oci: Oci, rootfs: Path) -> None:
    """A root file system that is an overlay mount, as docker makes: copied up on write, lower untouched."""
    bundle = oci.bundle(
        "echo new >> /etc/os-release; rm /etc/group; mkdir /etc/d; cat /etc/os-release | wc -l; ls -d /etc/d"
    )
    base = oci.work_dir / f"ov{oci.new_id()}"
    for name in ("upper", "work"):
        (base / name).mkdir(parents=True)
    merged = bundle.path / "merged"
    merged.mkdir()
    options = f"lowerdir={bundle.rootfs},upperdir={base / 'upper'},workdir={base / 'work'}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    bundle.config["root"]["path"] = str(merged)
    try:
        result = oci.run(bundle, check_gone=False).ok()
    finally:
        run("umount", str(merged)).ok()
    assert result.stdout == "3\n/etc/d\n"
    assert (base / "upper/etc/os-release").read_text().endswith("new\n")
    assert (base / "upper/etc/d").is_dir()
    assert stat.S_ISCHR((base / "upper/etc/group").lstat().st_mode), "no whiteout of a removed file"
    assert (bundle.rootfs / "etc/group").exists()
