"""The one door to processes of the suites."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from .wait import DEADLINE

#: Marks every process a suite starts, so that leaks can be told from strangers.
TAG_VARIABLE = "KATA_TEST_TAG"


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"$ {shlex.join(self.argv)}\n-> exit code {self.rc} after {self.seconds:.2f} s"
            f"\n-- stdout --\n{self.stdout[-6000:]}\n-- stderr --\n{self.stderr[-6000:]}"
        )

    @property
    def out(self) -> str:
        """Standard output without white space at its ends."""
        return self.stdout.strip()

    def ok(self) -> Result:
        """Itself, when the command succeeded."""
        assert self.rc == 0, f"expected success\n{self}"
        return self

    def fails(self, code: int | None = None) -> Result:
        """Itself, when the command failed (with ``code``)."""
        if code is None:
            assert self.rc != 0, f"expected a failure\n{self}"
        else:
            assert self.rc == code, f"expected exit code {code}\n{self}"
        return self


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: the caller's, in the C locale, plus ``extra``.

    COLUMNS, which a test runner sets for its workers, would cut what a daemon's ps prints.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "LC_", "COLUMNS", "LINES"))}
    env["LANG"] = "C.UTF-8"
    env.update(extra or {})
    return env


def run(
    *argv: str,
    input: bytes | str | None = None,
    timeout: float = DEADLINE,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: int | IO[bytes] | None = None,
) -> Result:
    """Run a command to its end and take what it wrote.

    :raise AssertionError: it did not end, or did not let go of its output,
        within ``timeout`` seconds; the whole group is killed then.
    """
    start = time.monotonic()
    source: int | IO[bytes] = subprocess.DEVNULL if stdin is None else stdin
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if input is not None else source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        start_new_session=True,
    )
    data = input.encode() if isinstance(input, str) else input
    try:
        out, err = process.communicate(data, timeout)
    except subprocess.TimeoutExpired:
        ended = process.poll()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired as again:
            out, err = again.stdout or b"", again.stderr or b""
        state = "did not end" if ended is None else f"ended with {ended} but something kept its output open"
        raise AssertionError(
            f"$ {shlex.join(argv)}\n{state} within {timeout:g} s\n-- stdout --\n"
            f"{out[-4000:].decode(errors='replace')}\n-- stderr --\n{err[-4000:].decode(errors='replace')}"
        ) from None
    return Result(
        tuple(argv),
        process.returncode,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
        time.monotonic() - start,
    )


def stop(process: subprocess.Popen[bytes], what: str, timeout: float = 30) -> int:
    """End a daemon by SIGTERM, then by SIGKILL; always reap it.

    :raise AssertionError: it had to be killed.
    """
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        raise AssertionError(f"{what} (pid {process.pid}) did not end within {timeout:g} s of SIGTERM") from None


def tagged(names: Sequence[str]) -> list[tuple[int, str]]:
    """Live processes that carry one of these in environment or command line: (pid, command line)."""
    found = []
    needles = [n.encode() for n in names]
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as f:
                cmdline = f.read()
            with open(f"/proc/{entry}/environ", "rb") as f:
                environ = f.read()
        except OSError:
            continue
        if cmdline and any(n in cmdline or n in environ for n in needles):
            found.append((int(entry), cmdline.replace(b"\0", b" ").decode(errors="replace").strip()))
    return found
