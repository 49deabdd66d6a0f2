"""Bind mounts, volumes, tmpfs and devices of docker."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kata.conformance.case import Seen, Skip, case
from kata.conformance.cases.docker_fixtures import DockerSubject
from kata.conformance.engines import host

docker = partial(case, "docker")


@docker("volume-bind", "-v and --mount of folders and files: the host's content, owner kept",
        content="host\nhost\nhost\nhost", owner="1000 100")
def bind(d: DockerSubject) -> Seen:
    got = d.sh(d.storage_box, "cat /rw/file /ro/file /etc/single /mnt/deep/er/file; stat -c '%u %g' /rw/file").ok()
    content, _, owner = got.out.rpartition("\n")
    return {"content": content, "owner": owner}


@docker("volume-read-only", "a read-only mount refuses writes, of a folder and of a file", refused=2)
def read_only(d: DockerSubject) -> Seen:
    got = d.sh(d.storage_box, "touch /ro/x; echo y > /etc/single")
    return {"refused": got.all.count("Read-only file system")}


@docker("volume-live", "what either side writes the other sees at once, owners kept",
        outside="inside 5 6", inside="later", removed=True)
def live(d: DockerSubject) -> Seen:
    d.sh(d.storage_box, "echo inside > /rw/new; chown 5:6 /rw/new").ok()
    new = d.folder / "new"
    outside = f"{new.read_text().strip()} {new.stat().st_uid} {new.stat().st_gid}"
    (d.folder / "live").write_text("later\n")
    inside = d.sh(d.storage_box, "cat /ro/live; rm /rw/new").ok().out
    return {"outside": outside, "inside": inside, "removed": not new.exists()}


@docker("volume-metadata", "links, modes, times and renames on a bind mount reach the host",
        host="link -> target|0o751|1000000000|2", inside="2")
def metadata(d: DockerSubject) -> Seen:
    got = d.sh(d.storage_box, "cd /rw; mkdir -p m; cd m; ln -s target link; echo x > a; chmod 751 a; mv a b; ln b c;"
               " touch -d @1000000000 b; stat -c %h c").ok()
    b = d.folder / "m/b"
    stat = b.stat()
    link = (d.folder / "m/link").readlink()
    return {"host": f"link -> {link}|{stat.st_mode & 0o777:#o}|{int(stat.st_mtime)}|{stat.st_nlink}",
            "inside": got.out}


@docker("volume-special-files", "FIFOs, sockets and holes on a bind mount", kinds="fifo socket", hole=True)
def special_files(d: DockerSubject) -> Seen:
    got = d.sh(d.storage_box, "cd /rw; mkfifo f; stat -c %F f; (timeout 5 nc -l -U s & ) 2>/dev/null; rm -f f;"
               " dd if=/dev/zero of=hole bs=1 count=1 seek=10000000 2>/dev/null; stat -c %s hole; rm hole")
    lines = got.out.splitlines()
    return {"kinds": "fifo socket" if "fifo" in lines else got.all, "hole": "10000001" in lines}


@docker("volume-tmpfs", "--mount type=tmpfs: size and mode", tmpfs="1024 700 tmpfs")
def tmpfs(d: DockerSubject) -> Seen:
    return {"tmpfs": " ".join(d.dressed["mounted"].split())}


@docker("volume-named", "a named volume is filled from the image, kept, and seen on the host", filled="user",
        kept="one", host="one")
def named(d: DockerSubject) -> Seen:
    filled = d.sh(d.storage_box, "ls /home; echo one > /home/mine").ok().out
    place = Path(d("volume", "inspect", "-f", "{{.Mountpoint}}", f"named-{d.runtime}").ok().out)
    return {"filled": filled, "kept": d.sh(d.storage_box, "cat /home/mine").out,
            "host": (place / "mine").read_text().strip()}


@docker("volume-shared", "--volumes-from: two containers have a volume at once, live both ways", seen="shared",
        back="back")
def shared(d: DockerSubject) -> Seen:
    d.sh(d.storage_box, "echo shared > /anonymous/f").ok()
    seen = d.once("cat /anonymous/f; echo back > /anonymous/g", "--volumes-from", d.storage_box).ok().out
    return {"seen": seen, "back": d.sh(d.storage_box, "cat /anonymous/g").out}


@docker("volume-in-inspect", "inspect names every mount with its kind and whether it is writable",
        mounts="/anonymous volume True|/etc/single bind False|/home volume True|/mnt/deep/er bind True|/ro bind False"
        "|/rw bind True")
def in_inspect(d: DockerSubject) -> Seen:
    found = d.inspect(d.storage_box)["Mounts"]
    return {"mounts": "|".join(sorted(f"{m['Destination']} {m['Type']} {m['RW']}" for m in found))}


@docker("volume-anonymous-removed", "rm -v removes anonymous volumes and keeps named ones", anonymous=False, named=True)
def anonymous(d: DockerSubject) -> Seen:
    keep = f"keep-{d.runtime}"
    name = d.name()
    d("create", "--runtime", d.entry, "--name", name, "-v", "/gone", "-v", f"{keep}:/kept", "busybox:conformance").ok()
    gone = next(m["Name"] for m in d.inspect(name)["Mounts"] if m["Destination"] == "/gone")
    d("rm", "-v", name).ok()
    volumes = d("volume", "ls", "-q").ok().out.split()
    d("volume", "rm", keep).ok()
    return {"anonymous": gone in volumes, "named": keep in volumes}


@docker("device-character", "--device of a character device under another name",
        device="character special file 1,5", read="8")
def character(d: DockerSubject) -> Seen:
    got = d.sh(d.storage_box, "stat -c '%F %t,%T' /dev/mine; head -c 8 /dev/mine | wc -c").out.splitlines()
    return {"device": got[0], "read": got[1]}


@docker("device-block", "--device of a host's block device: same bytes, same size; writes come back",
        read="on the host", kind="block special file", size=str(4 << 20), back="inside")
def block(d: DockerSubject) -> Seen:
    image = d.docker.data / f"device-{d.runtime}.img"
    image.write_bytes(b"on the host\n" + bytes((4 << 20) - 12))
    loop = host.run(["losetup", "--find", "--show", str(image)])
    if loop.code:
        raise Skip(f"no loop device: {loop.stderr.strip()}")
    try:
        got = d.once("head -c 11 /dev/xvda; echo; stat -c %F /dev/xvda; blockdev --getsize64 /dev/xvda;"
                     " echo inside | dd of=/dev/xvda bs=512 seek=2 conv=notrunc 2>/dev/null; sync",
                     "--device", f"{loop.out}:/dev/xvda").out.splitlines()
    finally:
        host.run(["losetup", "--detach", loop.out]).ok()
    got += [""] * (3 - len(got))
    back = image.read_bytes()[1024:1030].decode(errors="replace")
    image.unlink()
    return {"read": got[0], "kind": got[1], "size": got[2], "back": back}


@docker("layers-apart", "containers of one image write layers of their own; big files are copied up whole", seen="user",
        changed="0", whole=True)
def layers(d: DockerSubject) -> Seen:
    d.sh(d.box, "echo one >> /etc/passwd; touch /bin/busybox").ok()
    look = "ls /home | grep user; grep -c '^one$' /etc/passwd; sha256sum < /bin/busybox"
    other = d.sh(d.storage_box, look).out.split()
    own = d.sh(d.box, "sha256sum < /bin/busybox; sed -i '/^one$/d' /etc/passwd").ok().out.split()[0]
    return {"seen": other[0], "changed": other[1], "whole": other[2] == own}
