"""The sandbox's network: interfaces come from the guest's own namespace when the host names them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from kata_agent import log
from kata_agent.errors import AgentError, internal, invalid, not_found
from kata_agent.linux import netlink as nl
from kata_agent.linux import syscalls as sc
from kata_agent.linux.rtnl import Rtnl
from kata_agent.protocol import agent_pb2, codes
from kata_agent.protocol import types_pb2 as types
from kata_agent.uevent import Uevents

_MAX_ITEMS = 4096  # addresses, routes or neighbours of one request


class Network:
    """Two rtnetlink sockets: one in the guest's own namespace, one in the sandbox's.

    :param own: descriptor of the agent's network namespace.
    :param netns: descriptor of the sandbox's.
    :param timeout: seconds until an interface must appear.
    """

    def __init__(self, own: int, netns: int, uevents: Uevents, timeout: float) -> None:
        self._own = own
        self._netns = netns
        self._uevents = uevents
        self._timeout = timeout
        self._guest = Rtnl()
        with self.inside():
            self._rtnl = Rtnl()
            # An address is usable at once: nobody else can have it, as the host gave it.
            for name in ("default", "all"):
                _set_conf(name, "accept_dad", "0")
        for rtnl in (self._guest, self._rtnl):
            try:
                rtnl.set_link(rtnl.link("lo").ifindex, up=True)
            except OSError as error:
                log.warning(f"loopback interface: {error}")

    def inside(self) -> _Inside:
        """Context manager: this process is in the sandbox's network namespace."""
        return _Inside(self._own, self._netns)

    # --- interfaces --------------------------------------------------------------------

    def update_interface(
        self, wanted: types.Interface, done: Callable[[types.Interface | AgentError], None]
    ) -> None:
        """Bring the interface with ``wanted.hwAddr`` into the sandbox, with this name, MTU and these addresses.

        :raise AgentError: INVALID_ARGUMENT.
        """
        address = wanted.hwAddr.lower()
        name = wanted.name or wanted.device
        try:
            nl.pack_mac(address)
            nl.pack_name(name)
            prefixes = [_prefix(ip) for ip in wanted.IPAddresses]
        except ValueError as error:
            raise invalid(str(error)) from None
        if len(prefixes) > _MAX_ITEMS or not 0 <= wanted.mtu < 1 << 31:
            raise invalid(f"too many addresses, or no MTU: {wanted.mtu}")

        def present(found: bool | None) -> None:
            if not found:
                done(AgentError(codes.DEADLINE_EXCEEDED,
                                f"no interface with address {address} appeared within {self._timeout:g} s"))
                return
            try:
                self._configure(address, name, wanted, prefixes)
            except OSError as error:
                done(internal(f"interface {name}: {error.strerror or error}"))
            else:
                done(wanted)

        self._uevents.wait(lambda: True if self._find(address) else None, self._timeout, present)

    def _find(self, address: str) -> tuple[Rtnl, nl.Link] | None:
        for rtnl in (self._rtnl, self._guest):
            for link in rtnl.links():
                if link.address == address and not link.flags & nl.IFF_LOOPBACK:
                    return rtnl, link
        return None

    def _configure(self, address: str, name: str, wanted: types.Interface, prefixes: list[str]) -> None:
        found = self._find(address)
        if found is None:
            raise OSError(errno.ENODEV, "it has vanished")
        rtnl, link = found
        self._free_name(name, address)
        if rtnl is self._guest:
            rtnl.set_link(link.ifindex, up=False)
            rtnl.set_link(link.ifindex, name=name, netns_fd=self._netns)
        elif link.name != name:
            rtnl.set_link(link.ifindex, up=False)
            rtnl.set_link(link.ifindex, name=name)
        index = self._rtnl.link(name).ifindex
        if wanted.mtu:
            self._rtnl.set_link(index, mtu=wanted.mtu)
        if wanted.raw_flags & nl.IFF_NOARP:
            body = nl.ifinfo(index, nl.IFF_NOARP, nl.IFF_NOARP)
            self._rtnl.request(nl.RTM_NEWLINK, 0, body, f"set interface {name} to NOARP")
        with self.inside():
            # Without an IPv6 address outside there shall be none inside, not even a link-local one.
            _set_conf(name, "addr_gen_mode", "0" if any(":" in p for p in prefixes) else "1")
        kept = set(prefixes)
        for old in self._rtnl.addresses(index):
            text = f"{old.address}/{old.prefix}"
            if text not in kept:
                try:
                    self._rtnl.delete_address(index, text, peer=old.peer)
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:
                        raise
        self._rtnl.set_link(index, up=True)
        for prefix in prefixes:
            self._rtnl.add_address(index, prefix, flags=nl.IFA_F_NODAD if ":" in prefix else 0,
                                   broadcast=_broadcast(prefix), replace=True)

    def _free_name(self, name: str, address: str) -> None:
        """If another interface has the name, it gets one of the kernel's kind: two names may be swapped."""
        for link in self._rtnl.links():
            if link.name == name and link.address != address:
                if link.flags & nl.IFF_LOOPBACK:
                    raise OSError(errno.EEXIST, "the loopback interface has this name")
                self._rtnl.set_link(link.ifindex, up=False)
                self._rtnl.set_link(link.ifindex, name=f"moved{link.ifindex}")
                self._rtnl.set_link(link.ifindex, up=True)

    def remove_interface(self, address: str) -> None:
        """Take the interface with this hardware address out of the sandbox; one that is gone is no error.

        :raise AgentError: INVALID_ARGUMENT.
        """
        try:
            nl.pack_mac(address)
        except ValueError as error:
            raise invalid(str(error)) from None
        found = self._find(address.lower())
        if found is None or found[0] is self._guest:
            return
        link = found[1]
        self._rtnl.set_link(link.ifindex, up=False)
        self._rtnl.set_link(link.ifindex, name=f"unused{link.ifindex}", netns_fd=self._own)

    def interfaces(self) -> list[types.Interface]:
        """Interfaces of the sandbox with their addresses."""
        addresses = self._rtnl.addresses()
        result = []
        for link in self._rtnl.links():
            ips = [
                types.IPAddress(family=types.v6 if a.family == nl.AF_INET6 else types.v4, address=a.address,
                                mask=str(a.prefix))
                for a in addresses if a.ifindex == link.ifindex
            ]
            result.append(types.Interface(device=link.name, name=link.name, IPAddresses=ips, mtu=link.mtu,
                                          hwAddr=link.address, type=link.kind, raw_flags=link.flags))
        return result

    def counters(self) -> list[agent_pb2.NetworkStats]:
        """Counters of the sandbox's interfaces, but for loopback."""
        result = []
        for link in self._rtnl.links():
            if link.stats is None or link.flags & nl.IFF_LOOPBACK:
                continue
            s = link.stats
            result.append(agent_pb2.NetworkStats(
                name=link.name, rx_bytes=s.rx_bytes, rx_packets=s.rx_packets, rx_errors=s.rx_errors,
                rx_dropped=s.rx_dropped, tx_bytes=s.tx_bytes, tx_packets=s.tx_packets, tx_errors=s.tx_errors,
                tx_dropped=s.tx_dropped))
        return result

    # --- routes ------------------------------------------------------------------------

    def update_routes(self, wanted: Sequence[types.Route]) -> list[types.Route]:
        """Make ``wanted`` the routes of the main table, but for those the kernel made itself.

        When one cannot be added, the old ones are put back as far as possible.

        :raise AgentError: INVALID_ARGUMENT, NOT_FOUND, INTERNAL.
        """
        if len(wanted) > _MAX_ITEMS:
            raise invalid(f"more than {_MAX_ITEMS} routes")
        names = {link.name: link.ifindex for link in self._rtnl.links()}
        for route in wanted:
            _check_route(route)
            if route.device not in names:
                raise not_found(f"route to {route.dest or 'default'}: there is no interface {route.device!r}")
        old = [r for r in self._rtnl.routes() if r.protocol != nl.RTPROT_KERNEL and r.type == nl.RTN_UNICAST]
        self._delete(old)
        # The way to a gateway must be there before the routes that lead through it.
        try:
            for route in sorted(wanted, key=lambda r: bool(r.gateway)):
                self._add(route, names[route.device])
        except OSError as error:
            self._restore(old)
            raise internal(str(error.strerror or error)) from None
        return self.routes()

    def _delete(self, routes: list[nl.Route]) -> None:
        for route in routes:
            try:
                self._rtnl.delete_route(route.dst, gateway=route.gateway, oif=route.oif, metric=route.metric,
                                        family=route.family)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise internal(str(error.strerror)) from None

    def _add(self, route: types.Route, oif: int) -> None:
        family = nl.family_of(route.gateway or route.source or route.dest.partition("/")[0])
        scope = route.scope if route.scope else None
        # The host's own gateway may lie outside of every prefix, as with /32 addresses.
        onlink = bool(route.gateway) and scope == nl.RT_SCOPE_LINK
        try:
            self._rtnl.add_route(
                route.dest, gateway=route.gateway, oif=oif, source=route.source,
                scope=nl.RT_SCOPE_UNIVERSE if route.gateway else scope, family=family, onlink=onlink, replace=True)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return
            if error.errno != errno.ENETUNREACH or not route.gateway or onlink:
                raise
            self._rtnl.add_route(route.dest, gateway=route.gateway, oif=oif, source=route.source,
                                 scope=nl.RT_SCOPE_UNIVERSE, family=family, onlink=True, replace=True)

    def _restore(self, old: list[nl.Route]) -> None:
        current = [r for r in self._rtnl.routes() if r.protocol != nl.RTPROT_KERNEL and r.type == nl.RTN_UNICAST]
        self._delete(current)
        for route in sorted(old, key=lambda r: bool(r.gateway)):
            try:
                self._rtnl.add_route(
                    route.dst, gateway=route.gateway, oif=route.oif, source=route.source, scope=route.scope,
                    metric=route.metric, family=route.family, onlink=bool(route.flags & nl.RTNH_F_ONLINK))
            except OSError as error:
                log.warning(f"a route could not be put back: {error.strerror}")

    def routes(self) -> list[types.Route]:
        """Routes of the main table."""
        names = {link.ifindex: link.name for link in self._rtnl.links()}
        return [
            types.Route(dest=r.dst, gateway=r.gateway, device=names.get(r.oif, ""), source=r.source, scope=r.scope)
            for r in self._rtnl.routes() if r.type == nl.RTN_UNICAST
        ]

    # --- neighbours ----------------------------------------------------------------------

    def add_neighbours(self, wanted: Sequence[types.ARPNeighbor]) -> None:
        """Add permanent neighbour entries.

        :raise AgentError: INVALID_ARGUMENT, NOT_FOUND.
        """
        if len(wanted) > _MAX_ITEMS:
            raise invalid(f"more than {_MAX_ITEMS} neighbours")
        names = {link.name: link.ifindex for link in self._rtnl.links()}
        for neighbour in wanted:
            if neighbour.device not in names:
                raise not_found(f"there is no interface {neighbour.device!r}")
            address = neighbour.toIPAddress.address.partition("/")[0]
            try:
                self._rtnl.add_neighbour(names[neighbour.device], address, neighbour.lladdr,
                                         state=neighbour.state or nl.NUD_PERMANENT, flags=neighbour.flags)
            except ValueError as error:
                raise invalid(str(error)) from None


class _Inside:
    def __init__(self, own: int, netns: int) -> None:
        self._own = own
        self._netns = netns

    def __enter__(self) -> None:
        sc.setns(self._netns, sc.CLONE_NEWNET)

    def __exit__(self, *_exc: object) -> None:
        sc.setns(self._own, sc.CLONE_NEWNET)


def _set_conf(interface: str, key: str, value: str) -> None:
    """An IPv6 setting of the present network namespace; without IPv6 there is nothing to set."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{interface}/{key}", "w", encoding="ascii") as file:
            file.write(value)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning(f"ipv6 {key} of {interface}: {error.strerror}")


def _prefix(ip: types.IPAddress) -> str:
    """``address/bits``; a mask may be bits or (IPv4) an address.

    :raise ValueError: it is not.
    """
    mask = ip.mask
    if "." in mask:
        raw = int.from_bytes(nl.pack_ip(mask), "big")
        bits = raw.bit_count()
        if raw != (1 << 32) - (1 << 32 - bits):
            raise ValueError(f"not a network mask: {mask!r}")
        mask = str(bits)
    address, bits = nl.split_prefix(f"{ip.address}/{mask}" if mask else ip.address)
    return f"{address}/{bits}"


def _broadcast(prefix: str) -> str:
    """The broadcast address of an IPv4 prefix, "" where there is none."""
    address, bits = nl.split_prefix(prefix)
    if ":" in prefix or bits > 30:
        return ""
    value = int.from_bytes(nl.pack_ip(address), "big") | (1 << 32 - bits) - 1
    return ".".join(str(byte) for byte in value.to_bytes(4, "big"))


def _check_route(route: types.Route) -> None:
    try:
        if route.dest not in ("", "default"):
            nl.split_prefix(route.dest)
        for address in (route.gateway, route.source):
            if address:
                nl.pack_ip(address)
    except ValueError as error:
        raise invalid(str(error)) from None
