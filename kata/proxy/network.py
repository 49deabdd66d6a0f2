"""Keep the guest's network equal to that of the sandbox's namespace."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kata.agent_client import Agent
from kata.contract import SandboxPlan
from kata.errors import HostError, KataError
from kata.network import wire
from kata.network.inventory import Interface
from kata.network.watch import Changes, Watcher
from kata.proxy import convert
from kata.proxy.log import log
from kata.proxy.record import SandboxRecord
from kata.vm.machine import Machine
from kata_agent.protocol import agent_pb2, guest_pb2, types_pb2

DNS_PORT = 53
DNS_TIMEOUT = 10.0  #: seconds; a resolver asks again after 5
DNS_MAX = 65535
DNS_OUTSTANDING = 64


class Network:
    """Interfaces, routes and name service of one sandbox.

    The proxy lives in the namespace: whatever an engine does there, before,
    after or while containers run, arrives as rtnetlink events.
    """

    def __init__(self, plan: SandboxPlan, machine: Machine, agent: Agent, record: SandboxRecord) -> None:
        self.plan = plan
        self.machine = machine
        self.agent = agent
        self.record = record
        self.wires: dict[int, tuple[str, wire.Wire]] = {}  #: by interface index: card in the machine, wire
        self._watcher: Watcher | None = None
        self._lock = asyncio.Lock()
        self._relayed: set[str] = set()
        self._wanted_dns: set[str] = set()
        self._queries = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Watch the namespace and bring the guest up to date."""
        if self.plan.network_model == "none":
            return
        self._watcher = Watcher()
        await self.sync()
        if self.plan.hotplug_network:
            asyncio.get_running_loop().add_reader(self._watcher.fileno(), self._changed)

    async def resume(self) -> None:
        """Go on where an earlier proxy stopped: wires still there are kept."""
        if self.plan.network_model == "none":
            return
        self._watcher = Watcher()
        for card, data in self.record.data.get("wires", {}).items():
            kept = wire.Wire.from_json(data)
            if wire.intact(self._watcher.rtnl, kept) and await self.machine.has_device(card):
                self.wires[kept.ifindex] = (card, kept)
                self._watcher.joined(kept.ifindex, kept.mac, kept.indexes)
            else:  # an earlier proxy ended while it made or removed this one
                wire.detach(self._watcher.rtnl, kept)
                await self.machine.forget_nic(card)
        wire.sweep(self._watcher.rtnl, {i for _card, kept in self.wires.values() for i in kept.indexes})
        self._save()
        await self.sync()
        asyncio.get_running_loop().add_reader(self._watcher.fileno(), self._changed)

    def hold(self) -> None:
        """Leave changes alone: the machine is to stand still, and would not answer."""
        if self._watcher is not None:
            asyncio.get_running_loop().remove_reader(self._watcher.fileno())

    def release(self) -> None:
        """Follow changes again, those since :meth:`hold` first."""
        if self._watcher is not None and self.plan.hotplug_network:
            asyncio.get_running_loop().add_reader(self._watcher.fileno(), self._changed)

    def _changed(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        try:
            await self.sync()
        except KataError as e:
            log(f"network: {e}")

    async def sync(self) -> None:
        """Carry all changes since the last look over to the guest.

        :raise HostError: an interface cannot be joined or plugged in.
        """
        if self._watcher is None:
            return
        async with self._lock:
            while changes := self._watcher.changes():
                await self._apply(changes)
            await self._relay()

    async def _apply(self, changes: Changes) -> None:
        for gone in changes.removed:
            await self._remove(gone)
        for interface in changes.added:
            if interface.index not in self.wires:
                await self._add(interface)
            await self._configure(interface)
        for before, now in changes.changed:
            if before.mtu != now.mtu and now.index in self.wires:
                assert self._watcher is not None
                wire.set_mtu(self._watcher.rtnl, self.wires[now.index][1], now.mtu)
            await self._configure(now)
        if changes.routes or changes.added or changes.changed:
            routes = convert.strictly(agent_pb2.Routes(), {"Routes": changes.now.agent_routes()})
            await self.agent.agent("UpdateRoutes", agent_pb2.UpdateRoutesRequest(routes=routes))
        if changes.neighbours or (changes.added and changes.now.neighbours):
            neighbours = convert.strictly(agent_pb2.ARPNeighbors(), {"ARPNeighbors": changes.now.agent_neighbours()})
            await self.agent.agent("AddARPNeighbors", agent_pb2.AddARPNeighborsRequest(neighbors=neighbours))
        for note in (*changes.now.notes, *(f"{name} cannot be in a machine" for name in changes.now.unsupported)):
            log(f"network: {note}")

    async def _add(self, interface: Interface) -> None:
        assert self._watcher is not None
        rtnl = self._watcher.rtnl
        card = f"nic{interface.index}"
        joined, tap = wire.join(rtnl, interface, self.plan.network_model,
                                host_dns=self.plan.network_model in wire.HOST_DNS_MODELS)
        try:
            self._watcher.joined(interface.index, joined.mac, joined.indexes)
            self.wires[interface.index] = (card, joined)
            self._save()
            await self.machine.add_nic(card, tap, joined.mac)
        except BaseException:
            self.wires.pop(interface.index, None)
            wire.detach(rtnl, joined)
            self._watcher.detached(interface.index, joined.indexes)
            self._save()
            raise
        finally:
            os.close(tap)
        log(f"network: {interface.name} ({joined.mac}) is card {card} of the machine")

    async def _configure(self, interface: Interface) -> None:
        message = convert.strictly(types_pb2.Interface(), interface.agent())
        await self.agent.agent("UpdateInterface", agent_pb2.UpdateInterfaceRequest(interface=message))

    async def _remove(self, interface: Interface) -> None:
        assert self._watcher is not None
        entry = self.wires.pop(interface.index, None)
        if entry is None:
            return
        card, joined = entry
        await self.agent.guest("RemoveInterface", guest_pb2.RemoveInterfaceRequest(hw_addr=joined.mac))
        await self.machine.remove_nic(card)
        wire.detach(self._watcher.rtnl, joined)
        self._watcher.detached(interface.index, joined.indexes)
        self._save()
        log(f"network: {interface.name} is gone from the machine")

    def _save(self) -> None:
        self.record.update(wires={card: w.to_json() for card, w in self.wires.values()}, ports=self.machine.ports)

    async def stop(self) -> None:
        """Take our hands off the namespace: it may be an engine's, and outlive us."""
        if self._watcher is None:
            return
        asyncio.get_running_loop().remove_reader(self._watcher.fileno())
        async with self._lock:
            self._detach_all()

    def _detach_all(self) -> None:
        if self._watcher is None:
            return
        for _card, joined in self.wires.values():
            try:
                wire.detach(self._watcher.rtnl, joined)
            except HostError as e:
                log(f"network: {e}")
        self.wires.clear()
        with suppress(HostError):  # a folder that is gone already
            self._save()
        self._watcher.close()
        self._watcher = None

    # --- name service --------------------------------------------------------------------

    async def relay_dns(self, addresses: Sequence[str]) -> None:
        """Relay the resolvers at these loopback addresses, which the guest cannot reach itself."""
        async with self._lock:
            self._wanted_dns.update(addresses)
            await self._relay()

    async def _relay(self) -> None:
        wanted = self._wanted_dns | _loopback_resolvers()
        if wanted != self._relayed:
            await self.agent.guest("SetDnsRelay", guest_pb2.SetDnsRelayRequest(addresses=sorted(wanted)))
            self._relayed = wanted

    async def answer_dns(self, query: Any) -> None:
        """Ask the resolver on the host's side what a guest asked its relay."""
        if self._queries >= DNS_OUTSTANDING:
            return  # a resolver asks again
        self._queries += 1
        answer = b""
        try:
            if query.server in self._relayed and len(query.query) <= DNS_MAX:
                ask = _ask_tcp if query.tcp else _ask_udp
                try:
                    answer = await asyncio.wait_for(ask(query.server, query.query), DNS_TIMEOUT)
                except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
                    log(f"network: resolver {query.server}: {type(e).__name__} {e}")
            await self.agent.guest("AnswerDns", guest_pb2.DnsAnswer(id=query.id, answer=answer))
        finally:
            self._queries -= 1


def _loopback_resolvers() -> set[str]:
    """Loopback addresses of this namespace, other than 127.0.0.1, that take UDP.

    dockerd opens its name server for user-defined networks there, also for a
    container that joins such a network while it runs.
    """
    found = set()
    with suppress(FileNotFoundError), open("/proc/self/net/udp", encoding="ascii") as f:
        next(f)
        for line in f:
            raw = int(line.split()[1].split(":")[0], 16)
            address = socket.inet_ntoa(struct.pack("=I", raw))
            if address.startswith("127.") and address != "127.0.0.1":
                found.add(address)
    return found


async def _ask_udp(server: str, query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        sock.connect((server, DNS_PORT))
        await loop.sock_sendall(sock, query)
        return await loop.sock_recv(sock, DNS_MAX)


async def _ask_tcp(server: str, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(server, DNS_PORT)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        await writer.drain()
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        return await reader.readexactly(length)
    finally:
        writer.close()
