"""A factory of a test's own: its configuration, template, pool and keeper."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kata.pool.keeper import keeper_of

from .oci import Oci
from .proc import Result, environment, run
from .wait import eventually, process_end

#: MiB; no other test has machines of this size, so none can take ours.
MEMORY = 333


class Factory:
    """``[factory]`` with folders below the run directory."""

    def __init__(self, oci: Oci, name: str, size: int) -> None:
        self.oci = oci
        self.folder = oci.run_dir / name
        self.folder.mkdir()
        self.pool = self.folder / "pool"
        self.templates = self.folder / "template"
        self.config = self.folder / "configuration.toml"
        self.log = self.folder / "keeper.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(size)

    def configure(self, size: int, hypervisor: str = "", factory: str = "") -> None:
        aside = self.folder / "new.toml"
        aside.write_text(f"[hypervisor.qemu]\ndefault_memory = {MEMORY}\n{hypervisor}\n[factory]\n"
                         f'vm_cache_number = {size}\nvm_cache_endpoint = "{self.pool}"\n'
                         f'template_path = "{self.templates}"\n{factory}\n')
        aside.rename(self.config)

    # --- verbs ------------------------------------------------------------------------

    @property
    def globals(self) -> tuple[str, str]:
        return "--kata-config", str(self.config)

    def verb(self, *words: str, timeout: float = 90) -> Result:
        return run(*self.oci.argv(*self.globals, *words), timeout=timeout)

    def keep(self) -> int:
        """Start a keeper and wait until it keeps; its pid."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.oci.argv(*self.globals, "factory", "run"), env=environment(),
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        pid = self.process.pid
        eventually("the keeper at its pool", lambda: keeper_of(str(self.pool)) == pid, 30)
        return pid

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the keeper; machines stay."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    # --- what there is ----------------------------------------------------------------

    def machines(self) -> list[Path]:
        """Machines that can be claimed."""
        return sorted(p for p in self.pool.glob("*.*") if not p.name.startswith(".")) if self.pool.exists() else []

    def half_made(self) -> list[Path]:
        return sorted(self.pool.glob(".*")) if self.pool.exists() else []

    def await_machines(self, count: int, without: tuple[Path, ...] = ()) -> list[Path]:
        """Wait until there are so many, none of them one of ``without``."""

        def enough() -> list[Path]:
            found = self.machines()
            return found if len(found) == count and not set(found) & set(without) and not self.half_made() else []

        try:
            return eventually(f"{count} machines in the pool", enough, 150, 0.1)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log.read_text()}") from None

    def close(self) -> None:
        """End everything; fail when something is left."""
        try:
            self.verb("factory", "destroy").ok()
            if self.process is not None:
                process_end(self.process.pid, "the keeper", 10)
        finally:
            if self.process is not None:
                self.process.kill()
                self.process.wait(10)
        left = [p for p in (*self.machines(), *self.half_made()) if p.exists()]
        assert not left, f"the pool still holds {left}"


@contextlib.contextmanager
def factory(oci: Oci, name: str, size: int) -> Iterator[Factory]:
    made = Factory(oci, name, size)
    try:
        yield made
    finally:
        made.close()


def pids(machine: Path) -> dict[str, int]:
    """Proxy and QEMU of a machine or a sandbox."""
    record = json.loads((machine / "sandbox.json").read_text())
    return {name: int(record[name]["pid"]) for name in ("proxy", "qemu")}


