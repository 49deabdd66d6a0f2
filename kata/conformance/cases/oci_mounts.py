"""config.json's `mounts`, `root` and what hides parts of them: masked and read-only paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kata.conformance.case import Seen
from kata.conformance.cases.look import Look, attempt, oci, options_of
from kata.conformance.engines import host
from kata.conformance.engines.oci import OciRuntime

READ_ONLY = "Read-only file system"


def size(place: str) -> str:
    """Shell: KiB of the file system at a place."""
    return f"df -k {place} | awk 'END {{ print $2 }}'"


def refusal(command: str) -> str:
    """Shell: how a command is refused by a read-only file system, once."""
    return f"{{ {command}; }} 2>&1 | grep -o '{READ_ONLY}' | head -n 1"


# --- what every container has ---------------------------------------------------

DEFAULT = Look("default mounts", {
    "proc": "stat -f -c %T /proc; ls -d /proc/self/status", "proc_options": options_of("/proc"),
    "dev": "stat -f -c %T /dev; stat -c %a /dev", "dev_options": options_of("/dev"),
    "pts": "ls /dev/pts; readlink /dev/ptmx",
    "shm": f"{size('/dev/shm')}; stat -c %a /dev/shm; touch /dev/shm/x && ls /dev/shm",
    "mqueue": "awk '$5 == \"/dev/mqueue\"' /proc/self/mountinfo | grep -c mqueue",
    "sys": refusal("mkdir /sys/x; touch /sys/kernel/x") + f"; {options_of('/sys')}",
    "cgroup": attempt("mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x"),
    "masked": "for f in kcore keys timer_list; do head -c 1 /proc/$f 2>/dev/null | wc -c; done;"
              " ls /sys/firmware | wc -l",
    "readonly": refusal("echo 1 > /proc/sys/kernel/domainname"),
    # A kernel without it has nothing to protect.
    "sysrq": f"test -e /proc/sysrq-trigger || echo {READ_ONLY}; " + refusal("echo h > /proc/sysrq-trigger"),
    "root": "touch /x && stat -c '%u %g %a' /x; stat -c '%a %u' / /tmp /root /home/user", "root_rw": options_of("/"),
    "links": "for l in fd stdin stdout stderr; do readlink /dev/$l; done",
    "devices": "for d in null zero full random urandom tty; do stat -c '%n %F %a %t,%T' /dev/$d; done",
    "work": "head -c 4 /dev/zero | wc -c; echo x 2>/dev/null > /dev/full || echo full; head -c 8 /dev/urandom | wc -c;"
            " echo x > /dev/null && echo null",
    "names": "ls /dev | grep -v core | sort | tr '\\n' ' '", "host": "grep -c /var/tmp/ /proc/self/mountinfo",
    "mknod": "mknod /tmp/disk b 8 0 2>/dev/null; " + attempt("head -c 1 /tmp/disk"),
    "mem": "mknod /tmp/mem c 1 1 2>/dev/null; " + attempt("head -c 1 /tmp/mem"),
    "order": "awk '{ print $5 }' /proc/self/mountinfo | grep -n -E '^(/|/dev|/dev/pts)$' | cut -d: -f2 | tr '\\n' ' '",
})  # fmt: skip

DEFAULT.case("mounts-proc", "mounts: proc, with its options", "proc_options", proc="proc\n/proc/self/status")
DEFAULT.case("mounts-dev", "mounts: a tmpfs at /dev with its mode and options", "dev_options", dev="tmpfs\n755")
DEFAULT.case("mounts-pts", "mounts: a devpts of its own", pts="ptmx\npts/ptmx")
DEFAULT.case("mounts-shm", "mounts: /dev/shm has the size and mode asked for", shm="65536\n1777\nx")
DEFAULT.case("mounts-mqueue", "mounts: a message queue file system", mqueue="1")
DEFAULT.case("mounts-sys-readonly", "mounts: sysfs read-only", sys=f"{READ_ONLY}\nnodev noexec nosuid relatime ro")
DEFAULT.case("mounts-cgroup-readonly", "mounts: cgroups cannot be changed from inside", cgroup="refused")
DEFAULT.case("mounts-nothing-of-the-host", "no path of the host shows among the mounts", host="0")
DEFAULT.case("linux-masked-default", "linux.maskedPaths: files are empty and folders too", masked="0\n0\n0\n0")
DEFAULT.case("linux-readonly-default", "linux.readonlyPaths: sysctls and sysrq cannot be written",
             sysrq=READ_ONLY, readonly=READ_ONLY)
DEFAULT.case("root-writable", "root: what the bundle holds, with owners and modes, and writable", "root_rw",
             root="0 0 644\n755 0\n1777 0\n700 0\n755 1000")
DEFAULT.case("linux-devices-default", "default devices: names, modes, numbers",
             devices="\n".join(f"/dev/{name} character special file 666 {number}" for name, number in (
                 ("null", "1,3"), ("zero", "1,5"), ("full", "1,7"), ("random", "1,8"), ("urandom", "1,9"),
                 ("tty", "5,0"))))
DEFAULT.case("linux-devices-work", "the default devices do what they are for", work="4\nfull\n8\nnull")
DEFAULT.case("linux-devices-links", "/dev/fd, stdin, stdout, stderr",
             links="/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2")
DEFAULT.case("linux-devices-nothing-else", "/dev holds nothing of the host",
             names="fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero")
DEFAULT.case("linux-device-cgroup", "linux.resources.devices: a node that was made inside cannot be opened",
             mknod="refused", mem="refused")
DEFAULT.case("mounts-order", "mounts are made in the order listed", order="/ /dev /dev/pts")


# --- of the bundle's own ----------------------------------------------------------


def _tmpfs(config: dict[str, Any]) -> None:
    def add(place: str, *options: str) -> None:
        config["mounts"].append({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": list(options)})

    add("/t", "nosuid", "nodev", "noexec", "size=2048k", "mode=1770", "uid=1000", "gid=44")
    add("/tro", "ro", "size=64k")
    add("/run", "mode=755")
    add("/deep/er/still", "mode=711")
    next(m for m in config["mounts"] if m["destination"] == "/dev/shm")["options"][-1] = "size=12345k"
    config["linux"]["maskedPaths"] += ["/etc/os-release", "/home", "/nosuch/path"]
    config["linux"]["readonlyPaths"] += ["/root", "/nosuch/other"]


OWN = Look("own mounts", {
    "size": size("/t"), "owner": "stat -c '%a %u %g' /t", "options": options_of("/t"),
    "full": "dd if=/dev/zero of=/t/f bs=1024 count=3000 2>&1 | grep -o 'No space left on device'; stat -c %s /t/f",
    "noexec": f"printf '#!/bin/sh\\n' > /t/true; chmod 755 /t/true; {attempt('/t/true')}",
    "ro": refusal("touch /tro/x"),
    "shm": size("/dev/shm"), "run": "stat -c %a /run; ls /run | wc -l", "deep": "stat -c %a /deep/er/still",
    "masked_file": "cat /etc/os-release | wc -c; echo x > /etc/os-release; cat /etc/os-release | wc -c",
    "masked_folder": f"ls /home | wc -l; {refusal('touch /home/x')}",
    "readonly": f"ls -d /root; {refusal('touch /root/x')}",
}, _tmpfs)  # fmt: skip

OWN.case("mounts-tmpfs-size", "tmpfs: size= holds", size="2048", full=f"No space left on device\n{2 << 20}")
OWN.case("mounts-tmpfs-owner", "tmpfs: mode=, uid=, gid=", owner="1770 1000 44")
OWN.case("mounts-tmpfs-flags", "tmpfs: nosuid, nodev, noexec", noexec="refused",
         options="nodev noexec nosuid relatime rw")
OWN.case("mounts-tmpfs-readonly", "tmpfs: ro", ro=READ_ONLY)
OWN.case("mounts-tmpfs-over-folder", "tmpfs over a folder that exists: empty", run="755\n0")
OWN.case("mounts-destination-made", "mounts[].destination that does not exist is made", deep="711")
OWN.case("mounts-shm-size", "/dev/shm with a size of its own, in whole pages", shm="12348")
OWN.case("linux-masked-file", "linux.maskedPaths: a file reads empty, and writes vanish", masked_file="0\n0")
OWN.case("linux-masked-folder", "linux.maskedPaths: a folder lists empty and is read-only; a path that is not there is "
         "no error", masked_folder=f"0\n{READ_ONLY}")
OWN.case("linux-readonly-folder", "linux.readonlyPaths: a folder can be read only", readonly=f"/root\n{READ_ONLY}")

def _readonly(config: dict[str, Any]) -> None:
    config["root"]["readonly"] = True
    config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": []})


READONLY = Look("read-only root", {
    "root": refusal("touch /x; mkdir /etc/y"), "mounted": "echo ok > /tmp/x && cat /tmp/x",
    "dev": "echo x > /dev/null && echo ok", "shm": "touch /dev/shm/x && echo ok",
}, _readonly)
READONLY.case("root-readonly", "root.readonly: nothing below it can be written", root=READ_ONLY)
READONLY.case("root-readonly-mounts", "root.readonly: mounts in it stay writable", mounted="ok", dev="ok", shm="ok")


# --- binds -----------------------------------------------------------------------------


def _bind(config: dict[str, Any], source: Path, place: str, *options: str) -> None:
    kind = [] if {"bind", "rbind"} & set(options) else ["rbind"]
    config["mounts"].append({"destination": place, "type": "bind", "source": str(source), "options": [*kind, *options]})


@contextmanager
def volume(o: OciRuntime) -> Iterator[Path]:
    """A folder of the host with some of everything in it."""
    path = o.data / f"volume-{o.new_id()}"
    (path / "sub").mkdir(parents=True)
    (path / "file").write_text("host\n")
    os.chown(path / "file", 1234, 4321)
    (path / "file").chmod(0o640)
    (path / "sub/link").symlink_to("../file")
    (path / "tool").write_text("#!/bin/sh\necho tool\n")
    (path / "tool").chmod(0o4755)
    os.mkfifo(path / "fifo")
    (path.parent / f"{path.name}-single").write_text("single\n")
    yield path


def _binds(o: OciRuntime) -> dict[str, str]:
    """What a container with binds of every kind found, and afterwards the host."""

    def make() -> dict[str, str]:
        with volume(o) as v:
            single = v.parent / f"{v.name}-single"

            def change(config: dict[str, Any]) -> None:
                _bind(config, v, "/rw")
                _bind(config, v, "/ro", "ro")
                _bind(config, v, "/flags", "nosuid", "nodev", "noexec")
                _bind(config, single, "/etc/single")
                _bind(config, single, "/made/on/the/way", "ro")
                _bind(config, v, "/link/inside")
                _bind(config, v, "/m")
                _bind(config, v / "sub", "/m")

            def prepare(root: Path) -> None:
                (root / "target").mkdir()
                (root / "link").symlink_to("target")

            scripts = {
                "owner": "stat -c '%u %g %a %F' /rw/file; stat -c '%a %F' /rw/tool /rw/fifo /rw/sub/link",
                "link": "readlink /rw/sub/link; cat /rw/sub/link; /rw/tool",
                "ro": f"cat /ro/file; {refusal('touch /ro/x; rm /ro/file; chmod 600 /ro/file')};"
                " test -e /ro/file && echo still",
                "flags": f"{options_of('/flags')} | tr ' ' '\\n' | grep -E 'noexec|nosuid|nodev';"
                f" {attempt('/flags/tool')}",
                "single": "cat /etc/single; echo changed >> /etc/single",
                "single_ro": f"cat /made/on/the/way; {refusal('echo x >> /made/on/the/way')}",
                "through_link": "cat /target/inside/file",
                "covered": "test -e /m/file || echo absent; ls /m",
                "write": "echo guest > /rw/new; chown 77:88 /rw/new; chmod 604 /rw/new; mkdir -m 711 /rw/dir;"
                " ln -s /nowhere /rw/dangling; ln /rw/new /rw/hard; mv /rw/sub /rw/moved; mknod /rw/pipe p",
                "unlinked": "exec 3>/rw/temp 4</rw/temp; rm /rw/temp; echo kept >&3; test -e /rw/temp || cat <&4",
                "anew": attempt("cat /proc/self/fd/4", "read"),
                "append": "echo one >> /rw/log; echo two >> /rw/log; tail -n 1 /rw/log; truncate -s 2 /rw/log;"
                " stat -c %s /rw/log",
                "rename": "echo a > /rw/a; echo b > /rw/b; mv /rw/a /rw/b; cat /rw/b; ls /rw/a 2>/dev/null | wc -l",
                "sparse": "truncate -s 5000000 /rw/big; stat -c %s /rw/big; rm /rw/big",
                "times": "touch -d '2001-02-03 04:05:06' /rw/dated; stat -c %Y /rw/dated",
                "many": "mkdir /rw/many; i=0; while [ $i -lt 200 ]; do : > /rw/many/$i; i=$((i+1)); done;"
                " ls /rw/many | wc -l",
            }
            seen = Look(f"binds of {v.name}", scripts, change, prepare).seen(o)
            new = (v / "new").stat()
            found = dict(seen)
            found["host_new"] = f"{new.st_uid} {new.st_gid} {stat.S_IMODE(new.st_mode):o} {new.st_nlink}"
            found["host_made"] = (f"{stat.S_IMODE((v / 'dir').stat().st_mode):o} {os.readlink(v / 'dangling')} "
                                  f"{stat.S_ISFIFO((v / 'pipe').stat().st_mode)} {(v / 'sub').exists()}")
            found["host_single"] = single.read_text()
            return found

    found: dict[str, str] = o.shared("binds", make)
    return found


@oci("mounts-bind-owner", "bind: owners, modes and kinds of files are the host's",
     owner="1234 4321 640 regular file\n4755 regular file\n644 fifo\n777 symbolic link")
def bind_owner(o: OciRuntime) -> Seen:
    return {"owner": _binds(o)["owner"]}


@oci("mounts-bind-links", "bind: links are followed inside, programs run", link="../file\nhost\ntool")
def bind_links(o: OciRuntime) -> Seen:
    return {"link": _binds(o)["link"]}


@oci("mounts-bind-readonly", "bind with ro: nothing can be changed", ro=f"host\n{READ_ONLY}\nstill")
def bind_readonly(o: OciRuntime) -> Seen:
    return {"ro": _binds(o)["ro"]}


@oci("mounts-bind-flags", "bind with nosuid, nodev, noexec", flags="nodev\nnoexec\nnosuid\nrefused")
def bind_flags(o: OciRuntime) -> Seen:
    return {"flags": _binds(o)["flags"]}


@oci("mounts-bind-file", "bind of a single file: changes come back", inside="single", host="single\nchanged\n")
def bind_file(o: OciRuntime) -> Seen:
    return {"inside": _binds(o)["single"], "host": _binds(o)["host_single"]}


@oci("mounts-bind-file-readonly", "bind of a single file with ro, its path made on the way",
     single=f"single\nchanged\n{READ_ONLY}")
def bind_file_readonly(o: OciRuntime) -> Seen:
    return {"single": _binds(o)["single_ro"]}


@oci("mounts-bind-through-link", "a destination through a link inside the root lands inside", through="host")
def bind_through_link(o: OciRuntime) -> Seen:
    return {"through": _binds(o)["through_link"]}


@oci("mounts-bind-writes", "what the container makes has its owner, mode and links on the host",
     new="77 88 604 2", made="711 /nowhere True False")
def bind_writes(o: OciRuntime) -> Seen:
    return {"new": _binds(o)["host_new"], "made": _binds(o)["host_made"]}


@oci("mounts-bind-unlinked", "an open file that was removed stays readable; whether it can be opened anew by /proc",
     unlinked="kept")
def bind_unlinked(o: OciRuntime) -> Seen:
    return {"unlinked": _binds(o)["unlinked"], "anew": _binds(o)["anew"]}


@oci("mounts-bind-posix", "appending, truncating, renaming over, sparse files, times",
     append="two\n2", rename="a\n0", sparse="5000000", times="981173106")
def bind_posix(o: OciRuntime) -> Seen:
    return {key: _binds(o)[key] for key in ("append", "rename", "sparse", "times")}


@oci("mounts-bind-many", "a folder of two hundred files lists whole", many="200")
def bind_many(o: OciRuntime) -> Seen:
    return {"many": _binds(o)["many"]}


@oci("mounts-bind-live", "what the host writes later is seen, and what it removes is gone",
     later="from the host\nhost\nmore", gone="gone")
def bind_live(o: OciRuntime) -> Seen:
    with volume(o) as v, o.running(changes=lambda config: _bind(config, v, "/v")) as c:
        c.sh("ls -l /v; cat /v/file").ok()
        (v / "later").write_text("from the host\n")
        with open(v / "file", "a", encoding="ascii") as file:
            file.write("more\n")
        (v / "tool").unlink()
        return {"later": c.sh("cat /v/later /v/file").ok().out, "gone": c.sh("test -e /v/tool || echo gone").out}


@contextmanager
def shared_mount(o: OciRuntime) -> Iterator[Path]:
    """A volume that is a shared mount on the host."""
    with volume(o) as v:
        host.run(["mount", "--bind", str(v), str(v)]).ok()
        try:
            host.run(["mount", "--make-shared", str(v)]).ok()
            yield v
        finally:
            host.run(["umount", "--recursive", str(v)]).ok()


def _shared(o: OciRuntime) -> dict[str, str]:
    """What a container with binds of a shared mount, which has a mount below, found."""
    def change(config: dict[str, Any], v: Path) -> None:
        for kind in ("shared", "private", "slave", "unbindable"):
            _bind(config, v, f"/{kind}", "rbind", f"r{kind}")
        _bind(config, v, "/r", "rbind")
        _bind(config, v, "/b", "bind")

    def make() -> dict[str, str]:
        with shared_mount(o) as v:
            host.run(["mount", "-t", "tmpfs", "below", str(v / "sub")]).ok()
            (v / "sub/deep").write_text("deep\n")
            field = ("awk -v p=/{0} '$5 == p {{ for (i = 7; $i != \"-\"; i++) print $i }}' /proc/self/mountinfo"
                     " | sed 's/:.*//' | grep -o '{1}'; true")
            return Look("binds of a shared mount", {
                "shared": field.format("shared", "shared"), "private": field.format("private", ".*"),
                "slave": field.format("slave", "master"), "unbindable": field.format("unbindable", "unbindable"),
                "below": "cat /r/sub/deep; test -e /b/sub/deep || echo absent; test -e /b/sub/link && echo covered",
            }, lambda config: change(config, v)).seen(o)  # fmt: skip

    found: dict[str, str] = o.shared("shared mount", make)
    return found


@oci("mounts-bind-recursive", "rbind takes the mounts below along, bind does not", below="deep\nabsent\ncovered")
def bind_recursive(o: OciRuntime) -> Seen:
    return {"below": _shared(o)["below"]}


@oci("mounts-propagation-flags", "rshared, rprivate, rslave, runbindable are what the mount is inside",
     shared="shared", private="", slave="master", unbindable="unbindable")
def propagation_flags(o: OciRuntime) -> Seen:
    return {key: _shared(o)[key] for key in ("shared", "private", "slave", "unbindable")}


@oci("mounts-slave-follows", "rslave: what the host mounts later below a volume appears", before="link", after="yes")
def slave_follows(o: OciRuntime) -> Seen:
    with shared_mount(o) as v, o.running(changes=lambda config: _bind(config, v, "/v", "rbind", "rslave")) as c:
        before = c.sh("ls /v/sub").out
        host.run(["mount", "-t", "tmpfs", "later", str(v / "sub")]).ok()
        (v / "sub/appeared").write_text("yes\n")
        wait = ("i=0; until cat /v/sub/appeared 2>/dev/null; do i=$((i+1)); test $i -lt 100 || break; usleep 100000;"
                " done")
        return {"before": before, "after": c.sh(wait).out}


@oci("mounts-paths-stay-inside", "`..` and links in destinations lead nowhere outside of the root", outside=[],
     host=[False, False])
def paths_stay_inside(o: OciRuntime) -> Seen:
    outside = o.data / f"outside-{o.new_id()}"
    outside.mkdir()
    with volume(o) as v:
        def change(config: dict[str, Any]) -> None:
            for place in ("/../../../kata-inside", "/etc/linked/deep", f"/dots{outside}/dots"):
                _bind(config, v, place)
            config["mounts"].append({"destination": "/../../kata-tmpfs", "type": "tmpfs", "source": "tmpfs"})

        def prepare(root: Path) -> None:
            (root / "etc/linked").symlink_to(outside)
            (root / "dots").symlink_to("../../../../../..")

        o.run("ls /", change, prepare=prepare)
    return {"outside": sorted(os.listdir(outside)),
            "host": [Path("/kata-inside").exists(), Path("/kata-tmpfs").exists()]}


@oci("mounts-later-covers", "two mounts at one place: the later covers the earlier", covered="absent\nlink")
def later_covers(o: OciRuntime) -> Seen:
    return {"covered": _binds(o)["covered"]}


# --- devices ------------------------------------------------------------------------------


def _devices(config: dict[str, Any]) -> None:
    config["linux"]["devices"] = [
        {"path": "/dev/extra", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7, "gid": 8},
        {"path": "/dev/deep/er", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666},
        {"path": "/dev/barred", "type": "c", "major": 1, "minor": 4, "fileMode": 0o666},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o640},
    ]
    config["linux"]["resources"]["devices"] += [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"},
    ]


DEVICES = Look("devices", {
    "extra": "stat -c '%F %a %u %g %t,%T' /dev/extra /dev/deep/er",
    "works": "echo x > /dev/extra && head -c 3 /dev/deep/er | wc -c",
    "barred": f"stat -c '%t,%T' /dev/barred; {attempt('cat /dev/barred')}", "pipe": "stat -c '%F %a' /dev/pipe",
}, _devices)
DEVICES.case("linux-devices-own", "linux.devices: path, type, numbers, mode, owner",
             extra="character special file 600 7 8 1,3\ncharacter special file 666 0 0 1,5", works="3")
DEVICES.case("linux-devices-access", "linux.resources.devices: what is not allowed is there and cannot be opened",
             barred="1,4\nrefused")
DEVICES.case("linux-devices-fifo", "linux.devices of type p", pipe="fifo 640")
