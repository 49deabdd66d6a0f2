"""The command as a process: exit codes, and output that nobody takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
PLACES = [str(HERE), str(HERE / "agent"), *sys.path]
START = f"import sys; sys.path += {PLACES!r}; from kata.cli import program; program()"


def kata(*words: str, stdout: int = subprocess.PIPE) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", START, "--root", "/nonexistent", *words], stdout=stdout,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("words", "code", "said"), [
    (["list"], 0, ""), (["state", "nosuch"], 1, "does not exist"), (["bogus"], 1, 'Invalid command "bogus"'),
    (["list", "--help"], 0, "")])
def test_exit_codes(words: list[str], code: int, said: str) -> None:
    got, stderr = kata(*words)
    assert got == code and said in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("words", [["list"], ["--help"]])
def test_output_that_nobody_takes(words: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, stderr = kata(*words, stdout=full)
    os.close(full)
    assert code == 1 and "No space left on device" in stderr and "Traceback" not in stderr
    receive, send = os.pipe()
    os.close(receive)
    code, stderr = kata(*words, stdout=send)
    os.close(send)
    assert (code, stderr) == (141, "")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_the_caller_has_closed(closed: str, tmp_path: Path) -> None:
    """Their numbers must not become those of sockets, whose bytes would be taken for input and output."""
    seen = tmp_path / "seen"
    look = ("def main():\n import os, sys\n fds = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
            " print('out'); sys.stderr.write('err'); sys.stdin.read()\n"
            f" return open({str(seen)!r}, 'w').write(' '.join(fds)) and 7\n")
    program = f"{look}import kata.cli\nkata.cli.main = main\nkata.cli.program()"
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "-", sys.executable, "-I", "-S", "-c",
                           f"import sys; sys.path += {PLACES!r}\n{program}"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 7 and "Traceback" not in done.stderr
    found = seen.read_text().split()
    assert all(found[int(part[0])] == "/dev/null" for part in closed.split())
    assert done.stdout == ("" if "1>" in closed else "out\n") and done.stderr == ("" if "2>" in closed else "err")
