"""The benchmark's own pool of warm machines, and the service that keeps it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from bench import contenders, measure
from harness.wait import eventually
from kata import pool

FILL = 15.0  #: seconds until a machine is in the pool


class Pool:
    """A pool whose size can be changed; empty until :meth:`resize`."""

    def __init__(self, folder: Path, template_path: Path) -> None:
        self.path = folder / "pool"
        self.size = 0
        self._template_path = template_path
        self._log = folder / "pool.log"
        self._keeper: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self.contender = self._configured(1)

    def _configured(self, size: int) -> contenders.Contender:
        text = contenders.configuration("pool", self._template_path, pool_path=self.path, pool=size)
        return contenders.kata(self._folder, "kata pool", "pool", text)

    def resize(self, size: int) -> None:
        """Have ``size`` machines, and wait for them.

        :raise measure.Failed: the service ended.
        """
        if self._keeper is None and not size:
            return
        self._configured(size)
        self.size = size
        if self._keeper is None:
            who = self.contender
            with self._log.open("ab") as log:
                self._keeper = subprocess.Popen(
                    [who.path, "factory", "run"], env={**os.environ, **who.env}, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True)
        else:
            (self.path / pool.WANTED).write_bytes(b"")  # it reads its configuration again
        self.refilled()

    def refilled(self) -> None:
        """Wait until the machines that were claimed are replaced."""
        if self._keeper is None:
            return

        def full() -> bool:
            if self._keeper is None or self._keeper.poll() is not None:
                last = self._log.read_text(errors="replace")[-1000:]
                raise measure.Failed(f"the pool's service ended:\n{last}")
            return len(pool.machines(str(self.path))) == self.size

        eventually(f"{self.size} machines in the pool", full, FILL * (self.size + 2), 0.02)

    @property
    def pids(self) -> list[int]:
        """The service, if it runs."""
        return [self._keeper.pid] if self._keeper else []

    def close(self) -> None:
        """End the service; machines left are ended by ``factory destroy``."""
        if self._keeper is not None:
            self._keeper.send_signal(signal.SIGTERM)
            self._keeper.wait(60)
            self._keeper = None
            self.contender.timed("factory", "destroy")
