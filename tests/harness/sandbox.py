"""The host processes behind a container, and what they leave when they are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from . import leaks
from .proc import tagged
from .wait import Late, alive, eventually, process_end


class Parts:
    """Proxy, QEMU and shim of a container that has a sandbox of its own."""

    def __init__(self, root: Path, id: str) -> None:
        self.root = root
        self.id = id
        self.key = leaks.sandbox_key(root, id)
        self.folder = leaks.SANDBOXES / self.key

    def record(self) -> dict[str, Any]:
        """sandbox.json."""
        record: dict[str, Any] = json.loads((self.folder / "sandbox.json").read_text())
        return record

    def state(self) -> dict[str, Any]:
        """state.json of the container."""
        record: dict[str, Any] = json.loads((self.root / self.id / "state.json").read_text())
        return record

    @property
    def proxy(self) -> int:
        return int(self.record()["proxy"]["pid"])

    @property
    def qemu(self) -> int:
        return int(self.record()["qemu"]["pid"])

    @property
    def shim(self) -> int:
        return int(self.state()["pid"])

    def await_recorded(self, name: str, timeout: float = 30) -> int:
        """Wait until ``proxy``, ``qemu`` or ``shim`` is recorded; its pid."""

        def probe() -> int:
            with contextlib.suppress(OSError, KeyError, ValueError):
                return int(getattr(self, name))
            return 0

        return eventually(f"{name} of {self.id} to be recorded", probe, timeout, 0.002)

    def kill_proxy(self) -> int:
        """SIGKILL it and wait for its end; its pid."""
        pid = self.proxy
        kill(pid, "the proxy")
        return pid

    def log(self) -> str:
        return (self.folder / "proxy.log").read_text(errors="replace")

    def processes(self) -> list[tuple[int, str]]:
        """Every live process that names the sandbox in its command line."""
        return [(pid, line) for pid, line in tagged([self.key]) if self.key in line and alive(pid)]

    def proxies(self) -> list[int]:
        return [pid for pid, line in self.processes() if "kata.proxy" in line]


def kill(pid: int, what: str, timeout: float = 10) -> None:
    """SIGKILL and wait for the end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    process_end(pid, what, timeout)


def assert_nothing_left(root: Path, id: str, paths: tuple[str, ...] = ()) -> None:
    """No process, record, folder, mount, cgroup or namespace of a container that had its own sandbox."""
    parts = Parts(root, id)
    try:
        eventually(f"the processes of {id} to be gone", lambda: not parts.processes(), 15)
    except Late as late:
        raise AssertionError(f"left behind by {id}: {parts.processes()}") from late
    leaks.check_container(root, id, paths)
    aside = [name for name in os.listdir(root) if name.startswith(".")] if root.exists() else []
    assert not aside, f"half-made records: {aside}"
