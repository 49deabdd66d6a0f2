"""A running machine: what can be done to it over QMP."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from kata.contract import BRIDGE_SLOTS, MachinePlan
from kata.errors import HostError, VmError
from kata.spawn import stop
from kata.vm.argv import too_old
from kata.vm.launch import tail
from kata.vm.qmp import Qmp
from kata_agent.linux import syscalls

MEMORY_BLOCK = 128  #: MiB; the guest's hotplug granularity on x86-64 (up to 64 GiB)
MODERN = {"disable-legacy": "on"}  #: virtio 1 only: no I/O ports, for which a bridge has no window
EVENT_TIMEOUT = 10.0  #: seconds in which a guest takes or releases a device


class Machine:
    """One QEMU process.

    ``gone`` is set when it has ended, whoever ended it.  Devices added after
    boot are named by the caller; their names are unique in the machine.
    """

    def __init__(self, plan: MachinePlan, pid: int, directory: str, ports: Mapping[str, int] | None = None) -> None:
        self.plan = plan
        self.pid = pid
        self.directory = directory
        self.qmp = Qmp()
        self.gone = asyncio.Event()
        self.ports: dict[str, int] = dict(ports or {})  #: device -> slot of all bridges
        self._pidfd = syscalls.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        with suppress(ChildProcessError):  # not our child after a restart of the proxy
            os.waitpid(self.pid, 0)
        self.gone.set()

    async def connect(self) -> None:
        """Connect to QMP, or say why QEMU ended.

        :raise VmError: QEMU ended or did not answer; its last words are in the text.
        """
        connecting = asyncio.ensure_future(self.qmp.connect(f"{self.directory}/qmp.sock"))
        ended = asyncio.ensure_future(self.gone.wait())
        done, _ = await asyncio.wait({connecting, ended}, return_when=asyncio.FIRST_COMPLETED)
        if connecting in done and connecting.exception() is None:
            ended.cancel()
            return
        if ended not in done:  # a refused greeting: QEMU is usually on its way out
            with suppress(TimeoutError):
                await asyncio.wait_for(self.gone.wait(), 2.0)
        ended.cancel()
        connecting.cancel()
        what = "QEMU did not start"
        try:
            await connecting
        except VmError as e:
            if not self.gone.is_set():
                what = e.text
        except asyncio.CancelledError:
            pass
        raise self.failure(what)

    def check_version(self) -> None:
        """For a machine that boots.

        :raise VmError: nothing could be plugged into it.
        """
        if why := too_old(self.plan.machine_type, self.qmp.version):
            raise VmError(why, 'use a newer QEMU, or machine_type = "pc"')

    def failure(self, what: str) -> VmError:
        """An error that carries the last lines of QEMU and of the guest's console."""
        said = [row for row in tail(f"{self.directory}/qemu.log").split("\n") if row and not row.startswith("argv:")]
        console = _panic_or_end(tail(f"{self.directory}/console.log", 60, 8192).split("\n"))
        parts = [what]
        if said:
            parts.append("QEMU said: " + " | ".join(said[-3:]))
        if console:
            parts.append("the guest's console ends with: " + " | ".join(console))
        return VmError("; ".join(parts))

    # --- life ---------------------------------------------------------------------

    async def pause(self) -> None:
        await self.qmp.execute("stop")

    async def resume(self) -> None:
        await self.qmp.execute("cont")

    async def stands_still(self) -> bool:
        return bool((await self.qmp.execute("query-status"))["status"] == "paused")

    async def reads_memory_file(self) -> bool:
        """Whether this QEMU can copy a memory file on write that it opens for reading only: from 8.2 on."""
        known = await self.qmp.execute("qom-list-properties", {"typename": "memory-backend-file"})
        return any(entry["name"] == "rom" for entry in known)

    async def save(self, state: str, timeout: float = 120.0) -> None:
        """Stop, and write everything but the memory to the file ``state``; the memory is in a file already."""
        await self.pause()
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            await self._prepare_migration()
            await self.qmp.give_fd("state", write)
        finally:
            os.close(write)
        saving = asyncio.to_thread(_copy_out, read, state)
        await asyncio.gather(saving, self._migrate("migrate", {"uri": "fd:state"}, timeout))

    async def _prepare_migration(self) -> None:
        """x-ignore-shared: memory in a file is not part of the stream.  events: no polling for the end."""
        names = ("x-ignore-shared", "events")
        await self.qmp.execute("migrate-set-capabilities", {
            "capabilities": [{"capability": name, "state": True} for name in names]})

    async def _migrate(self, command: str, arguments: Mapping[str, Any], timeout: float) -> None:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def listen() -> None:
            async for event in self.qmp.events():
                data: Any = event.get("data") or {}
                if event["event"] == "MIGRATION" and data.get("status") in ("completed", "failed"):
                    ended.set_result(data["status"])
                    return

        listener = asyncio.ensure_future(listen())
        gone = asyncio.ensure_future(self.gone.wait())
        waited: set[asyncio.Future[Any]] = {ended, gone}
        await asyncio.sleep(0)  # the listener must be there before the answer
        try:
            await self.qmp.execute(command, arguments)
            await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() or ended.result() != "completed":
                how = "failed" if ended.done() else "did not end" if not self.gone.is_set() else "ended QEMU"
                raise self.failure(f"{command} {how}")
        finally:
            listener.cancel()
            gone.cancel()

    async def kill(self, timeout: float = 10.0) -> None:
        """End QEMU at once.  End state: the process is gone; called again: nothing happens."""
        if not self.gone.is_set():
            stop(self.pid, signal.SIGKILL)
            try:
                await asyncio.wait_for(self.gone.wait(), timeout)
            except TimeoutError as e:
                raise VmError(f"QEMU (pid {self.pid}) did not end within {timeout:g} s of SIGKILL") from e
        with suppress(Exception):
            await self.qmp.close()

    # --- devices --------------------------------------------------------------------

    def _bus(self, name: str) -> dict[str, str]:
        """Where to plug ``name``: a free slot of a bridge on q35, the only bus on pc."""
        if not self.plan.machine_type.startswith("q35"):
            return {}
        for port in range(self.plan.hotplug_ports):
            if port not in self.ports.values():
                self.ports[name] = port
                return {"bus": f"bridge{port // BRIDGE_SLOTS}", "addr": f"{port % BRIDGE_SLOTS + 1:x}"}
        raise HostError(f"no free PCI slot for {name}: all {self.plan.hotplug_ports} are in use",
                        "raise default_bridges in the configuration")

    async def add_nic(self, name: str, tap: int, mac: str) -> None:
        """Plug in a network card over the tap ``tap`` (a file descriptor, kept by the caller too).

        On failure the machine is as before.
        """
        bus = self._bus(name)
        try:
            await self.qmp.give_fd(f"tap-{name}", tap)
            await self.qmp.execute("netdev_add", {
                "type": "tap", "id": f"net-{name}", "fd": f"tap-{name}", "vhost": False})
            try:
                await self.qmp.execute("device_add", {
                    "driver": "virtio-net-pci", "id": name, "netdev": f"net-{name}", "mac": mac, "romfile": "",
                    **MODERN, **bus})
            except BaseException:
                await self.qmp.execute("netdev_del", {"id": f"net-{name}"})
                raise
        except BaseException:
            self.ports.pop(name, None)
            raise

    async def has_device(self, name: str) -> bool:
        """Whether a device of this name is plugged in."""
        plugged = await self.qmp.execute("qom-list", {"path": "/machine/peripheral"})
        return any(entry["name"] == name for entry in plugged)

    async def forget_nic(self, name: str) -> None:
        """Remove what an interrupted :meth:`add_nic` or :meth:`remove_nic` left."""
        if await self.has_device(name):
            await self._unplug(name)
        self.ports.pop(name, None)
        with suppress(HostError):  # it may be gone as well
            await self.qmp.execute("netdev_del", {"id": f"net-{name}"})

    async def remove_nic(self, name: str) -> None:
        """Unplug a card; the guest has let go of it before."""
        await self._unplug(name)
        await self.qmp.execute("netdev_del", {"id": f"net-{name}"})

    async def add_disk(self, name: str, source: str, serial: str, read_only: bool) -> None:
        """Plug in a host block device or file as a disk with ``serial``.

        :raise HostError: the source cannot be opened; the machine is as before.
        """
        host = os.stat(source)
        driver = "host_device" if (host.st_mode & 0o170000) == 0o060000 else "file"
        await self.qmp.execute("blockdev-add", {
            "driver": driver, "node-name": f"blk-{name}", "filename": source, "read-only": read_only})
        device = {"id": name, "drive": f"blk-{name}", "serial": serial}
        try:
            if self.plan.block_driver == "virtio-scsi":
                device |= {"driver": "scsi-hd", "bus": "scsi0.0"}
            else:
                device |= {"driver": "virtio-blk-pci", **MODERN, **self._bus(name)}
            await self.qmp.execute("device_add", device)
        except BaseException:
            self.ports.pop(name, None)
            await self.qmp.execute("blockdev-del", {"node-name": f"blk-{name}"})
            raise

    async def remove_disk(self, name: str) -> None:
        await self._unplug(name)
        await self.qmp.execute("blockdev-del", {"node-name": f"blk-{name}"})

    async def _unplug(self, name: str) -> None:
        """Ask the guest to release a device and wait for QEMU's word that it did."""
        async with self._until("DEVICE_DELETED", lambda data: data.get("device") == name,
                               f"the guest did not release device {name}"):
            await self.qmp.execute("device_del", {"id": name})
        self.ports.pop(name, None)

    @asynccontextmanager
    async def _until(self, name: str, match: Callable[[Any], bool], late: str) -> AsyncIterator[None]:
        """Wait at the end for an event that what is done inside brings about.

        :raise VmError: ``late``; it did not come in time, or the machine has ended.
        """
        async def listen() -> None:
            async for event in self.qmp.events():
                if event["event"] == name and match(event.get("data") or {}):
                    return
            raise VmError(f"{late}: QEMU's control channel closed")

        came, gone = asyncio.ensure_future(listen()), asyncio.ensure_future(self.gone.wait())
        await asyncio.sleep(0)  # the listener must be there before the answer
        try:
            yield
            await asyncio.wait({came, gone}, timeout=EVENT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if not came.done():
                raise VmError(f"{late}: the machine ended" if gone.done() else f"{late} within {EVENT_TIMEOUT:g} s")
            came.result()
        finally:
            came.cancel()
            gone.cancel()

    # --- size -------------------------------------------------------------------------

    async def add_vcpus(self, count: int) -> int:
        """Plug in up to ``count`` vCPUs; return how many the machine took."""
        added = 0
        for cpu in await self.qmp.execute("query-hotpluggable-cpus"):
            if added == count:
                break
            if "qom-path" not in cpu:
                name = "cpu" + "-".join(str(v) for v in cpu["props"].values())
                await self.qmp.execute("device_add", {"driver": cpu["type"], "id": name, **cpu["props"]})
                added += 1
        return added

    async def vcpus(self) -> int:
        return len(await self.qmp.execute("query-cpus-fast"))

    async def memory(self) -> int:
        """MiB the machine has, hotplugged ones included."""
        size = await self.qmp.execute("query-memory-size-summary")
        return int(size["base-memory"] + size.get("plugged-memory", 0)) >> 20

    async def add_memory(self, mib: int) -> int:
        """Plug in at least ``mib`` MiB, in whole blocks; return how many.

        End state: the guest's kernel knows the memory (ACPI, "_OST"), and its agent can use it.
        """
        size = -(-mib // MEMORY_BLOCK) * MEMORY_BLOCK
        there = await self.qmp.execute("query-memory-devices")
        name, place = f"dimm{len(there)}", {}
        if there:  # where the guest takes it: behind an NVDIMM, QEMU's own choice would be no multiple of a block
            ends = max(device["data"]["addr"] + device["data"]["size"] for device in there)
            place = {"addr": -(-ends // (MEMORY_BLOCK << 20)) * (MEMORY_BLOCK << 20)}
        await self.qmp.execute("object-add", {
            "qom-type": "memory-backend-ram", "id": f"ram-{name}", "size": size << 20})
        async with self._until("ACPI_DEVICE_OST", lambda data: data["info"].get("device") == name,
                               f"the guest did not take {size} MiB of memory"):
            try:
                await self.qmp.execute("device_add", {
                    "driver": "pc-dimm", "id": name, "memdev": f"ram-{name}", **place})
            except BaseException:
                await self.qmp.execute("object-del", {"id": f"ram-{name}"})
                raise
        return size


def _panic_or_end(rows: list[str], count: int = 6) -> list[str]:
    """The last rows of a console, or the first of a panic: what follows it is a trace."""
    for number, row in enumerate(rows):
        if "Kernel panic" in row:
            return rows[max(0, number - 1) : number + count - 1]
    return [row for row in rows[-count:] if row]


def _copy_out(source: int, path: str) -> None:
    """Read a pipe to its end into a new file; closes the pipe."""
    with os.fdopen(source, "rb", buffering=0) as f, open(path, "xb") as target:
        while data := f.read(1 << 20):
            target.write(data)
