"""Joining a tap and an interface, in the ways of Kata's network models.

``tcfilter`` (``mirred`` is runV's name for it)
    All that arrives at one is redirected out of the other by traffic control.
    The interface keeps its addresses, which nobody can reach any more: they
    are the guest's.
``macvtap``
    A macvtap in passthru mode on top of the interface; the same effect, with
    the macvlan driver doing the work.
``bridged``
    A bridge holds both.  The guest has the interface's MAC, so the interface
    itself gets another one until it is detached.

A :class:`Wire` is plain data: it can be stored, and detached by another process.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from contextlib import ExitStack, suppress
from typing import Any

from kata.errors import ConfigError, HostError
from kata.network import names
from kata.network.inventory import Interface
from kata.network.tap import open_tap
from kata.record import Record
from kata_agent.linux import netlink as nl
from kata_agent.linux import syscalls, tc
from kata_agent.linux.rtnl import Rtnl

MODELS = ("tcfilter", "mirred", "macvtap", "bridged")
#: Models under which a process in the namespace can still ask name servers (see :func:`_keep_dns`).
HOST_DNS_MODELS = ("tcfilter", "mirred")

#: Local ports of the namespace's own sockets when it keeps name service; 256 of them, so one mask matches.
DNS_PORTS = (0xFF00, 0xFFFF)
_REDIRECT_PRIORITY = 100


class Wire(Record):
    """An interface joined to a tap."""

    model: str
    ifindex: int
    interface: str  #: its name when it was joined
    mac: str  #: the guest's hardware address
    tap: str  #: name of the tap or macvtap
    tap_index: int
    bridge_index: int  #: 0 = none
    host_dns: bool

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Wire:
        """:raise ValueError: a key is missing or unknown."""
        if set(data) != set(cls.FIELDS):
            raise ValueError(f"not a wire: {sorted(data)}")
        return cls(**data)

    @property
    def indexes(self) -> frozenset[int]:
        """Indexes of the interfaces we made for it."""
        return frozenset(i for i in (self.tap_index, self.bridge_index) if i)


def join(rtnl: Rtnl, interface: Interface, model: str, *, host_dns: bool = False) -> tuple[Wire, int]:
    """Make a tap and join it to ``interface``; returns the wire and the tap's descriptor for QEMU.

    On failure nothing of it remains.  The tap goes when its last descriptor is
    closed, the rest of the wire with :func:`detach` (or with the namespace).

    :param host_dns: processes in the namespace must still reach name servers
        (models of :data:`HOST_DNS_MODELS` only).
    :raise HostError: the kernel refuses, or the interface is used for something else.
    :raise ConfigError: there is no such model.
    """
    if model not in MODELS:
        raise ConfigError(f"unknown network model {model!r}", f"it is one of {', '.join(MODELS)}, none")
    if host_dns and model not in HOST_DNS_MODELS:
        raise ConfigError(f"network model {model} cuts the host off from name servers",
                          f"use {' or '.join(HOST_DNS_MODELS)} with an engine's own name server")
    with ExitStack() as undo:
        try:
            if model == "macvtap":
                wire, fd = _join_macvtap(rtnl, interface, undo)
            elif model == "bridged":
                wire, fd = _join_bridged(rtnl, interface, undo)
            else:
                wire, fd = _join_redirect(rtnl, interface, model, host_dns, undo)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.EBUSY):
                raise HostError(f"interface {interface.name} belongs to another container's machine already",
                                "a flavor that joins by the network namespace, or by the pod's annotations, "
                                "takes both into one machine") from error
            raise HostError(f"cannot join interface {interface.name} to the machine ({model}): {error.strerror}",
                            "the kernel needs tun, and for its model sch_ingress, cls_u32 and act_mirred, "
                            "macvtap, or bridge") from error
        undo.pop_all()
    return wire, fd


def detach(rtnl: Rtnl, wire: Wire) -> None:
    """Undo :func:`join`; what is gone already is passed over, so it may be called again.

    :raise HostError: the kernel refuses.
    """
    try:
        if wire.model in HOST_DNS_MODELS:
            filters = _filters(rtnl, wire.ifindex)
            # The tap goes with QEMU, and the filters stay.
            if wire.tap_index in {f.target for f in filters} or _dead(filters):
                tc.delete_ingress(rtnl, wire.ifindex)
                if wire.host_dns:
                    _answer_arp(rtnl.link(wire.ifindex).name)
        if wire.bridge_index and _is(rtnl, wire.bridge_index, names.bridge(wire.ifindex)):
            with suppress(OSError):
                rtnl.set_link(wire.ifindex, master=0, address=wire.mac)
            rtnl.delete_link(wire.bridge_index)
        if _is(rtnl, wire.tap_index, wire.tap):
            rtnl.delete_link(wire.tap_index)
    except OSError as error:
        if error.errno != errno.ENODEV:  # it went meanwhile, which is what was wanted
            raise HostError(f"cannot detach interface {wire.interface}: {error.strerror}") from error


def sweep(rtnl: Rtnl, keep: Collection[int] = ()) -> None:
    """Remove what a proxy that was killed made in this namespace and could not record.

    That is taps and bridges by our names, and filters whose tap is gone, which
    can only drop packets.

    :param keep: indexes of interfaces that are in use.
    :raise HostError: the kernel refuses.
    """
    try:
        links = rtnl.links()
        for link in links:
            if names.is_ours(link.name) and link.ifindex not in keep:
                with suppress(OSError):
                    rtnl.delete_link(link.ifindex)
        for link in links:
            if _dead(_filters(rtnl, link.ifindex)):
                tc.delete_ingress(rtnl, link.ifindex)
                _answer_arp(link.name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise HostError(f"cannot clean the network namespace: {error.strerror}") from error


def intact(rtnl: Rtnl, wire: Wire) -> bool:
    """Whether everything :func:`join` made is still there (after a restart of the proxy)."""
    if not _is(rtnl, wire.tap_index, wire.tap):
        return False
    if wire.model == "bridged":
        return _is(rtnl, wire.bridge_index, names.bridge(wire.ifindex))
    if wire.model == "macvtap":
        return True
    return (wire.tap_index in {f.target for f in _filters(rtnl, wire.ifindex)}
            and wire.ifindex in {f.target for f in _filters(rtnl, wire.tap_index)})


def set_mtu(rtnl: Rtnl, wire: Wire, mtu: int) -> None:
    """Follow a change of the interface's MTU (bytes).

    :raise HostError: the kernel refuses.
    """
    try:
        for index in sorted(wire.indexes):
            rtnl.set_link(index, mtu=mtu)
    except OSError as error:
        raise HostError(f"cannot set the MTU of {wire.tap} to {mtu}: {error.strerror}") from error


def _is(rtnl: Rtnl, index: int, name: str) -> bool:
    try:
        return rtnl.link(index).name == name
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise


def _filters(rtnl: Rtnl, index: int) -> list[tc.Filter]:
    try:
        return tc.filters(rtnl, index)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT, errno.EINVAL):  # no interface, no ingress qdisc
            return []
        raise


def _dead(filters: list[tc.Filter]) -> bool:
    """Whether these sent packets to a tap that is gone: of a sandbox that was killed."""
    targets = [f.target for f in filters]
    return 0 in targets and max(targets) <= 0


def _new_tap(rtnl: Rtnl, interface: Interface, undo: ExitStack) -> tuple[str, int, int]:
    """A tap that is up; returns its name, index and descriptor."""
    name = names.tap(interface.index)
    fd = open_tap(name)
    undo.callback(os.close, fd)
    index = rtnl.link(name).ifindex
    # Without a link-local address the host says nothing on the tap: the guest hears its network only.
    _silence(rtnl, index)
    rtnl.set_link(index, mtu=interface.mtu)
    return name, index, fd


def _silence(rtnl: Rtnl, index: int) -> None:
    """No link-local address; before an MTU below IPv6's minimum takes the protocol off the interface."""
    try:
        rtnl.set_link(index, no_link_local=True)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:  # a host without IPv6 says nothing anyway
            raise


# --- tcfilter, mirred --------------------------------------------------------------


def _join_redirect(
    rtnl: Rtnl, interface: Interface, model: str, host_dns: bool, undo: ExitStack
) -> tuple[Wire, int]:
    name, index, fd = _new_tap(rtnl, interface, undo)
    rtnl.set_link(index, up=True)
    _take_ingress(rtnl, interface)
    undo.callback(tc.delete_ingress, rtnl, interface.index)
    tc.add_ingress(rtnl, index)
    tc.redirect(rtnl, index, interface.index, priority=_REDIRECT_PRIORITY)
    if host_dns:
        _keep_dns(rtnl, interface, index, undo)
    tc.redirect(rtnl, interface.index, index, priority=_REDIRECT_PRIORITY)
    return Wire(model, interface.index, interface.name, interface.mac, name, index, 0, host_dns), fd


def _take_ingress(rtnl: Rtnl, interface: Interface) -> None:
    """Add the ingress qdisc; what a sandbox that was killed left there is replaced."""
    try:
        tc.add_ingress(rtnl, interface.index)
        return
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    filters = _filters(rtnl, interface.index)
    if filters and not _dead(filters):
        raise HostError(f"interface {interface.name} already has traffic control filters",
                        f"another sandbox uses it, or remove them: tc qdisc del dev {interface.name} ingress")
    # No filter, or filters whose target is gone: they can only drop packets.
    tc.delete_ingress(rtnl, interface.index)
    tc.add_ingress(rtnl, interface.index)


def _keep_dns(rtnl: Rtnl, interface: Interface, tap: int, undo: ExitStack) -> None:
    """Let answers of name servers reach the namespace's own sockets.

    dockerd's name server for user-defined networks listens inside the
    namespace, and forwards what it does not know from sockets in it.  The
    namespace's sockets get local ports of their own (:data:`DNS_PORTS`, outside
    a Linux guest's default range), so that an answer tells whose it is.  The
    host's stack must also learn its gateway's hardware address: answers to ARP
    and neighbour solicitations are copied to it.
    """
    _sysctl("ipv4/ip_local_port_range", f"{DNS_PORTS[0]} {DNS_PORTS[1]}")
    # It only learns: the guest answers requests for the address, the host does not.
    _sysctl(f"ipv4/conf/{interface.name}/arp_ignore", "8")
    undo.callback(_answer_arp, interface.name)
    tc.mirror(rtnl, interface.index, tap, priority=1, protocol=tc.ETH_P_ARP)
    is_na = (tc.Key(4, 0xFF00, 58 << 8), tc.Key(40, 0xFF000000, 136 << 24))
    tc.mirror(rtnl, interface.index, tap, priority=2, protocol=tc.ETH_P_IPV6, keys=is_na)
    ports = (0xFFFFFF00, 53 << 16 | DNS_PORTS[0])
    for number, protocol in enumerate((17, 6)):
        # IPv4 without options and not a later fragment: the ports are at byte 20.
        keys4 = (tc.Key(0, 0x0F000000, 0x05000000), tc.Key(4, 0x1FFF, 0), tc.Key(8, 0xFF0000, protocol << 16),
                 tc.Key(20, *ports))
        tc.let_pass(rtnl, interface.index, priority=3 + number, protocol=tc.ETH_P_IP, keys=keys4)
        keys6 = (tc.Key(4, 0xFF00, protocol << 8), tc.Key(40, *ports))
        tc.let_pass(rtnl, interface.index, priority=5 + number, protocol=tc.ETH_P_IPV6, keys=keys6)


def _answer_arp(interface: str) -> None:
    """Undo what :func:`_keep_dns` set for the interface.  The port range stays: other wires may need it."""
    with open("/proc/sys/net/ipv4/conf/default/arp_ignore", encoding="utf-8") as file:
        _sysctl(f"ipv4/conf/{interface}/arp_ignore", file.read())


def _sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/net/{name}", "w", encoding="utf-8") as file:
        file.write(value)


# --- macvtap -----------------------------------------------------------------------


def _join_macvtap(rtnl: Rtnl, interface: Interface, undo: ExitStack) -> tuple[Wire, int]:
    name = names.tap(interface.index)
    # Passthru: the macvtap has the interface's MAC and gets all its traffic.
    link = rtnl.add_link(name, "macvtap", lower=interface.index, passthru=True)
    undo.callback(rtnl.delete_link, link.ifindex)
    _silence(rtnl, link.ifindex)
    rtnl.set_link(link.ifindex, up=True)
    fd = _open_macvtap(link.ifindex)
    return Wire("macvtap", interface.index, interface.name, interface.mac, name, link.ifindex, 0, False), fd


def _detached(fstype: str) -> int:
    """A mount of ``fstype`` that is nowhere in the tree; it goes with its descriptor."""
    context = syscalls.fsopen(fstype)
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context)
    finally:
        os.close(context)


def _open_macvtap(ifindex: int) -> int:
    """The character device of a macvtap.

    /dev/tapN names an index of any namespace, and /sys shows the namespace it
    was mounted in; a sysfs of our own shows ours, and tells the device number.
    """
    with ExitStack() as close:
        sysfs = _detached("sysfs")
        close.callback(os.close, sysfs)
        number = os.open(f"class/macvtap/tap{ifindex}/dev", os.O_RDONLY | os.O_CLOEXEC, dir_fd=sysfs)
        close.callback(os.close, number)
        major, _, minor = os.read(number, 32).decode().strip().partition(":")
        tmpfs = _detached("tmpfs")
        close.callback(os.close, tmpfs)
        os.mknod("tap", 0o600 | stat.S_IFCHR, os.makedev(int(major), int(minor)), dir_fd=tmpfs)
        return os.open("tap", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=tmpfs)


# --- bridged -----------------------------------------------------------------------


def _join_bridged(rtnl: Rtnl, interface: Interface, undo: ExitStack) -> tuple[Wire, int]:
    name, index, fd = _new_tap(rtnl, interface, undo)
    bridge = rtnl.add_link(names.bridge(interface.index), "bridge").ifindex
    undo.callback(rtnl.delete_link, bridge)
    # The bridge only forwards: no ARP and no link-local address of its own.
    _silence(rtnl, bridge)
    rtnl.set_link(bridge, mtu=interface.mtu, arp=False)
    # Frames for a port's own MAC go up the host's stack, not to the other port, so the port gives its MAC away.
    rtnl.set_link(interface.index, address=_random_mac())
    undo.callback(rtnl.set_link, interface.index, address=interface.mac)
    rtnl.set_link(interface.index, master=bridge)
    rtnl.set_link(index, master=bridge, up=True)
    rtnl.set_link(bridge, up=True)
    return Wire("bridged", interface.index, interface.name, interface.mac, name, index, bridge, False), fd


def _random_mac() -> str:
    raw = bytearray(os.urandom(6))
    raw[0] = raw[0] & 0xFC | 0x02  # unicast, locally administered
    return nl.format_mac(bytes(raw))
