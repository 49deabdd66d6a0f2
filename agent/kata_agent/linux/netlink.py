"""rtnetlink messages: encoding and parsing, without any I/O (see :mod:`kata_agent.linux.rtnl`).

A message is a 16-byte header, a fixed part of its type and attributes (rtnetlink(7),
netlink(7)).  Parsers check every length before they use it and raise
:class:`ValueError` for what does not fit.  Addresses are strings, hardware
addresses are ``aa:bb:cc:dd:ee:ff``, times are not used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kata_agent.linux.light import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    # typing takes longer to import than all of the agent's network code, and its tuples are made by exec().
    class NamedTuple:
        """As typing.NamedTuple, as far as records need it: a constructor, comparison, iteration, repr."""

        def __init__(self, *values, **named):
            fields = type(self).__annotations__
            if len(values) + len(named) != len(fields) or named.keys() - fields.keys():
                raise TypeError(f"{type(self).__name__} has the fields {', '.join(fields)}")
            self.__dict__.update(zip(fields, values, strict=False))
            self.__dict__.update(named)

        def __iter__(self):
            return (self.__dict__[field] for field in type(self).__annotations__)

        def __eq__(self, other):
            return isinstance(other, (tuple, NamedTuple)) and tuple(self) == tuple(other)

        def __hash__(self):
            return hash(tuple(self))

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"

# --- netlink(7) ------------------------------------------------------------------
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

# --- rtnetlink message types and groups -------------------------------------------
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

RTMGRP_LINK = 0x1
RTMGRP_NEIGH = 0x4
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400

# --- links -------------------------------------------------------------------------
IFF_UP = 0x1
IFF_BROADCAST = 0x2
IFF_LOOPBACK = 0x8
IFF_NOARP = 0x80
IFF_PROMISC = 0x100
IFF_MULTICAST = 0x1000
IFF_LOWER_UP = 0x10000

IFLA_ADDRESS, IFLA_BROADCAST, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 2, 3, 4, 5
IFLA_MASTER, IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_IFALIAS = 10, 16, 18, 20
IFLA_STATS64, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_LINK_NETNSID, IFLA_ALT_IFNAME = 23, 26, 28, 37, 53
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_MACVLAN_MODE = 1
MACVLAN_MODE_BRIDGE = 4
MACVLAN_MODE_PASSTHRU = 8
IFLA_BR_MCAST_SNOOPING = 23
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1

# --- addresses ---------------------------------------------------------------------
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 3, 4, 8
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80
IFA_F_NOPREFIXROUTE = 0x200

# --- routes ------------------------------------------------------------------------
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_HOST = 254
RT_SCOPE_NOWHERE = 255
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
RTPROT_STATIC = 4
RTN_UNICAST = 1
RTN_BLACKHOLE = 6
RTNH_F_ONLINK = 4
RTM_F_CLONED = 0x200

# --- neighbours --------------------------------------------------------------------
NDA_DST, NDA_LLADDR = 1, 2
NUD_REACHABLE = 0x02
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80

AF_INET = int(socket.AF_INET)
AF_INET6 = int(socket.AF_INET6)
AF_UNSPEC = int(socket.AF_UNSPEC)

# struct rtnl_link_stats64: the first 24 counters (u64 each); later ones are optional.
_STATS64 = struct.Struct("=8Q")


class Message(NamedTuple):
    """One netlink message without its header."""

    type: int
    flags: int
    seq: int
    body: bytes


class Stats64(NamedTuple):
    """Counters of a link since it was made; bytes, packets."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


class Link(NamedTuple):
    """A network interface."""

    ifindex: int
    name: str
    kind: str  #: "veth", "bridge", "tun"...; "" for hardware
    flags: int  #: IFF_*
    mtu: int  #: bytes
    address: str  #: hardware address, "" if it has none
    master: int  #: index of its bridge, 0 = none
    link: int  #: index of its peer or lower device (in ``link_netnsid`` if >= 0), 0 = none
    link_netnsid: int  #: -1 = this namespace
    hardware: int  #: ARPHRD_*; 1 = Ethernet
    stats: Stats64 | None

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)


class Address(NamedTuple):
    """An IP address on an interface."""

    ifindex: int
    family: int
    address: str
    prefix: int  #: bits
    scope: int
    flags: int  #: IFA_F_*
    peer: str  #: address of the other end of a point-to-point link, else ""
    broadcast: str


class NextHop(NamedTuple):
    """One way of a multipath route."""

    gateway: str
    oif: int
    weight: int
    flags: int


class Route(NamedTuple):
    """A route; ``dst`` is "" for the default route, else ``address/bits``."""

    family: int
    dst: str
    gateway: str
    oif: int
    source: str
    scope: int
    table: int
    protocol: int
    type: int
    metric: int
    flags: int  #: RTNH_F_*, RTM_F_*
    nexthops: tuple[NextHop, ...]


class Neighbour(NamedTuple):
    """A neighbour (ARP or NDP) entry."""

    ifindex: int
    family: int
    address: str
    lladdr: str
    state: int  #: NUD_*
    flags: int


Event = Link | Address | Route | Neighbour


# --- framing -----------------------------------------------------------------------


def pack(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    """A whole message with its header."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, seq, 0) + body


def unpack(data: bytes) -> Iterator[Message]:
    """The messages of one datagram.

    :raise ValueError: a length leaves the datagram.
    """
    offset = 0
    while offset < len(data):
        if len(data) - offset < 16:
            raise ValueError("netlink: truncated header")
        length, kind, flags, seq, _pid = struct.unpack_from("=IHHII", data, offset)
        if length < 16 or length > len(data) - offset:
            raise ValueError(f"netlink: message length {length} leaves its datagram")
        yield Message(kind, flags, seq, data[offset + 16 : offset + length])
        offset += length + 3 & ~3


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attr_u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def attr_str(kind: int, text: str) -> bytes:
    return attr(kind, text.encode() + b"\0")


def attr_nest(kind: int, *attributes: bytes) -> bytes:
    return attr(kind | NLA_F_NESTED, b"".join(attributes))


def parse_attrs(data: bytes) -> dict[int, bytes]:
    """Attributes by type; of repeated ones the last.

    :raise ValueError: a length leaves ``data``.
    """
    found: dict[int, bytes] = {}
    offset = 0
    while len(data) - offset >= 4:
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or length > len(data) - offset:
            raise ValueError(f"netlink: attribute length {length} leaves its message")
        found[kind & NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def error_of(message: Message) -> tuple[int, str]:
    """``(errno, the kernel's explanation or "")`` of an NLMSG_ERROR; errno 0 is an acknowledgement."""
    if len(message.body) < 4:
        raise ValueError("netlink: truncated error")
    (code,) = struct.unpack_from("=i", message.body)
    text = ""
    if message.flags & NLM_F_ACK_TLVS and len(message.body) >= 20:
        (inner,) = struct.unpack_from("=I", message.body, 4)
        skip = 20 if message.flags & NLM_F_CAPPED else 4 + (max(inner, 16) + 3 & ~3)
        text = _text(parse_attrs(message.body[skip:]).get(NLMSGERR_ATTR_MSG, b""))
    return -code, text


# --- values ------------------------------------------------------------------------


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _u32(raw: bytes | None, default: int = 0) -> int:
    return int(struct.unpack("=I", raw[:4])[0]) if raw is not None and len(raw) >= 4 else default


def _ip(family: int, raw: bytes | None) -> str:
    if raw is None or len(raw) != (16 if family == AF_INET6 else 4) or family not in (AF_INET, AF_INET6):
        return ""
    return socket.inet_ntop(family, raw)


def family_of(address: str) -> int:
    """AF_INET6 for an address with a colon, else AF_INET."""
    return AF_INET6 if ":" in address else AF_INET


def pack_ip(address: str) -> bytes:
    """Network bytes of an address.

    :raise ValueError: it is not an IP address.
    """
    try:
        return socket.inet_pton(family_of(address), address)
    except OSError:
        raise ValueError(f"not an IP address: {address!r}") from None


def unpack_ip(raw: bytes) -> str:
    """The address of 4 or 16 network bytes.

    :raise ValueError: the length is another.
    """
    return socket.inet_ntop(AF_INET6 if len(raw) == 16 else AF_INET, raw)


def split_prefix(text: str) -> tuple[str, int]:
    """``(address, bits)`` of ``address[/bits]``.

    :raise ValueError: it is not an IP prefix.
    """
    address, _, bits = text.partition("/")
    most = len(pack_ip(address)) * 8
    if bits and not (bits.isascii() and bits.isdigit() and int(bits) <= most):
        raise ValueError(f"not an IP prefix: {text!r}")
    return address, int(bits) if bits else most


def format_mac(raw: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in raw)


def pack_mac(text: str) -> bytes:
    """Bytes of ``aa:bb:...``.

    :raise ValueError: it is not a hardware address.
    """
    try:
        raw = bytes(int(part, 16) for part in text.split(":"))
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise ValueError(f"not a hardware address: {text!r}")
    return raw


def pack_name(name: str) -> str:
    """``name`` if the kernel can take it for an interface.

    :raise ValueError: it is empty, longer than 15 bytes or holds "/", ":" or white space.
    """
    if not 0 < len(name.encode()) < 16 or name in (".", "..") or any(c in "/:\0" or c.isspace() for c in name):
        raise ValueError(f"not an interface name: {name!r}")
    return name


# --- requests ----------------------------------------------------------------------


def ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """struct ifinfomsg."""
    return struct.pack("=BxHiII", family, 0, index, flags, change)


def ifaddr(family: int, prefix: int, flags: int, scope: int, index: int) -> bytes:
    """struct ifaddrmsg."""
    return struct.pack("=BBBBI", family, prefix, flags & 0xFF, scope, index)


def rtmsg(family: int, dst_len: int, table: int, protocol: int, scope: int, kind: int, flags: int) -> bytes:
    """struct rtmsg; a table above 255 goes into RTA_TABLE."""
    return struct.pack("=BBBBBBBBI", family, dst_len, 0, 0, table if table < 256 else 0, protocol, scope, kind, flags)


def ndmsg(family: int, index: int, state: int, flags: int) -> bytes:
    """struct ndmsg."""
    return struct.pack("=BxxxiHBB", family, index, state, flags, 0)


# --- replies and events --------------------------------------------------------------


def _fixed(body: bytes, size: int, what: str) -> dict[int, bytes]:
    if len(body) < size:
        raise ValueError(f"netlink: truncated {what}")
    return parse_attrs(body[size:])


def parse_link(body: bytes) -> Link:
    """An RTM_*LINK body."""
    attrs = _fixed(body, 16, "link")
    _family, hardware, index, flags, _change = struct.unpack_from("=BxHiII", body)
    info = parse_attrs(attrs.get(IFLA_LINKINFO, b""))
    raw_stats = attrs.get(IFLA_STATS64, b"")
    netnsid = attrs.get(IFLA_LINK_NETNSID)
    return Link(
        ifindex=index,
        name=_text(attrs.get(IFLA_IFNAME, b"")),
        kind=_text(info.get(IFLA_INFO_KIND, b"")),
        flags=flags,
        mtu=_u32(attrs.get(IFLA_MTU)),
        address=format_mac(attrs.get(IFLA_ADDRESS, b"")),
        master=_u32(attrs.get(IFLA_MASTER)),
        link=_u32(attrs.get(IFLA_LINK)),
        link_netnsid=_u32(netnsid) if netnsid is not None else -1,
        hardware=hardware,
        stats=Stats64(*_STATS64.unpack_from(raw_stats)) if len(raw_stats) >= _STATS64.size else None,
    )


def parse_address(body: bytes) -> Address:
    """An RTM_*ADDR body."""
    attrs = _fixed(body, 8, "address")
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", body)
    far = _ip(family, attrs.get(IFA_ADDRESS))
    # On point-to-point links IFA_LOCAL is ours and IFA_ADDRESS the peer's; IPv6 mostly has IFA_ADDRESS only.
    own = _ip(family, attrs.get(IFA_LOCAL)) or far
    return Address(index, family, own, prefix, scope, _u32(attrs.get(IFA_FLAGS), flags),
                   far if far != own else "", _ip(family, attrs.get(IFA_BROADCAST)))


def parse_route(body: bytes) -> Route:
    """An RTM_*ROUTE body."""
    attrs = _fixed(body, 12, "route")
    family, dst_len, _sl, _tos, table, protocol, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", body)
    dst = _ip(family, attrs.get(RTA_DST))
    if not dst and dst_len:
        dst = "::" if family == AF_INET6 else "0.0.0.0"  # 0.0.0.0/1 has no RTA_DST bytes in some kernels
    return Route(
        family=family,
        dst=f"{dst}/{dst_len}" if dst_len else "",
        gateway=_ip(family, attrs.get(RTA_GATEWAY)) or _via(attrs.get(RTA_VIA)),
        oif=_u32(attrs.get(RTA_OIF)),
        source=_ip(family, attrs.get(RTA_PREFSRC)),
        scope=scope,
        table=_u32(attrs.get(RTA_TABLE), table),
        protocol=protocol,
        type=kind,
        metric=_u32(attrs.get(RTA_PRIORITY)),
        flags=flags,
        nexthops=_nexthops(family, attrs.get(RTA_MULTIPATH, b"")),
    )


def _via(raw: bytes | None) -> str:
    if raw is None or len(raw) < 2:
        return ""
    return _ip(int(struct.unpack_from("=H", raw)[0]), raw[2:])


def _nexthops(family: int, data: bytes) -> tuple[NextHop, ...]:
    hops = []
    while len(data) >= 8:
        length, flags, weight, oif = struct.unpack_from("=HBBi", data)
        if length < 8 or length > len(data):
            raise ValueError("netlink: a next hop leaves its route")
        attrs = parse_attrs(data[8:length])
        hops.append(NextHop(_ip(family, attrs.get(RTA_GATEWAY)) or _via(attrs.get(RTA_VIA)), oif, weight + 1, flags))
        data = data[length + 3 & ~3 :]
    return tuple(hops)


def parse_neighbour(body: bytes) -> Neighbour:
    """An RTM_*NEIGH body."""
    attrs = _fixed(body, 12, "neighbour")
    family, index, state, flags, _type = struct.unpack_from("=BxxxiHBB", body)
    return Neighbour(index, family, _ip(family, attrs.get(NDA_DST)), format_mac(attrs.get(NDA_LLADDR, b"")),
                     state, flags)


def parse_event(message: Message) -> tuple[bool, Event] | None:
    """``(True = appeared or changed, False = gone; the object)`` of a monitored message, None for others."""
    if message.type in (RTM_NEWLINK, RTM_DELLINK):
        # AF_BRIDGE messages on the same group describe bridge ports: a DELLINK there is not the link's end.
        return (message.type == RTM_NEWLINK, parse_link(message.body)) if message.body[:1] == b"\0" else None
    if message.type in (RTM_NEWADDR, RTM_DELADDR):
        return message.type == RTM_NEWADDR, parse_address(message.body)
    if message.type in (RTM_NEWROUTE, RTM_DELROUTE):
        return message.type == RTM_NEWROUTE, parse_route(message.body)
    if message.type in (RTM_NEWNEIGH, RTM_DELNEIGH):
        return message.type == RTM_NEWNEIGH, parse_neighbour(message.body)
    return None
