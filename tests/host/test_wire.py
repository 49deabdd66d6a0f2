"""Network models: a guest at the tap speaks to the other end of the veth, and nothing is left behind."""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass

import pytest

from kata.errors import ConfigError, HostError
from kata.network import inventory, netns, wire
from kata_agent.linux import netlink as nl
from kata_agent.linux import tc
from kata_agent.linux.rtnl import Rtnl

from .frames import Guest

MAC = "02:42:ac:11:00:02"


@dataclass
class Lab:
    """``eth0`` in the sandbox's namespace (where the thread is), its peer outside with a UDP socket on port 53."""

    rtnl: Rtnl
    eth0: inventory.Interface
    server: socket.socket
    peer_mac: bytes


@pytest.fixture
def lab(sandbox_netns: int, outside_netns: int) -> Lab:
    rtnl = Rtnl()
    link = rtnl.add_link("eth0", "veth", peer="out0", peer_netns_fd=outside_netns, mtu=1400)
    rtnl.set_link(link.ifindex, address=MAC)
    rtnl.set_link(link.ifindex, up=True)
    rtnl.add_address(link.ifindex, "10.0.0.2/24")
    rtnl.add_route("default", gateway="10.0.0.1")
    netns.enter(outside_netns)
    with Rtnl() as outside:
        peer = outside.link("out0")
        outside.set_link(peer.ifindex, up=True)
        outside.add_address(peer.ifindex, "10.0.0.1/24")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("10.0.0.1", 53))
    server.settimeout(3)
    netns.enter(sandbox_netns)
    found = inventory.take(rtnl).interfaces
    assert [i.name for i in found] == ["eth0"]
    return Lab(rtnl, found[0], server, nl.pack_mac(peer.address))


@pytest.mark.parametrize("model", wire.MODELS)
def test_guest_reaches_the_other_end(lab: Lab, model: str) -> None:
    joined, fd = wire.join(lab.rtnl, lab.eth0, model)
    guest = Guest(fd, MAC, "10.0.0.2")
    assert guest.arp("10.0.0.1") == lab.peer_mac
    guest.udp(lab.peer_mac, "10.0.0.1", 40000, 53, b"question")
    data, sender = lab.server.recvfrom(100)
    assert (data, sender) == (b"question", ("10.0.0.2", 40000))
    lab.server.sendto(b"answer", sender)
    assert guest.udp_to(40000) == b"answer"
    assert lab.rtnl.link(joined.tap).mtu == 1400
    assert wire.intact(lab.rtnl, joined)
    os.close(fd)


@pytest.mark.parametrize("model", wire.MODELS)
def test_detach_gives_the_interface_back(lab: Lab, model: str) -> None:
    before = lab.rtnl.links()
    joined, fd = wire.join(lab.rtnl, lab.eth0, model)
    wire.detach(lab.rtnl, wire.Wire.from_json(joined.to_json()))
    wire.detach(lab.rtnl, joined)  # again: nothing to do
    os.close(fd)
    assert not wire.intact(lab.rtnl, joined)
    after = lab.rtnl.links()
    ours = nl.IFF_UP | nl.IFF_PROMISC | nl.IFF_NOARP  # others (running, lower up) follow at the kernel's leisure
    assert [(i.name, i.address, i.master, i.flags & ours) for i in after] == [
        (i.name, i.address, i.master, i.flags & ours) for i in before]
    assert ("ingress" not in {kind for _handle, kind in tc.qdiscs(lab.rtnl, lab.eth0.index)})
    # The host's own stack has it again.
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(3)
    client.sendto(b"hello", ("10.0.0.1", 53))
    data, sender = lab.server.recvfrom(100)
    lab.server.sendto(data, sender)
    assert client.recv(100) == b"hello"
    client.close()


def test_tap_goes_with_its_descriptor(lab: Lab) -> None:
    joined, fd = wire.join(lab.rtnl, lab.eth0, "tcfilter")
    os.close(fd)
    assert [i.name for i in lab.rtnl.links()] == ["lo", "eth0"]
    # What a killed sandbox leaves on the interface does not stop the next one.
    again, fd = wire.join(lab.rtnl, lab.eth0, "tcfilter")
    assert Guest(fd, MAC, "10.0.0.2").arp("10.0.0.1") == lab.peer_mac
    wire.detach(lab.rtnl, joined)  # the old wire's record does not touch the new one
    assert wire.intact(lab.rtnl, again)
    os.close(fd)


def test_foreign_filters_are_not_replaced(lab: Lab) -> None:
    tc.add_ingress(lab.rtnl, lab.eth0.index)
    tc.redirect(lab.rtnl, lab.eth0.index, 1, priority=7)
    with pytest.raises(HostError, match="already has traffic control filters"):
        wire.join(lab.rtnl, lab.eth0, "tcfilter")
    assert [i.name for i in lab.rtnl.links()] == ["lo", "eth0"]
    assert [f.priority for f in tc.filters(lab.rtnl, lab.eth0.index)] == [7]


@pytest.mark.parametrize("model", wire.MODELS)
def test_failure_leaves_nothing(lab: Lab, model: str) -> None:
    gone = inventory.Interface(999, "eth7", MAC, 1400, "veth", True, 0, ())
    with pytest.raises(HostError, match="eth7"):
        wire.join(lab.rtnl, gone, model)
    assert [i.name for i in lab.rtnl.links()] == ["lo", "eth0"]


def test_used_tap_is_named(lab: Lab) -> None:
    _joined, fd = wire.join(lab.rtnl, lab.eth0, "tcfilter")
    with pytest.raises(HostError, match=f"kata_t{lab.eth0.index}.*in use"):
        wire.join(lab.rtnl, lab.eth0, "tcfilter")
    os.close(fd)


def test_name_service_of_the_namespace(lab: Lab) -> None:
    joined, fd = wire.join(lab.rtnl, lab.eth0, "tcfilter", host_dns=True)
    guest = Guest(fd, MAC, "10.0.0.2")
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(3)
    client.sendto(b"host asks", ("10.0.0.1", 53))
    data, sender = lab.server.recvfrom(100)
    assert data == b"host asks"
    assert wire.DNS_PORTS[0] <= sender[1] <= wire.DNS_PORTS[1]
    lab.server.sendto(b"for the host", sender)
    assert client.recv(100) == b"for the host"
    # The guest has its own, and nobody answers ARP requests in its place.
    assert guest.arp("10.0.0.1") == lab.peer_mac
    guest.udp(lab.peer_mac, "10.0.0.1", 40000, 53, b"guest asks")
    data, sender = lab.server.recvfrom(100)
    assert data == b"guest asks"
    lab.server.sendto(b"for the guest", sender)
    assert guest.udp_to(40000) == b"for the guest"
    assert not select.select([client], [], [], 0)[0]
    client.close()
    wire.detach(lab.rtnl, joined)
    os.close(fd)
    with open("/proc/sys/net/ipv4/conf/eth0/arp_ignore", encoding="ascii") as file:
        assert file.read() == "0\n"


def test_host_dns_needs_a_model_that_can(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="macvtap"):
        wire.join(lab.rtnl, lab.eth0, "macvtap", host_dns=True)


def test_unknown_model_is_refused(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="enlightened"):
        wire.join(lab.rtnl, lab.eth0, "enlightened")


def test_mtu_follows(lab: Lab) -> None:
    joined, fd = wire.join(lab.rtnl, lab.eth0, "tcfilter")
    wire.set_mtu(lab.rtnl, joined, 1300)
    assert lab.rtnl.link(joined.tap).mtu == 1300
    os.close(fd)
