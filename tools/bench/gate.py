"""A script in a container that begins when it is told to, so that its start is not measured."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.contenders import Contender
from bench.measure import DEADLINE, Failed

BLOCK = 1 << 20  #: bytes
MB = 10**6


class Gated:
    """A shell in a container: :meth:`go` lets it run its script."""

    def __init__(self, process: subprocess.Popen[bytes], what: str) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.what = what
        self.end_input = process.stdin.close
        self.to, self.out = process.stdin.fileno(), process.stdout.fileno()

    def go(self) -> float:
        """Begin; returns the time of it."""
        began = time.monotonic()
        os.write(self.to, b"\n")
        return began

    def read(self, most: int = BLOCK) -> bytes:
        """:raise Failed: nothing comes."""
        if not select.select([self.out], [], [], DEADLINE)[0]:
            raise Failed(f"{self.what}: nothing came within {DEADLINE:g} s")
        return os.read(self.out, most)

    def expect(self, line: bytes = b"\n") -> None:
        """:raise Failed: something else comes, or the end."""
        found = self.read(len(line))
        if found != line:
            raise Failed(f"{self.what}: {line!r} was expected, {found!r} came")


@contextmanager
def gated(who: Contender, id: str, script: str) -> Iterator[Gated]:
    """``script`` by ``exec``, ready to begin; standard input and output are pipes.

    :raise Failed: it ended with an error.
    """
    with who.spawn("exec", id, "sh", "-c", f"echo; read x; {script}") as process:
        try:
            gate = Gated(process, f"{script} in {who.name}")
            gate.expect()
            yield gate
            assert process.stdin is not None
            process.stdin.close()
            code = process.wait(DEADLINE)
        except BaseException:
            process.kill()
            raise
    if code:
        raise Failed(f"{gate.what} ended with code {code}")


def seconds(who: Contender, id: str, script: str) -> float:
    """How long a script that prints nothing takes."""
    with gated(who, id, f"{script}; echo") as gate:
        began = gate.go()
        gate.expect()
        return time.monotonic() - began
