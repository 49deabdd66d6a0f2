"""What is in a network namespace, for the guest to be given the same.

Only Ethernet interfaces can be carried into a machine; others that are in use
are listed by name in :attr:`Inventory.unsupported`, and what the agent's
messages cannot express is listed in :attr:`Inventory.notes`.
"""

from __future__ import annotations

from typing import Any

from kata.network import names
from kata.record import Record
from kata_agent.linux import netlink as nl
from kata_agent.linux.rtnl import Rtnl

_ARPHRD_ETHER = 1
_IFF_NOARP = 0x80


class IPAddress(Record):
    """An address with its prefix length in bits; ``family`` is 4 or 6."""

    family: int
    address: str
    prefix: int

    def agent(self) -> dict[str, Any]:
        """As ``types.IPAddress``."""
        return {"family": int(self.family == 6), "address": self.address, "mask": str(self.prefix)}


class Interface(Record):
    """An Ethernet interface; MTU in bytes."""

    index: int
    name: str
    mac: str
    mtu: int
    kind: str  #: "veth", "macvlan"...; "" for hardware
    up: bool
    flags: int  #: IFF_NOARP, the only flag the guest must copy
    addresses: tuple[IPAddress, ...]

    @property
    def ready(self) -> bool:
        """Whether whoever makes it has begun to configure it (it was made, renamed and moved before)."""
        return self.up or bool(self.addresses)

    def agent(self, pci_path: str = "") -> dict[str, Any]:
        """As ``types.Interface``."""
        return {
            "device": self.name,
            "name": self.name,
            "IPAddresses": [a.agent() for a in self.addresses],
            "mtu": self.mtu,
            "hwAddr": self.mac,
            "pciPath": pci_path,
            "type": "",
            "raw_flags": self.flags,
        }


class Route(Record):
    """A unicast route of the main table; ``dest`` "" is the default route."""

    family: int  #: 4 or 6
    dest: str
    gateway: str
    device: str
    source: str
    scope: int
    metric: int
    onlink: bool

    def agent(self) -> dict[str, Any]:
        """As ``types.Route``; the family of a default route without gateway is told by ``::/0``."""
        dest = self.dest or ("::/0" if self.family == 6 and not self.gateway else "")
        return {"dest": dest, "gateway": self.gateway, "device": self.device, "source": self.source,
                "scope": self.scope}


class Neighbour(Record):
    """A permanent neighbour entry."""

    address: IPAddress
    device: str
    mac: str
    state: int
    flags: int

    def agent(self) -> dict[str, Any]:
        """As ``types.ARPNeighbor``."""
        to = {**self.address.agent(), "mask": ""}
        return {"toIPAddress": to, "device": self.device, "lladdr": self.mac, "state": self.state, "flags": self.flags}


class Inventory(Record):
    """Interfaces by index, routes in the order in which they can be added."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    unsupported: tuple[str, ...] = ()  #: interfaces in use that no machine can have
    notes: tuple[str, ...] = ()  #: what the agent cannot be told, a sentence each

    def interface(self, index: int) -> Interface | None:
        """The interface of that index."""
        return next((i for i in self.interfaces if i.index == index), None)

    def agent_interfaces(self) -> list[dict[str, Any]]:
        """All interfaces as ``types.Interface``."""
        return [i.agent() for i in self.interfaces]

    def agent_routes(self) -> list[dict[str, Any]]:
        """All routes as ``types.Route``, each after those that make its gateway reachable.

        ``types.Route`` has no flag for "the gateway is on the link": a host
        route to that gateway comes first instead.  It has no metric either:
        of several routes to one destination the preferred one is taken.
        """
        found: list[dict[str, Any]] = []
        seen: set[tuple[int, str]] = set()
        linked: set[str] = set()
        for route in self.routes:
            if (route.family, route.dest) in seen:
                continue
            seen.add((route.family, route.dest))
            if route.onlink and route.gateway and route.gateway not in linked:
                linked.add(route.gateway)
                bits = 128 if ":" in route.gateway else 32
                found.append({"dest": f"{route.gateway}/{bits}", "gateway": "", "device": route.device,
                              "source": "", "scope": nl.RT_SCOPE_LINK})
            found.append(route.agent())
        return found

    def agent_neighbours(self) -> list[dict[str, Any]]:
        """All permanent neighbours as ``types.ARPNeighbor``."""
        return [n.agent() for n in self.neighbours]


def take(rtnl: Rtnl, ours: frozenset[int] = frozenset(), macs: dict[int, str] | None = None) -> Inventory:
    """What is in the namespace of ``rtnl``.

    :param ours: indexes of interfaces to leave out, besides those with our name prefix.
    :param macs: hardware addresses the machine has instead of the interface's present one
        (the bridged model changes it on the host).
    """
    links = {}
    unsupported = []
    addresses: dict[int, list[nl.Address]] = {}
    for found in rtnl.addresses():
        addresses.setdefault(found.ifindex, []).append(found)
    for link in rtnl.links():
        if link.flags & nl.IFF_LOOPBACK or link.ifindex in ours or names.is_ours(link.name):
            continue
        if link.hardware == _ARPHRD_ETHER:
            links[link.ifindex] = link
        elif link.up or link.ifindex in addresses:
            # Tunnel drivers put an idle device into every namespace: only one in use is worth a word.
            unsupported.append(link.name)
    interfaces = tuple(
        _interface(link, addresses.get(index, []), (macs or {}).get(index, link.address))
        for index, link in sorted(links.items())
    )
    notes: list[str] = []
    routes = _routes(rtnl, links, notes)
    neighbours = tuple(
        Neighbour(_address(n.address, 128 if ":" in n.address else 32), links[n.ifindex].name, n.lladdr, n.state,
                  n.flags)
        for n in rtnl.neighbours()
        if n.ifindex in links and n.state & nl.NUD_PERMANENT and n.address and n.lladdr
    )
    return Inventory(interfaces, routes, neighbours, tuple(unsupported), tuple(notes))


def _address(address: str, prefix: int) -> IPAddress:
    return IPAddress(6 if ":" in address else 4, address, prefix)


def _interface(link: nl.Link, addresses: list[nl.Address], mac: str) -> Interface:
    own = eui64(mac)
    kept = tuple(
        _address(a.address, a.prefix)
        for a in addresses
        # The guest's kernel makes the link-local address of the MAC by itself.
        if a.address != own and not a.flags & nl.IFA_F_DADFAILED
    )
    return Interface(link.ifindex, link.name, mac, link.mtu, link.kind, link.up, link.flags & _IFF_NOARP, kept)


def eui64(mac: str) -> str:
    """The link-local address that the kernel derives from a hardware address (RFC 4291, appendix A)."""
    raw = nl.pack_mac(mac)
    host = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return nl.unpack_ip(b"\xfe\x80" + bytes(6) + host)


def _routes(rtnl: Rtnl, links: dict[int, nl.Link], notes: list[str]) -> tuple[Route, ...]:
    found = []
    for r in rtnl.routes(nl.RT_TABLE_MAIN):
        # Routes of protocol "kernel" come with the addresses; the guest's kernel adds them itself.
        if r.protocol == nl.RTPROT_KERNEL or r.type != nl.RTN_UNICAST:
            continue
        gateway, oif, flags = r.gateway, r.oif, r.flags
        if r.nexthops:
            hop = next((h for h in r.nexthops if h.oif in links), None)
            if hop is None:
                continue
            gateway, oif, flags = hop.gateway, hop.oif, hop.flags
            notes.append(f"route {r.dst or 'default'} has {len(r.nexthops)} next hops, the guest uses the first")
        if oif not in links:
            continue
        if gateway and (":" in gateway) != (r.family == nl.AF_INET6):
            notes.append(f"route {r.dst} has a gateway of the other address family, the guest does not get it")
            continue
        found.append(Route(6 if r.family == nl.AF_INET6 else 4, r.dst, gateway, links[oif].name, r.source, r.scope,
                           r.metric, bool(flags & nl.RTNH_F_ONLINK)))
    # Without a gateway first: they make gateways reachable; then the most specific, then the preferred.
    found.sort(key=lambda r: (bool(r.gateway), -int(r.dest.partition("/")[2] or 0), r.metric))
    return tuple(found)
