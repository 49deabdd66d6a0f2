"""Special files in a share: a process that does what QEMU's 9p server does, under the filter."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.errors import HostError
from kata.spawn import reap, spawn, stop
from kata.storage import special
from kata_agent.linux import syscalls

# Make a file, then set its mode through O_PATH, and give up unless it is a plain file: QEMU 7.2's order.
SERVER = """
import os, stat, sys
folder = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
flags = os.O_PATH | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
print("ready", flush=True)
for line in sys.stdin:
    kind, name, mode = line.split()
    mode = int(mode, 8)
    if kind == "fifo": os.mkfifo(name, 0o644, dir_fd=folder)
    elif kind == "char": os.mknod(name, 0o644 | stat.S_IFCHR, os.makedev(1, 3), dir_fd=folder)
    elif kind == "file": os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=folder))
    elif kind == "dir": os.mkdir(name, dir_fd=folder)
    try:
        fd = os.open(name, flags, dir_fd=folder)
        found = os.fstat(fd).st_mode
        if not stat.S_ISREG(found) and not stat.S_ISDIR(found):
            print("refused", flush=True)
            continue
        os.chmod(f"/proc/self/fd/{fd}", mode)
        os.close(fd)
        print("ok", flush=True)
    except OSError as e:
        print(e.strerror, flush=True)
"""


class Server:
    def __init__(self, folder: Path) -> None:
        requests, self._in = os.pipe2(os.O_CLOEXEC)
        out, answers = os.pipe2(os.O_CLOEXEC)

        def before() -> None:
            syscalls.set_no_new_privs()
            special.install()

        self.pid = spawn([sys.executable, "-I", "-S", "-c", SERVER, str(folder)], stdio=(requests, answers, 2),
                         before_exec=before)
        os.close(requests)
        os.close(answers)
        self.files = special.SpecialFiles(self.pid)
        self.out = os.fdopen(out)
        assert self.out.readline() == "ready\n"

    def ask(self, request: str) -> str:
        os.write(self._in, request.encode() + b"\n")
        poll = select.poll()
        poll.register(self.files, select.POLLIN)
        poll.register(self.out, select.POLLIN)
        while True:
            ready = [fd for fd, _event in poll.poll(5000)]
            assert ready, f"no answer to {request}"
            if self.files.fileno() in ready:
                assert self.files.handle()
            else:
                return self.out.readline().strip()

    def close(self) -> None:
        self.files.close()
        os.close(self._in)
        self.out.close()
        stop(self.pid)
        reap(self.pid)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if os.uname().machine != "x86_64":
        pytest.skip("the filter is for x86_64")
    server = Server(tmp_path)
    yield server
    server.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_special_files_get_their_mode(server: Server, tmp_path: Path) -> None:
    assert server.ask("fifo f 666") == "ok"
    assert server.ask("char c 600") == "ok"
    assert stat.S_ISFIFO((tmp_path / "f").lstat().st_mode) and mode(tmp_path / "f") == 0o666
    assert stat.S_ISCHR((tmp_path / "c").lstat().st_mode) and mode(tmp_path / "c") == 0o600
    assert server.ask("chmod f 4755") == "ok"
    assert mode(tmp_path / "f") == 0o4755


def test_others_go_on_as_they_are(server: Server, tmp_path: Path) -> None:
    (tmp_path / "victim").touch(0o600)
    (tmp_path / "link").symlink_to("victim")
    assert server.ask("file a 640") == "ok"
    assert server.ask("dir d 750") == "ok"
    assert (mode(tmp_path / "a"), mode(tmp_path / "d")) == (0o640, 0o750)
    assert server.ask("chmod link 777") == "refused"
    assert mode(tmp_path / "victim") == 0o600
    assert server.ask("chmod none 777") == "No such file or directory"


def test_many(server: Server, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        assert server.ask(f"fifo f{number} 600") == "ok"
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_proxy_goes_on(server: Server, tmp_path: Path) -> None:
    assert server.ask("fifo one 600") == "ok"
    server.files.close()
    server.files = special.SpecialFiles(server.pid)
    assert server.ask("fifo two 640") == "ok"
    assert mode(tmp_path / "two") == 0o640


def test_end_of_the_process(server: Server) -> None:
    stop(server.pid)
    poll = select.poll()
    poll.register(server.files, select.POLLIN)
    assert poll.poll(5000)[0][1] & select.POLLHUP
    assert not server.files.handle()


def test_process_without_the_filter() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        with pytest.raises(HostError, match="special files"):
            special.SpecialFiles(process.pid)
        process.kill()
