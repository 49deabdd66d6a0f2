"""A blocking rtnetlink socket, and a monitor of the namespace it was opened in.

A socket stays in the network namespace in which it was made, whatever its
thread joins later.  Errors are :class:`OSError` with the kernel's explanation.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

from kata_agent.linux import netlink as nl
from kata_agent.linux.light import socket
from kata_agent.linux.netlink import Address, Event, Link, Message, Neighbour, Route

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Self, TypeVar

    T = TypeVar("T")

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_ROUTE = 0
_DATAGRAM = 1 << 17  # bytes; the kernel builds datagrams of at most 32 KiB
_CREATE = nl.NLM_F_CREATE | nl.NLM_F_EXCL


def _open(groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock


class Rtnl:
    """Requests to the kernel; use as a context manager.

    :param timeout: seconds to wait for an answer before :class:`TimeoutError`.
    """

    def __init__(self, timeout: float = 10.0) -> None:
        self._sock = _open(0)
        self._sock.settimeout(timeout)
        self._seq = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    # --- requests ------------------------------------------------------------------

    def request(self, kind: int, flags: int, body: bytes, what: str) -> list[Message]:
        """Send one request and collect its answers; ``what`` names it in errors."""
        self._seq += 1
        self._sock.send(nl.pack(kind, flags | nl.NLM_F_REQUEST | nl.NLM_F_ACK, self._seq, body))
        answers: list[Message] = []
        while True:
            for message in self._receive(what):
                if message.seq != self._seq:
                    continue  # the rest of a request that timed out
                if message.type == nl.NLMSG_ERROR:
                    code, text = nl.error_of(message)
                    if code:
                        raise OSError(code, f"{what}: {text or os.strerror(code)}")
                    return answers
                if message.type == nl.NLMSG_DONE:
                    code = -struct.unpack_from("=i", message.body)[0] if len(message.body) >= 4 else 0
                    if code:
                        raise OSError(code, f"{what}: {os.strerror(code)}")
                    return answers
                answers.append(message)

    def _receive(self, what: str) -> list[Message]:
        try:
            data, _anc, flags, sender = self._sock.recvmsg(_DATAGRAM)
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, f"{what}: the kernel did not answer on rtnetlink") from None
        if sender[0] != 0:
            return []  # not from the kernel
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, f"{what}: rtnetlink answer longer than {_DATAGRAM} bytes")
        return list(nl.unpack(data))

    def dump(self, kind: int, body: bytes, parse: Callable[[bytes], T], what: str) -> list[T]:
        """All objects of a kind, parsed."""
        # NLM_F_DUMP_INTR: the table changed meanwhile and the dump may miss entries (netlink(7)); ask anew.
        for _attempt in range(16):
            answers = self.request(kind, nl.NLM_F_DUMP, body, what)
            if not any(m.flags & nl.NLM_F_DUMP_INTR for m in answers):
                return [parse(m.body) for m in answers]
        raise OSError(errno.EAGAIN, f"{what}: the table keeps changing while it is read")

    # --- links ---------------------------------------------------------------------

    def links(self) -> list[Link]:
        """All interfaces, by index."""
        found = self.dump(nl.RTM_GETLINK, nl.ifinfo(), nl.parse_link, "list interfaces")
        return sorted(found, key=lambda link: link.ifindex)

    def link(self, which: int | str) -> Link:
        """One interface by index or name.

        :raise OSError: ENODEV, there is none.
        """
        if isinstance(which, int):
            body = nl.ifinfo(which)
        else:
            body = nl.ifinfo() + nl.attr_str(nl.IFLA_IFNAME, nl.pack_name(which))
        answers = self.request(nl.RTM_GETLINK, 0, body, f"find interface {which}")
        if not answers:
            raise OSError(errno.ENODEV, f"find interface {which}: no answer")
        return nl.parse_link(answers[0].body)

    def set_link(
        self, index: int, *, up: bool | None = None, name: str = "", address: str = "", mtu: int = 0,
        master: int | None = None, netns_fd: int | None = None, promiscuous: bool | None = None,
        no_link_local: bool = False, arp: bool | None = None,
    ) -> None:
        """Change what is given; ``master`` 0 takes it out of its bridge.

        :param no_link_local: the kernel shall not make an IPv6 link-local address when it goes up.
        """
        flags = change = 0
        no_arp = None if arp is None else not arp
        for bit, wanted in ((nl.IFF_UP, up), (nl.IFF_PROMISC, promiscuous), (nl.IFF_NOARP, no_arp)):
            if wanted is not None:
                change |= bit
                flags |= bit if wanted else 0
        body = nl.ifinfo(index, flags, change)
        if name:
            body += nl.attr_str(nl.IFLA_IFNAME, nl.pack_name(name))
        if address:
            body += nl.attr(nl.IFLA_ADDRESS, nl.pack_mac(address))
        if mtu:
            body += nl.attr_u32(nl.IFLA_MTU, mtu)
        if master is not None:
            body += nl.attr_u32(nl.IFLA_MASTER, master)
        if netns_fd is not None:
            body += nl.attr_u32(nl.IFLA_NET_NS_FD, netns_fd)
        if no_link_local:
            mode = nl.attr(nl.IFLA_INET6_ADDR_GEN_MODE, bytes([nl.IN6_ADDR_GEN_MODE_NONE]))
            body += nl.attr_nest(nl.IFLA_AF_SPEC, nl.attr_nest(nl.AF_INET6, mode))
        self.request(nl.RTM_NEWLINK, 0, body, f"set interface {index}")

    def add_link(
        self, name: str, kind: str, *, peer: str = "", peer_netns_fd: int | None = None, lower: int = 0,
        mtu: int = 0, address: str = "", netns_fd: int | None = None, passthru: bool = False,
    ) -> Link:
        """Make a ``dummy``, ``bridge``, ``veth`` (with ``peer``) or ``macvtap``/``macvlan`` (on ``lower``).

        A bridge forwards all multicast; macvtap and macvlan are in bridge mode unless ``passthru``.

        :return: the link; if it was made in another namespace (``netns_fd``) its index is 0.
        """
        attrs = [nl.attr_str(nl.IFLA_IFNAME, nl.pack_name(name))]
        if mtu:
            attrs.append(nl.attr_u32(nl.IFLA_MTU, mtu))
        if address:
            attrs.append(nl.attr(nl.IFLA_ADDRESS, nl.pack_mac(address)))
        if lower:
            attrs.append(nl.attr_u32(nl.IFLA_LINK, lower))
        if netns_fd is not None:
            attrs.append(nl.attr_u32(nl.IFLA_NET_NS_FD, netns_fd))
        info = [nl.attr_str(nl.IFLA_INFO_KIND, kind)]
        if kind == "veth":
            other = nl.ifinfo() + nl.attr_str(nl.IFLA_IFNAME, nl.pack_name(peer))
            if peer_netns_fd is not None:
                other += nl.attr_u32(nl.IFLA_NET_NS_FD, peer_netns_fd)
            if mtu:
                other += nl.attr_u32(nl.IFLA_MTU, mtu)
            info.append(nl.attr_nest(nl.IFLA_INFO_DATA, nl.attr(nl.VETH_INFO_PEER, other)))
        elif kind in ("macvtap", "macvlan"):
            mode = nl.MACVLAN_MODE_PASSTHRU if passthru else nl.MACVLAN_MODE_BRIDGE
            info.append(nl.attr_nest(nl.IFLA_INFO_DATA, nl.attr_u32(nl.IFLA_MACVLAN_MODE, mode)))
        elif kind == "bridge":
            info.append(nl.attr_nest(nl.IFLA_INFO_DATA, nl.attr(nl.IFLA_BR_MCAST_SNOOPING, b"\0")))
        elif kind != "dummy":
            raise ValueError(f"cannot make an interface of kind {kind!r}")
        body = nl.ifinfo() + b"".join(attrs) + nl.attr_nest(nl.IFLA_LINKINFO, *info)
        self.request(nl.RTM_NEWLINK, _CREATE, body, f"make {kind} interface {name}")
        if netns_fd is not None:
            return Link(0, name, kind, 0, mtu, address, 0, 0, -1, 1, None)
        return self.link(name)

    def delete_link(self, index: int) -> None:
        """Remove an interface (the peer of a veth goes with it)."""
        self.request(nl.RTM_DELLINK, 0, nl.ifinfo(index), f"delete interface {index}")

    # --- addresses -----------------------------------------------------------------

    def addresses(self, index: int = 0, family: int = nl.AF_UNSPEC) -> list[Address]:
        """Addresses of one interface, or of all (0)."""
        found = self.dump(nl.RTM_GETADDR, nl.ifaddr(family, 0, 0, 0, 0), nl.parse_address, "list addresses")
        return [a for a in found if not index or a.ifindex == index]

    def _address_body(self, index: int, prefix: str, flags: int, peer: str, broadcast: str, scope: int) -> bytes:
        own, bits = nl.split_prefix(prefix)
        body = nl.ifaddr(nl.family_of(own), bits, flags, scope, index)
        body += nl.attr(nl.IFA_LOCAL, nl.pack_ip(own)) + nl.attr(nl.IFA_ADDRESS, nl.pack_ip(peer or own))
        if broadcast:
            body += nl.attr(nl.IFA_BROADCAST, nl.pack_ip(broadcast))
        if flags:
            body += nl.attr_u32(nl.IFA_FLAGS, flags)
        return body

    def add_address(
        self, index: int, prefix: str, *, flags: int = 0, peer: str = "", broadcast: str = "", scope: int = 0,
        replace: bool = False,
    ) -> None:
        """Add ``address/bits``; for IPv6 IFA_F_NODAD in ``flags`` makes it usable at once."""
        mode = nl.NLM_F_CREATE | nl.NLM_F_REPLACE if replace else _CREATE
        body = self._address_body(index, prefix, flags, peer, broadcast, scope)
        self.request(nl.RTM_NEWADDR, mode, body, f"add address {prefix} to interface {index}")

    def delete_address(self, index: int, prefix: str, *, peer: str = "") -> None:
        """Remove ``address/bits``."""
        body = self._address_body(index, prefix, 0, peer, "", 0)
        self.request(nl.RTM_DELADDR, 0, body, f"delete address {prefix} of interface {index}")

    def flush_addresses(self, index: int, *, link_local: bool = True) -> None:
        """Remove all addresses of an interface; ``link_local`` False keeps those of fe80::/10."""
        for a in self.addresses(index):
            if not link_local and a.family == nl.AF_INET6 and a.scope == nl.RT_SCOPE_LINK:
                continue
            try:
                self.delete_address(index, f"{a.address}/{a.prefix}", peer=a.peer)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # a secondary address went with its primary
                    raise

    # --- routes --------------------------------------------------------------------

    def routes(self, table: int = nl.RT_TABLE_MAIN, family: int = nl.AF_UNSPEC) -> list[Route]:
        """Routes of a table (0 = all tables), without cached ones."""
        found: list[Route] = []
        for each in (nl.AF_INET, nl.AF_INET6) if family == nl.AF_UNSPEC else (family,):
            found += self.dump(nl.RTM_GETROUTE, nl.rtmsg(each, 0, 0, 0, 0, 0, 0), nl.parse_route, "list routes")
        return [r for r in found if (not table or r.table == table) and not r.flags & nl.RTM_F_CLONED]

    def _route_body(
        self, dst: str, gateway: str, oif: int, source: str, scope: int | None, metric: int, onlink: bool,
        table: int, protocol: int, kind: int, family: int,
    ) -> bytes:
        default = dst in ("", "default", "0.0.0.0/0", "::/0")
        address, bits = ("", 0) if default else nl.split_prefix(dst)
        if dst == "::/0" or ":" in (address or gateway or source):
            family = nl.AF_INET6
        if scope is None:
            scope = nl.RT_SCOPE_UNIVERSE if gateway or family == nl.AF_INET6 else nl.RT_SCOPE_LINK
        body = nl.rtmsg(family, bits, table, protocol, scope, kind, nl.RTNH_F_ONLINK if onlink else 0)
        if not default:
            body += nl.attr(nl.RTA_DST, nl.pack_ip(address))
        if gateway and nl.family_of(gateway) != family:
            raw = struct.pack("=H", nl.family_of(gateway)) + nl.pack_ip(gateway)
            body += nl.attr(nl.RTA_VIA, raw)
        elif gateway:
            body += nl.attr(nl.RTA_GATEWAY, nl.pack_ip(gateway))
        if oif:
            body += nl.attr_u32(nl.RTA_OIF, oif)
        if source:
            body += nl.attr(nl.RTA_PREFSRC, nl.pack_ip(source))
        if metric:
            body += nl.attr_u32(nl.RTA_PRIORITY, metric)
        if table > 255:
            body += nl.attr_u32(nl.RTA_TABLE, table)
        return body

    def add_route(
        self, dst: str, *, gateway: str = "", oif: int = 0, source: str = "", scope: int | None = None,
        metric: int = 0, onlink: bool = False, table: int = nl.RT_TABLE_MAIN, protocol: int = nl.RTPROT_BOOT,
        kind: int = nl.RTN_UNICAST, family: int = nl.AF_INET, replace: bool = False,
    ) -> None:
        """Add a route to ``dst`` ("" or "default", or ``address/bits``).

        :param scope: None picks link without a gateway, else universe.
        :param family: only looked at for a default route without gateway and source.
        """
        body = self._route_body(dst, gateway, oif, source, scope, metric, onlink, table, protocol, kind, family)
        mode = nl.NLM_F_CREATE | nl.NLM_F_REPLACE if replace else _CREATE
        via = f" via {gateway}" if gateway else ""
        self.request(nl.RTM_NEWROUTE, mode, body, f"add route {dst or 'default'}{via} on interface {oif}")

    def delete_route(
        self, dst: str, *, gateway: str = "", oif: int = 0, source: str = "", scope: int = nl.RT_SCOPE_NOWHERE,
        metric: int = 0, table: int = nl.RT_TABLE_MAIN, family: int = nl.AF_INET,
    ) -> None:
        """Remove the first route that matches what is given."""
        body = self._route_body(dst, gateway, oif, source, scope, metric, False, table, 0, 0, family)
        self.request(nl.RTM_DELROUTE, 0, body, f"delete route {dst or 'default'} of interface {oif}")

    # --- neighbours ----------------------------------------------------------------

    def neighbours(self, index: int = 0) -> list[Neighbour]:
        """Neighbour entries of one interface, or of all (0)."""
        found = self.dump(nl.RTM_GETNEIGH, nl.ndmsg(0, 0, 0, 0), nl.parse_neighbour, "list neighbours")
        return [n for n in found if not index or n.ifindex == index]

    def add_neighbour(
        self, index: int, address: str, lladdr: str, *, state: int = nl.NUD_PERMANENT, flags: int = 0
    ) -> None:
        """Add or replace a neighbour entry."""
        body = nl.ndmsg(nl.family_of(address), index, state, flags)
        body += nl.attr(nl.NDA_DST, nl.pack_ip(address)) + nl.attr(nl.NDA_LLADDR, nl.pack_mac(lladdr))
        mode = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
        self.request(nl.RTM_NEWNEIGH, mode, body, f"add neighbour {address} on interface {index}")


class Monitor:
    """Changes of links, addresses and routes; readable when there is one.

    Messages queue from the moment this is made, so a dump made afterwards
    misses nothing.
    """

    GROUPS = (nl.RTMGRP_LINK | nl.RTMGRP_IPV4_IFADDR | nl.RTMGRP_IPV4_ROUTE
              | nl.RTMGRP_IPV6_IFADDR | nl.RTMGRP_IPV6_ROUTE)

    def __init__(self, groups: int = GROUPS) -> None:
        self._sock = _open(groups)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def events(self) -> list[tuple[bool, Event]] | None:
        """Drain the socket: ``(appeared or changed, object)`` in order; never blocks.

        :return: None when messages were lost (the queue was full): take a new dump.
        """
        found: list[tuple[bool, Event]] = []
        lost = False
        while True:
            try:
                data, _anc, flags, sender = self._sock.recvmsg(_DATAGRAM)
            except BlockingIOError:
                return None if lost else found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            if sender[0] != 0:
                continue
            if flags & socket.MSG_TRUNC:
                lost = True
                continue
            for message in nl.unpack(data):
                event = nl.parse_event(message)
                if event is not None:
                    found.append(event)
