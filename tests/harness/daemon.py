"""A daemon under test: started, watched until it answers, stopped, its log kept as evidence."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import evidence
from .proc import environment, stop
from .wait import Late


class Daemon:
    """One daemon process with its output in a log file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Start it and wait until ``ready``; its early death is an error with its log's end."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True
            )
        evidence.watch(self.log)
        end = time.monotonic() + timeout
        while not ready():
            code = self.process.poll()
            if code is not None:
                raise AssertionError(f"{self.name} ended with {code} while starting:\n{evidence.tail(self.log)}")
            if time.monotonic() > end:
                self.stop()
                raise Late(f"{self.name} did not answer within {timeout:g} s:\n{evidence.tail(self.log)}")
            time.sleep(0.05)

    def stop(self, timeout: float = 40) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            stop(process, self.name, timeout)
        evidence.unwatch(self.log)
