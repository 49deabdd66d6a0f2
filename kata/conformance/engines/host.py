"""What the private engines have in common: a network namespace, daemons that say when they are ready, an image root."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import termios
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kata import process
from kata.conformance import deadline
from kata.errors import HostError, KataError

if TYPE_CHECKING:
    import subprocess

READY = 60.0  #: seconds in which a daemon answers
#: Shell: runs until it is told to end, by TERM at once.
SLEEP = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"
CLIENT = 120.0  #: seconds in which a client's command ends; emulated machines on a busy host are slow

FOLDERS = ("bin", "dev", "etc", "home/user", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "var/tmp")
PASSWD = ("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:User:/home/user:/bin/sh\n"
          "nobody:x:65534:65534:nobody:/:/bin/false\n")
GROUP = ("root:x:0:\ntty:x:5:\naudio:x:29:user\nvideo:x:44:user\nusers:x:100:\nuser:x:1000:\n"
         "nogroup:x:65534:\n")


@dataclass(frozen=True, slots=True)
class Output:
    """How a client's command ended."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def out(self) -> str:
        """Standard output without white space at its ends."""
        return self.stdout.strip()

    @property
    def all(self) -> str:
        """Standard output and errors."""
        return self.stdout + self.stderr

    def ok(self) -> Output:
        """Itself.

        :raise HostError: the command failed.
        """
        if self.code:
            said = process.last_lines(self.stderr.encode()) or process.last_lines(self.stdout.encode())
            raise HostError(f"{shlex.join(self.argv)} failed with exit code {self.code}: {said}")
        return self


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment in the C locale, without what would point a client at another engine."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "DOCKER_", "CONTAINER", "COLUMNS", "LINES"))}
    return {**env, "LANG": "C.UTF-8", **(extra or {})}


def run(
    argv: Sequence[str], *, input: str = "", timeout: float = CLIENT, env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Output:  # fmt: skip
    """Run a client's command to its end.

    :raise HostError: not found, or killed by the timeout.
    """
    done = process.run(argv, timeout=deadline.left(timeout), check=False, input=input.encode(), env=environment(env),
                       cwd=cwd)
    return Output(done.argv, done.code, done.text, done.stderr.decode(errors="replace"))


class NetworkNamespace:
    """A named network namespace: an engine's bridges, rules and ports live and vanish with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    def create(self) -> None:
        run(["ip", "netns", "add", self.name]).ok()
        run(self.argv("ip", "link", "set", "lo", "up")).ok()

    def argv(self, *argv: str) -> list[str]:
        """A command inside.  Not `ip netns exec`: that also mounts another /sys, which hides the cgroups."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def delete(self) -> None:
        if self.path.exists():
            run(["ip", "netns", "delete", self.name]).ok()


class Daemon:
    """A daemon that tells by sd_notify(3) when it is ready, with its output in a file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says that it is ready.

        :raise HostError: it ended, or did not say so in time; with its last lines.
        """
        place = self.log.with_suffix(".notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, open(self.log, "ab") as log:
            told.bind(str(place))
            try:
                env = environment({"NOTIFY_SOCKET": str(place)})
                self._process = process.start(self.argv, output=log, env=env)
                self._await(told, self._process)
            finally:
                place.unlink()

    def _await(self, told: socket.socket, daemon: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + READY
        ended = os.pidfd_open(daemon.pid)
        try:
            while True:
                readable, _, _ = select.select([told.fileno(), ended], [], [], max(0.0, end - time.monotonic()))
                if told.fileno() in readable:
                    if b"READY=1" in told.recv(4096).split(b"\n"):
                        return
                    continue
                if readable:
                    raise HostError(f"{self.name} ended with {daemon.wait()} while starting: {self.said()}")
                self.stop()
                raise HostError(f"{self.name} did not say within {READY:g} s that it is ready: {self.said()}")
        finally:
            os.close(ended)

    @property
    def pid(self) -> int:
        """Its pid, 0 when it does not run."""
        return 0 if self._process is None else self._process.pid

    def said(self) -> str:
        """The last lines it wrote."""
        return process.last_lines(self.log.read_bytes()[-8192:])

    def stop(self, timeout: float = 40.0) -> None:
        """End it, by force when it does not within ``timeout`` seconds."""
        daemon, self._process = self._process, None
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(timeout)
        except process.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            raise HostError(f"{self.name} did not end within {timeout:g} s and was killed") from None


class Stream:
    """A client's command that goes on: write to it, wait for a text, take the rest."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.argv = tuple(argv)
        self._process = process.start(argv, stdin=process.PIPE, env=environment(env))
        self._seen = b""

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def expect(self, text: str, count: int = 1, timeout: float = CLIENT) -> str:
        """Read until ``text`` came ``count`` times, and return all that came.

        :raise HostError: it ended first, or not within ``timeout`` seconds.
        """
        assert self._process.stdout is not None
        fd, end = self._process.stdout.fileno(), time.monotonic() + deadline.left(timeout)
        while self._seen.count(text.encode()) < count:
            readable, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            data = os.read(fd, 65536) if readable else b""
            if not data:
                why = "it ended" if readable else f"{timeout:g} s"
                shown = self._seen[-500:].decode(errors="replace")
                raise HostError(f"{shlex.join(self.argv)} did not print {text!r} {count} times before {why}: {shown!r}")
            self._seen += data
        return self._seen.decode(errors="replace")

    def within(self, seconds: float) -> bytes:
        """What comes in this time; waits no longer than for the first of it."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout.fileno()], [], [], seconds)
        data = os.read(self._process.stdout.fileno(), 65536) if readable else b""
        self._seen += data
        return data

    def until_silent(self, pause: float = 0.3) -> None:
        """Take what is under way: until nothing comes for ``pause`` seconds, at most a hundred pieces of it."""
        for _ in range(100):
            if not self.within(pause):
                return

    def end(self, timeout: float = CLIENT) -> Output:
        """Close its input, wait for its end, and return all that it wrote."""
        try:
            rest, _ = self._process.communicate(timeout=timeout)
        except process.TimeoutExpired:
            self.close()
            raise HostError(f"{shlex.join(self.argv)} did not end within {timeout:g} s") from None
        return Output(self.argv, self._process.returncode, (self._seen + rest).decode(errors="replace"), "")

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def on_terminal(argv: Sequence[str], rows: int, columns: int, timeout: float = CLIENT) -> tuple[str, int]:
    """Run a client on a terminal of this size to its end: what it showed, and its exit code.

    :raise HostError: it did not end within ``timeout`` seconds.
    """
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with open(slave, "r+b", buffering=0) as terminal:
        client = process.start(argv, stdin=terminal, output=terminal, env=environment())
    shown, end = b"", time.monotonic() + timeout
    try:
        while select.select([master], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other end is closed
                return shown.decode(errors="replace"), client.wait(10)
        raise HostError(f"{shlex.join(argv)} did not end within {timeout:g} s; it showed {shown[-500:]!r}")
    finally:
        os.close(master)
        if client.poll() is None:
            client.kill()
            client.wait()


def image_root(path: Path) -> Path:
    """Make a root file system of static busybox at ``path``.

    :raise HostError: busybox is not installed.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise HostError("the engines' image is made of busybox, which is not installed", "install busybox-static")
    for folder in FOLDERS:
        (path / folder).mkdir(parents=True, exist_ok=True)
    (path / "tmp").chmod(0o1777)
    (path / "root").chmod(0o700)
    os.chown(path / "home/user", 1000, 1000)
    (path / "sbin").symlink_to("bin")
    (path / "usr/bin").symlink_to("../bin")
    (path / "usr/sbin").symlink_to("../bin")
    shutil.copy(busybox, path / "bin/busybox")
    for applet in run([busybox, "--list"]).ok().stdout.split():
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    (path / "etc/os-release").write_text('ID=busybox\nPRETTY_NAME="A root of busybox"\n')
    return path


def wrapper(folder: Path, name: str, command: Sequence[str]) -> Path:
    """A program that is ``command`` with its arguments, for engines that take a path only."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return path


def processes(needles: Sequence[str], but: Collection[int] = ()) -> list[str]:
    """Live processes, ``but`` these, whose command line names one of the needles: ``PID COMMAND``.

    A needle stands there as it is, or as the end of a longer word, as in ``sandbox-ID``; a longer path or name that
    only holds it is another.
    """
    ends = {True: r"(?!\w)", False: ""}
    wanted = re.compile("|".join(rf"(?<![\w.]){re.escape(n)}{ends[n[-1].isalnum()]}" for n in needles))
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it ended
            continue
        if int(entry) not in (os.getpid(), *but) and wanted.search(line):
            found.append(f"{entry} {line}")
    return found


def mounts(folder: str) -> list[str]:
    """Mount points at or below ``folder``, the innermost last."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
        points = [line.split()[4] for line in table]
    return [point for point in points if f"{point}/".startswith(f"{folder.rstrip('/')}/")]


def cgroups(needle: str) -> list[str]:
    """Control groups whose path holds ``needle``, outer ones first."""
    return [f"{top}/{n}" for top, names, _ in os.walk("/sys/fs/cgroup") for n in names if needle in f"{top}/{n}"]


class Left(KataError):
    """Something is left behind by an engine that has ended."""

    kind = "left"
