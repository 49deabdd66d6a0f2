"""kata-proxy and kata-shim as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar

from harness.wait import eventually

HERE = Path(__file__).resolve().parents[2]


class Program:
    """One of them, running."""

    ENVIRONMENT: ClassVar = {"PYTHONPATH": f"{HERE}:{HERE / 'agent'}"}

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes] | None) -> None:
        self.process = process
        self._log = log
        self._errors = b""

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(60)

    def line(self) -> bytes:
        """The next line of standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def errors(self) -> str:
        """What it wrote to standard error."""
        if self._log is not None:
            return Path(self._log.name).read_text()
        assert self.process.stderr is not None
        self._errors += self.process.stderr.read()
        return self._errors.decode()

    def until_error_says(self, text: str) -> None:
        eventually(f"the program to say {text!r}", lambda: text in self.errors(), 30)


@contextmanager
def _running(process: subprocess.Popen[bytes], log: IO[bytes] | None = None) -> Iterator[Program]:
    try:
        yield Program(process, log)
    finally:
        process.kill()
        process.wait(10)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def proxy(port: str, listen: str, *words: str) -> Iterator[Program]:
    """kata-proxy for the machine whose serial port is the socket ``port``; it listens, or has ended."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kata.components.proxy", "-mux-socket", port, "-listen-socket", f"unix://{listen}",
             *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            env=os.environ | Program.ENVIRONMENT)
        with _running(process, log) as program:
            eventually("kata-proxy to listen",
                       lambda: os.path.exists(listen) or process.poll() is not None, 30)
            yield program


@contextmanager
def shim(agent: str, container: str, exec_id: str, *words: str, tty: int = -1) -> Iterator[Program]:
    """kata-shim for one process, with pipes or on a terminal."""
    argv = [sys.executable, "-m", "kata.components.shim", "-agent", f"unix://{agent}", "-container", container,
            "-exec-id", exec_id, *words]
    stdio = subprocess.PIPE if tty < 0 else tty
    process = subprocess.Popen(argv, stdin=stdio, stdout=stdio, stderr=stdio, env=os.environ | Program.ENVIRONMENT)
    with _running(process) as program:
        yield program
