"""Traffic control on the ingress side of an interface: redirect, mirror, let pass.

Only the ``ingress`` queueing discipline, the ``u32`` classifier and the
``mirred`` action are used: they are in every kernel that has traffic control.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from kata_agent.linux import netlink as nl
from kata_agent.linux.light import socket
from kata_agent.linux.rtnl import Rtnl

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TC_U32_TERMINAL = 1
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS = 2
_EGRESS_REDIRECT = 1
_EGRESS_MIRROR = 2
_TC_ACT_OK = 0
_TC_ACT_STOLEN = 4


class Key(NamedTuple):
    """32 bits at ``offset`` from the network header that must equal ``value`` under ``mask``."""

    offset: int
    mask: int
    value: int


class Filter(NamedTuple):
    """A filter of an ingress qdisc; ``target`` is where its mirred action sends, -1 = it has none, 0 = gone."""

    kind: str
    priority: int
    target: int


def _tcmsg(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return struct.pack("=BxxxiIII", 0, index, handle, parent, info)


def _parse(body: bytes) -> tuple[int, int, int, dict[int, bytes]]:
    if len(body) < 20:
        raise ValueError("netlink: truncated traffic control message")
    _family, index, handle, _parent, info = struct.unpack_from("=BxxxiIII", body)
    return index, handle, info, nl.parse_attrs(body[20:])


def _kind(attrs: dict[int, bytes]) -> str:
    return attrs.get(_TCA_KIND, b"").rstrip(b"\0").decode(errors="replace")


def qdiscs(rtnl: Rtnl, index: int) -> list[tuple[int, str]]:
    """``(handle, kind)`` of each queueing discipline of an interface."""
    found = rtnl.dump(nl.RTM_GETQDISC, _tcmsg(index, 0, 0), _parse, "list queueing disciplines")
    return [(handle, _kind(attrs)) for owner, handle, _info, attrs in found if owner == index]


def add_ingress(rtnl: Rtnl, index: int) -> None:
    """Give an interface an ingress qdisc.

    :raise OSError: EEXIST, it has one.
    """
    body = _tcmsg(index, _INGRESS_HANDLE, _TC_H_INGRESS) + nl.attr_str(_TCA_KIND, "ingress")
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    rtnl.request(nl.RTM_NEWQDISC, flags, body, f"add ingress qdisc to interface {index}")


def delete_ingress(rtnl: Rtnl, index: int) -> bool:
    """Remove the ingress qdisc with its filters; False if the interface or its qdisc is not there."""
    body = _tcmsg(index, _INGRESS_HANDLE, _TC_H_INGRESS)
    try:
        rtnl.request(nl.RTM_DELQDISC, 0, body, f"delete ingress qdisc of interface {index}")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            return False
        raise
    return True


def filters(rtnl: Rtnl, index: int) -> list[Filter]:
    """The filters of an interface's ingress qdisc."""
    body = _tcmsg(index, 0, _INGRESS_HANDLE)
    found = []
    for owner, _handle, info, attrs in rtnl.dump(nl.RTM_GETTFILTER, body, _parse, "list filters"):
        if owner != index or _TCA_OPTIONS not in attrs:
            continue
        options = nl.parse_attrs(attrs[_TCA_OPTIONS])
        if _kind(attrs) == "u32" and _TCA_U32_SEL not in options:
            continue  # a hash table, not a filter
        found.append(Filter(_kind(attrs), info >> 16, _target(options.get(_TCA_U32_ACT, b""))))
    return found


def _target(actions: bytes) -> int:
    for action in nl.parse_attrs(actions).values():
        parts = nl.parse_attrs(action)
        mirred = nl.parse_attrs(parts.get(_TCA_ACT_OPTIONS, b"")).get(_TCA_MIRRED_PARMS, b"")
        if len(mirred) >= 28:
            return int(struct.unpack_from("=I", mirred, 24)[0])
    return -1


def _add(rtnl: Rtnl, index: int, priority: int, protocol: int, keys: tuple[Key, ...], action: bytes, what: str) -> None:
    # struct tc_u32_sel, then its keys (mask and value big-endian); a mask of 0 matches everything.
    use = keys or (Key(0, 0, 0),)
    selector = struct.pack("=BBBxHHhhI", _TC_U32_TERMINAL, 0, len(use), 0, 0, 0, 0, 0)
    for key in use:
        selector += struct.pack("!II", key.mask, key.value) + struct.pack("=ii", key.offset, 0)
    body = _tcmsg(index, 0, _INGRESS_HANDLE, priority << 16 | socket.htons(protocol))
    body += nl.attr_str(_TCA_KIND, "u32") + nl.attr_nest(_TCA_OPTIONS, nl.attr(_TCA_U32_SEL, selector), action)
    rtnl.request(nl.RTM_NEWTFILTER, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body, what)


def _mirred(kind: int, verdict: int, target: int) -> bytes:
    # struct tc_mirred: index, capabilities, action, reference and bind counts, kind, interface.
    parameters = struct.pack("=IIiiiiI", 0, 0, verdict, 0, 0, kind, target)
    action = nl.attr_str(_TCA_ACT_KIND, "mirred") + nl.attr_nest(_TCA_ACT_OPTIONS,
                                                                 nl.attr(_TCA_MIRRED_PARMS, parameters))
    return nl.attr_nest(_TCA_U32_ACT, nl.attr_nest(1, action))


def redirect(rtnl: Rtnl, source: int, target: int, *, priority: int, protocol: int = ETH_P_ALL) -> None:
    """Send every packet that arrives at ``source`` out of ``target``, and nowhere else."""
    _add(rtnl, source, priority, protocol, (), _mirred(_EGRESS_REDIRECT, _TC_ACT_STOLEN, target),
         f"redirect interface {source} to {target}")


def mirror(
    rtnl: Rtnl, source: int, target: int, *, priority: int, protocol: int, keys: tuple[Key, ...] = ()
) -> None:
    """Send a copy of each packet that matches out of ``target``; the packet itself goes to the host's stack."""
    _add(rtnl, source, priority, protocol, keys, _mirred(_EGRESS_MIRROR, _TC_ACT_OK, target),
         f"mirror interface {source} to {target}")


def let_pass(rtnl: Rtnl, source: int, *, priority: int, protocol: int, keys: tuple[Key, ...]) -> None:
    """Packets that match all ``keys`` go to the host's stack; later filters do not see them."""
    _add(rtnl, source, priority, protocol, keys, b"", f"let packets of interface {source} pass")
