"""What the proxy knows of one container."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from kata import state
from kata.contract import ContainerPlan
from kata.errors import WrongState
from kata.log import rfc3339


class Container:
    """A container, its record on disk and its processes.

    ``processes`` maps an exec id to the future of its exit status; the
    container's first process has the container's id.
    """

    def __init__(self, plan: ContainerPlan, root: str, resources: Mapping[str, Any], record: state.Container) -> None:
        self.plan = plan
        self.root = root
        self.resources = resources
        self.record = record
        self.lock = asyncio.Lock()
        self.processes: dict[str, asyncio.Future[int]] = {}
        self.shims: dict[str, int] = {}  #: exec id -> host pid of the shim attached
        self.disks: list[str] = []
        self.ooms = 0  #: how often the guest's kernel killed for lack of memory
        self.report: asyncio.Future[None] | None = None  #: of the latest one, to engines that watch the host's cgroup
        self._oom = asyncio.Event()
        self._attached = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        return self.plan.id

    @property
    def cgroup(self) -> str:
        """Path of its cgroup on the host."""
        value: str = self.record.record["cgroup"]
        return value

    @property
    def status(self) -> str:
        value: str = self.record.record["status"]
        return value

    def set_status(self, status: str, **more: Any) -> None:
        self.record.update(status=status, **more)
        self._changed.set()
        self._changed = asyncio.Event()

    async def until_resumed(self) -> None:
        """Wait while it is paused."""
        while self.status == "paused":
            await self._changed.wait()

    def set_exited(self, exit_status: int) -> None:
        if self.status != "stopped":
            self.set_status("stopped", exit_status=exit_status, exited=rfc3339(time.time()), oom_killed=self.ooms > 0)

    def add_oom(self) -> None:
        self.ooms += 1
        self._oom.set()
        self._oom = asyncio.Event()
        if self.status != "stopped" and not self.record.record.get("oom_killed"):
            self.record.update(oom_killed=True)

    def attach(self, exec_id: str, shim: int) -> None:
        self.shims[exec_id] = shim
        self._attached.set()
        self._attached = asyncio.Event()

    async def attached(self, exec_id: str) -> None:
        """Wait until the process has a shim, or ended."""
        while exec_id not in self.shims and not self.processes[exec_id].done():
            came: asyncio.Future[Any] = asyncio.ensure_future(self._attached.wait())
            waited: set[asyncio.Future[Any]] = {came, self.processes[exec_id]}
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                came.cancel()

    async def wait_oom(self, seen: int) -> None:
        """Wait until there were more than ``seen``."""
        while self.ooms <= seen:
            await self._oom.wait()

    def require(self, verb: str, *allowed: str) -> None:
        """:raise WrongState: the container is in none of ``allowed`` (runtime-spec, "Operations")."""
        if self.status in allowed:
            return
        values = {"id": self.id, "status": self.status, "verb": verb}
        if verb == "kill":
            raise WrongState("container not running", f"container {self.id} is {self.status}", values=values)
        if verb == "delete":
            raise WrongState("Container still running, should be stopped",
                             f"kill container {self.id} first, or delete it with --force", values=values)
        raise WrongState(f"cannot {verb} container {self.id}: it is {self.status}",
                         f"it must be {' or '.join(allowed)}", values=values)
