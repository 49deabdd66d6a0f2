"""What a build says while it works: lines with the time passed, on standard error and in a log file."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Step lines of one build.

    :param quiet: write to the log only.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._start = time.monotonic()
        self._stream = None if quiet else (stream or sys.stderr)
        self._log: TextIO | None = None
        self._held: list[str] = []

    @property
    def seconds(self) -> float:
        """Time passed since the build began."""
        return time.monotonic() - self._start

    def log_to(self, log: TextIO | None) -> None:
        """Write to ``log`` from now on, beginning with what was said so far; None: stop."""
        self._log = log
        if log is not None:
            log.writelines(self._held)
            self._held.clear()

    def step(self, text: str) -> None:
        """Say what begins now."""
        line = f"[{self.seconds:6.1f} s] {text}\n"
        self.note(line.rstrip("\n"))
        if self._stream is not None:
            self._stream.write(line)
            self._stream.flush()

    def note(self, text: str) -> None:
        """Write a line to the log only."""
        if self._log is not None:
            self._log.write(f"{text}\n")
            self._log.flush()
        else:
            self._held.append(f"{text}\n")


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB"
