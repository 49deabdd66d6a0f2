"""``fileprobe.py FOLDER``: what programs rely on of a file system, as JSON: name of the check -> what came of it.

Standard library only: it runs in a guest, and on the host for comparison.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKS: dict[str, Callable[[Path], Any]] = {}
libc = ctypes.CDLL(None, use_errno=True)


def check(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CHECKS[function.__name__] = function
    return function


def error(action: Callable[..., Any], *args: Any) -> str:
    """Name of the error, or "ok"."""
    try:
        action(*args)
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, str(e))
    return "ok"


def system_call(function: Any, *args: Any) -> str:
    ctypes.set_errno(0)
    return "ok" if function(*args) >= 0 else errno.errorcode[ctypes.get_errno()]


def child(action: Callable[[], Any]) -> str:
    """What a process of its own makes of ``action``."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = error(action)
        except BaseException as e:
            answer = repr(e)
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        answer = f.read()
    os.waitpid(pid, 0)
    return answer


def children(count: int, action: Callable[[int], None]) -> list[int]:
    """Exit codes of ``count`` processes at once."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                action(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


# --- locks --------------------------------------------------------------------------------


@check
def flock(at: Path) -> Any:
    path = at / "f"
    with open(path, "w") as held:
        def attempt() -> None:
            with open(path) as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

        fcntl.flock(held, fcntl.LOCK_EX)
        taken = child(attempt)
        fcntl.flock(held, fcntl.LOCK_UN)
        return [taken, child(attempt)]


@check
def record_locks(at: Path) -> Any:
    with open(at / "f", "w+") as held:
        def attempt(start: int, kind: int = fcntl.LOCK_EX) -> None:
            with open(at / "f", "r+") as other:
                fcntl.lockf(other, kind | fcntl.LOCK_NB, 10, start)

        fcntl.lockf(held, fcntl.LOCK_EX, 10, 100)
        answers = [child(lambda: attempt(105)), child(lambda: attempt(110)), child(lambda: attempt(0))]
        fcntl.lockf(held, fcntl.LOCK_SH, 10, 100)
        answers += [child(lambda: attempt(100, fcntl.LOCK_SH)), child(lambda: attempt(100))]
        # Closing any descriptor of the file releases them.
        os.close(os.open(at / "f", os.O_RDONLY))
        return [*answers, child(lambda: attempt(100))]


@check
def open_file_locks(at: Path) -> Any:
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    with open(at / "f", "w+") as one, open(at / "f", "r+") as two:
        return [error(fcntl.fcntl, one, fcntl.F_OFD_SETLK, lock), error(fcntl.fcntl, two, fcntl.F_OFD_SETLK, lock)]


@check
def lock_is_awaited(at: Path) -> Any:
    """A process that waits gets the lock when its holder ends."""
    path, (read, write) = at / "f", os.pipe()
    path.touch()
    pid = os.fork()
    if pid == 0:
        with open(path) as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            os.write(write, b"1")
            select.select([], [], [], 0.2)
            os._exit(0)
    os.read(read, 1)
    with open(path) as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        return os.waitpid(pid, 0)[1]


@check
def lease(at: Path) -> Any:
    (at / "f").touch()
    with open(at / "f") as f:
        return error(fcntl.fcntl, f, fcntl.F_SETLEASE, fcntl.F_RDLCK)


# --- writers ------------------------------------------------------------------------------


@check
def appenders(at: Path) -> Any:
    def append(number: int) -> None:
        fd = os.open(at / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for _ in range(100):
            os.write(fd, f"{number}".encode() * 79 + b"\n")

    codes = children(4, append)
    lines = (at / "log").read_text().splitlines()
    return [codes, len(lines), sorted(set(lines)) == [f"{n}" * 79 for n in range(4)]]


@check
def exclusive_creation(at: Path) -> Any:
    def create(_number: int) -> None:
        for name in range(30):
            try:
                fd = os.open(at / f"{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue
            os.write(os.open(at / "won", os.O_WRONLY | os.O_APPEND | os.O_CREAT), f"{name}\n".encode())
            os.close(fd)

    codes = children(4, create)
    return [codes, sorted(map(int, (at / "won").read_text().split())) == list(range(30))]


@check
def rename(at: Path) -> Any:
    (at / "old").write_text("old")
    (at / "new").write_text("new")
    number = (at / "new").stat().st_ino
    with open(at / "old") as held:
        os.rename(at / "new", at / "old")
        found: list[Any] = [held.read(), (at / "old").read_text(), (at / "old").stat().st_ino == number,
                            os.fstat(held.fileno()).st_nlink]
    (at / "d1").mkdir()
    (at / "d2").mkdir()
    os.rename(at / "d1", at / "d2")
    (at / "d2/x").touch()
    (at / "d3").mkdir()
    return [*found, error(os.rename, at / "d3", at / "d2"), error(os.rename, at / "old", at / "d2"),
            error(os.rename, at / "d2", at / "d2/in")]


@check
def rename_noreplace(at: Path) -> Any:
    (at / "a").write_text("a")
    (at / "b").write_text("b")
    paths = -100, bytes(at / "a"), -100, bytes(at / "b")
    free = -100, bytes(at / "a"), -100, bytes(at / "c")
    return [system_call(libc.renameat2, *paths, 1), system_call(libc.renameat2, *free, 1)]


@check
def rename_exchange(at: Path) -> Any:
    (at / "a").write_text("a")
    (at / "b").write_text("b")
    return [system_call(libc.renameat2, -100, bytes(at / "a"), -100, bytes(at / "b"), 2), (at / "a").read_text()]


@check
def unlinked_while_open(at: Path) -> Any:
    (at / "d").mkdir()
    with open(at / "d/f", "w+") as f:
        f.write("kept")
        f.flush()
        os.unlink(at / "d/f")
        os.rmdir(at / "d")
        f.seek(0)
        found: list[Any] = [f.read()]
        f.write(" and more")
        f.flush()
        status = os.fstat(f.fileno())
        os.ftruncate(f.fileno(), 4)
        os.fchmod(f.fileno(), 0o600)
        f.seek(0)
        return [*found, status.st_size, status.st_nlink, f.read(), os.listdir(at)]


@check
def removed_working_folder(at: Path) -> Any:
    (at / "d").mkdir()

    def within() -> None:
        os.chdir(at / "d")
        os.rmdir(at / "d")
        os.getcwd()

    return child(within)


@check
def text_file_busy(at: Path) -> Any:
    (at / "sleep").write_bytes(Path(os.path.realpath("/usr/bin/sleep")).read_bytes())
    (at / "sleep").chmod(0o755)
    process = subprocess.Popen([at / "sleep", "60"])
    try:
        return error(os.open, at / "sleep", os.O_WRONLY)
    finally:
        process.kill()
        process.wait()


# --- content ------------------------------------------------------------------------------


@check
def sparse(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        f.truncate(1 << 30)
        f.seek(1 << 29)
        f.write(b"x" * 4096)
        os.fsync(f.fileno())
        status = os.fstat(f.fileno())
        return [status.st_size, status.st_blocks < 1024, os.pread(f.fileno(), 4, 0) == bytes(4)]


@check
def holes(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        f.truncate(1 << 24)
        f.seek(1 << 23)
        f.write(b"x" * 4096)
        os.fsync(f.fileno())
        return [os.lseek(f.fileno(), 0, os.SEEK_DATA), os.lseek(f.fileno(), 1 << 23, os.SEEK_HOLE)]


@check
def allocation(at: Path) -> Any:
    """posix_fallocate is libc's own where the file system has none; a hole cannot be punched by hand."""
    with open(at / "f", "wb+", buffering=0) as f:
        os.posix_fallocate(f.fileno(), 0, 1 << 16)
        return [os.fstat(f.fileno()).st_size]


@check
def punched_hole(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        f.write(b"x" * 65536)
        return system_call(libc.fallocate64, f.fileno(), 3, ctypes.c_longlong(0), ctypes.c_longlong(4096))


@check
def beyond_4_gib(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        place = (5 << 30) + 123
        os.pwrite(f.fileno(), b"far", place)
        return [os.fstat(f.fileno()).st_size == place + 3, os.pread(f.fileno(), 9, place).decode(),
                os.pread(f.fileno(), 3, place - (4 << 30)) == bytes(3)]


@check
def truncation(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        f.write(b"0123456789")
        os.truncate(at / "f", 4)
        os.truncate(at / "f", 8)
        return [os.pread(f.fileno(), 20, 0) == b"0123\0\0\0\0",
                error(os.ftruncate, os.open(at / "f", os.O_RDONLY), 0)]


@check
def shared_mapping(at: Path) -> Any:
    """What one process maps and changes, others see: mapped and by read; and what is written shows in the mapping."""
    with open(at / "f", "wb+", buffering=0) as f:
        f.write(bytes(8192))
        with mmap.mmap(f.fileno(), 8192) as shared:
            def change() -> None:
                with open(at / "f", "rb+", buffering=0) as other, mmap.mmap(other.fileno(), 8192) as again:
                    again[0:5] = b"child"

            found = [child(change), bytes(shared[0:5]).decode()]
            shared[4096:4100] = b"here"
            shared.flush()
            return [*found, os.pread(f.fileno(), 4, 4096).decode()]


@check
def mapping_sees_a_write(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        f.write(bytes(4096))
        with mmap.mmap(f.fileno(), 4096) as shared:
            before = shared[0]
            os.pwrite(f.fileno(), b"written", 0)
            return [before, bytes(shared[0:7]).decode()]


@check
def read_sees_a_mapping(at: Path) -> Any:
    """Without msync."""
    with open(at / "f", "wb+", buffering=0) as f:
        f.write(bytes(4096))
        with mmap.mmap(f.fileno(), 4096) as shared:
            shared[0:6] = b"mapped"
            return os.pread(f.fileno(), 6, 0).decode(errors="replace")


@check
def private_mapping(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        f.write(b"file" + bytes(4092))
        with mmap.mmap(f.fileno(), 4096, flags=mmap.MAP_PRIVATE) as private:
            private[0:4] = b"mine"
            return [bytes(private[0:4]).decode(), os.pread(f.fileno(), 4, 0).decode()]


@check
def syncing(at: Path) -> Any:
    with open(at / "f", "wb+", buffering=0) as f:
        f.write(b"x")
        folder = os.open(at, os.O_RDONLY)
        return [error(os.fsync, f.fileno()), error(os.fdatasync, f.fileno()), error(os.fsync, folder),
                system_call(libc.syncfs, f.fileno()),
                error(os.write, os.open(at / "s", os.O_WRONLY | os.O_CREAT | os.O_SYNC), b"x")]


@check
def direct(at: Path) -> Any:
    page = mmap.mmap(-1, 4096)
    fd = os.open(at / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    return [os.writev(fd, [page]), os.preadv(fd, [page], 0)]


@check
def copying(at: Path) -> Any:
    (at / "a").write_bytes(b"x" * 100000)
    with open(at / "a", "rb") as source, open(at / "b", "wb") as target:
        copied = os.copy_file_range(source.fileno(), target.fileno(), 100000)
        sent = os.sendfile(target.fileno(), source.fileno(), 0, 100000)
        return [copied, sent]


@check
def unnamed(at: Path) -> Any:
    fd = os.open(at, os.O_TMPFILE | os.O_RDWR)
    return os.write(fd, b"x")


# --- names and metadata -------------------------------------------------------------------


@check
def names(at: Path) -> Any:
    odd = b"\xff\n\\ \"'*"
    for name in ("n" * 255, "\u00e9" * 127):
        (at / name).touch()
    os.close(os.open(bytes(at) + b"/" + odd, os.O_CREAT))
    return [error((at / ("n" * 256)).touch), len(os.listdir(at)), odd in os.listdir(bytes(at)),
            error(os.stat, at / "absent"), error(os.mkdir, at / ("n" * 255)),
            error(os.open, at / ("n" * 255 + "/x"), 0)]


@check
def deep(at: Path) -> Any:
    fd = os.open(at, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=fd)
        inner = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("end", os.O_CREAT, dir_fd=fd))
    return os.listdir(fd)


@check
def hard_links(at: Path) -> Any:
    (at / "a").write_text("one")
    os.link(at / "a", at / "b")
    a, b = (at / "a").stat(), (at / "b").stat()
    (at / "b").write_text("two")
    (at / "d").mkdir()
    found: list[Any] = [a.st_ino == b.st_ino, b.st_nlink, (at / "a").read_text(), error(os.link, at / "d", at / "e")]
    os.unlink(at / "a")
    os.symlink("b", at / "s")
    os.link(at / "s", at / "t", follow_symlinks=False)
    return [*found, (at / "b").read_text(), (at / "b").stat().st_nlink, os.readlink(at / "t")]


@check
def symbolic_links(at: Path) -> Any:
    os.symlink("x" * 4000, at / "long")
    os.symlink("loop", at / "loop")
    os.symlink("absent", at / "dangling")
    return [len(os.readlink(at / "long")), error(os.stat, at / "loop"), error(os.stat, at / "dangling"),
            error(os.open, at / "dangling", os.O_RDONLY | os.O_NOFOLLOW)]


@check
def modes(at: Path) -> Any:
    (at / "f").touch()
    found: list[Any] = []
    for mode in (0o4755, 0o2755, 0o1777, 0o000):
        (at / "f").chmod(mode)
        found.append(oct((at / "f").stat().st_mode & 0o7777))
    os.chown(at / "f", 12345, 54321)
    status = (at / "f").stat()
    (at / "d").mkdir()
    os.chown(at / "d", 0, 777)
    (at / "d").chmod(0o2775)
    (at / "d/in").mkdir()
    inner = (at / "d/in").stat()
    return [*found, status.st_uid, status.st_gid, inner.st_gid, bool(inner.st_mode & stat.S_ISGID)]


@check
def permissions_hold(at: Path) -> Any:
    """For a user who is not root."""
    at.chmod(0o755)
    (at / "secret").write_text("x")
    (at / "secret").chmod(0o600)
    (at / "shared").mkdir()
    (at / "shared").chmod(0o1777)
    (at / "shared/roots").touch()

    def read() -> None:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        (at / "secret").read_text()

    def sticky() -> None:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        (at / "shared/own").touch()
        os.unlink(at / "shared/roots")

    return [child(read), child(sticky), (at / "shared/own").stat().st_uid]


@check
def times(at: Path) -> Any:
    (at / "f").touch()
    os.utime(at / "f", ns=(1_000_000_000_123_456_789, 2_000_000_000_987_654_321))
    status = (at / "f").stat()
    found: list[Any] = [status.st_atime_ns, status.st_mtime_ns]
    os.symlink("f", at / "s")
    os.utime(at / "s", ns=(5, 5), follow_symlinks=False)
    with open(at / "f", "a") as f:
        f.write("x")
    later = (at / "f").stat()
    return [*found, os.lstat(at / "s").st_mtime_ns, later.st_mtime_ns != 2_000_000_000_987_654_321,
            later.st_ctime_ns >= status.st_ctime_ns]


@check
def extended_attributes(at: Path) -> Any:
    (at / "f").touch()
    os.setxattr(at / "f", "user.one", b"1")
    os.setxattr(at / "f", "user.two", b"x" * 1000)
    found: list[Any] = [os.getxattr(at / "f", "user.one").decode(), len(os.getxattr(at / "f", "user.two")),
                        sorted(n for n in os.listxattr(at / "f") if n.startswith("user."))]
    os.removexattr(at / "f", "user.one")
    return [*found, error(os.getxattr, at / "f", "user.one"), error(os.setxattr, at / "f", "user.two", b"", 1)]


@check
def file_capabilities(at: Path) -> Any:
    (at / "f").touch()
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
    return [error(os.setxattr, at / "f", "security.capability", value),
            error(os.getxattr, at / "f", "security.capability")]


@check
def access_lists(at: Path) -> Any:
    """user::rw-, user:1000:r--, group::---, mask::r--, other::---"""
    (at / "f").write_text("x")
    (at / "f").chmod(0o600)
    entries = ((1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 0, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
    os.setxattr(at / "f", "system.posix_acl_access",
                struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries))

    def read() -> None:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        (at / "f").read_text()

    at.chmod(0o755)
    return [child(read), oct((at / "f").stat().st_mode & 0o777)]


@check
def file_system_size(at: Path) -> Any:
    found = os.statvfs(at)
    return [found.f_namemax, found.f_blocks > 0, found.f_bavail > 0, found.f_blocks * found.f_frsize >> 20]


@check
def many_files(at: Path) -> Any:
    for number in range(1000):
        (at / f"{number}").touch()
    found = {entry.name for entry in os.scandir(at)}
    kinds = {entry.is_file(follow_symlinks=False) for entry in os.scandir(at)}
    for entry in os.scandir(at):  # while it is being read
        os.unlink(entry)
    return [len(found), list(kinds), os.listdir(at)]


# --- special files and events -------------------------------------------------------------


@check
def fifos_and_sockets(at: Path) -> Any:
    os.mkfifo(at / "fifo")
    pid = os.fork()
    if pid == 0:
        (at / "fifo").write_text("through")
        os._exit(0)
    through = (at / "fifo").read_text()
    os.waitpid(pid, 0)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        os.chdir(at)
        server.bind("sock")
        server.listen()
        client.connect("sock")
        return [through, stat.S_ISSOCK((at / "sock").stat().st_mode)]


@check
def device_nodes(at: Path) -> Any:
    os.mknod(at / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    status = (at / "null").stat()
    return [stat.S_ISCHR(status.st_mode), os.major(status.st_rdev), os.minor(status.st_rdev)]


@check
def inotify(at: Path) -> Any:
    """Of changes made in the same kernel."""
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, bytes(at), 0x2 | 0x100 | 0x200 | 0x80)  # MODIFY, CREATE, DELETE, MOVED_TO
    (at / "a").write_text("x")
    os.rename(at / "a", at / "b")
    os.unlink(at / "b")
    data, masks = os.read(fd, 65536), []
    while data:
        _wd, mask, _cookie, size = struct.unpack_from("iIII", data)
        masks.append(mask)
        data = data[16 + size :]
    return [0x100 in masks, 0x2 in masks, 0x80 in masks, 0x200 in masks]


def main(folder: Path) -> None:
    os.umask(0o022)
    results: dict[str, Any] = {}
    for name, function in CHECKS.items():
        at = folder / name
        at.mkdir()
        try:
            results[name] = function(at)
        except OSError as e:
            results[name] = errno.errorcode.get(e.errno or 0, str(e))
        os.chdir("/")
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
