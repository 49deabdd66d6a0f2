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
