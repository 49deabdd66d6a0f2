"""Network namespaces, their inventory, and the watch over them."""

from __future__ import annotations

import os
import select
import socket
import stat
from pathlib import Path

import pytest

from kata.errors import BundleError
from kata.network import inventory, netns, tap, wire
from kata.network.watch import Changes, Watcher
from kata_agent.linux import netlink as nl
from kata_agent.linux.rtnl import Rtnl


def test_create_makes_a_namespace_and_comes_back(home_netns: int) -> None:
    fd = netns.create()
    assert not netns.is_host(fd)
    assert netns.is_host(home_netns)
    assert netns.same(home_netns, "/proc/self/ns/net")
    assert not netns.same(fd, "/proc/self/ns/net")
    assert not netns.same(fd, f"/proc/{2**22 + 1}/ns/net")
    netns.enter(fd)
    with Rtnl() as rtnl:
        assert [(link.name, link.up) for link in rtnl.links()] == [("lo", True)]
    netns.enter(home_netns)
    os.close(fd)


def test_open_path(home_netns: int, tmp_path: Path) -> None:
    fd = netns.open_path(f"/proc/self/fd/{home_netns}")
    assert netns.identity(fd) == netns.identity(home_netns)
    os.close(fd)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    other = "not a network namespace"
    for bad, why in (("file", other), ("fifo", other), ("none", "No such file")):
        with pytest.raises(BundleError, match=why):
            netns.open_path(str(tmp_path / bad))
    with pytest.raises(BundleError, match="not a network namespace"):
        netns.open_path("/proc/self/ns/mnt")
    with pytest.raises(BundleError, match="null"):
        netns.open_path("a\0b")


def test_tap_is_in_the_namespace_and_goes(sandbox_netns: int, home_netns: int) -> None:
    fd = tap.open_tap("kata_t9")
    assert stat.S_ISCHR(os.fstat(fd).st_mode)
    with Rtnl() as rtnl:
        assert rtnl.link("kata_t9").kind == "tun"
        netns.enter(home_netns)
        with Rtnl() as outer, pytest.raises(OSError, match="kata_t9"):
            outer.link("kata_t9")
        os.close(fd)
        assert [link.name for link in rtnl.links()] == ["lo"]


def test_inventory(sandbox_netns: int) -> None:
    with Rtnl() as rtnl:
        eth0 = rtnl.add_link("eth0", "veth", peer="out0", address="02:00:00:00:00:05")
        out0 = rtnl.link("out0")
        for link in (out0, eth0):
            rtnl.set_link(link.ifindex, up=True)
        rtnl.add_address(eth0.ifindex, "10.0.0.2/24")
        rtnl.add_address(eth0.ifindex, "fd00::2/64", flags=nl.IFA_F_NODAD)
        rtnl.add_route("default", gateway="10.0.0.1", oif=eth0.ifindex)
        rtnl.add_route("default", gateway="10.0.0.9", oif=eth0.ifindex, metric=100)
        rtnl.add_route("10.9.0.0/16", oif=eth0.ifindex, source="10.0.0.2")
        rtnl.add_route("10.8.0.0/16", gateway="169.254.1.1", oif=eth0.ifindex, onlink=True)
        rtnl.add_route("default", gateway="fd00::1", oif=eth0.ifindex)
        rtnl.add_neighbour(eth0.ifindex, "10.0.0.7", "02:00:00:00:00:07")
        look = inventory.take(rtnl, frozenset({out0.ifindex}))
    assert look.agent_interfaces() == [{
        "device": "eth0", "name": "eth0", "mtu": 1500, "hwAddr": "02:00:00:00:00:05", "pciPath": "", "type": "",
        "raw_flags": 0,
        "IPAddresses": [{"family": 0, "address": "10.0.0.2", "mask": "24"},
                        {"family": 1, "address": "fd00::2", "mask": "64"}],
    }]
    plain = {"device": "eth0", "source": "", "scope": 0}
    assert look.agent_routes() == [
        {**plain, "dest": "10.9.0.0/16", "gateway": "", "source": "10.0.0.2", "scope": 253},
        {**plain, "dest": "169.254.1.1/32", "gateway": "", "scope": 253},
        {**plain, "dest": "10.8.0.0/16", "gateway": "169.254.1.1"},
        {**plain, "dest": "", "gateway": "10.0.0.1"},
        {**plain, "dest": "", "gateway": "fd00::1"},
    ]
    assert look.agent_neighbours() == [{
        "toIPAddress": {"family": 0, "address": "10.0.0.7", "mask": ""}, "device": "eth0",
        "lladdr": "02:00:00:00:00:07", "state": 0x80, "flags": 0,
    }]


def wait(watcher: Watcher) -> Changes:
    """The next difference; every event is a readable descriptor, so nothing is slept for."""
    while True:
        assert select.select([watcher], [], [], 5)[0], "no event within 5 s"
        changes = watcher.changes()
        if changes:
            return changes


def test_watch_follows_an_engine(sandbox_netns: int, home_netns: int) -> None:
    watcher = Watcher()
    assert not watcher.changes()
    netns.enter(home_netns)
    with Rtnl() as host:
        name = f"kt{os.getpid()}"
        host.add_link(f"{name}a", "veth", peer=f"{name}b")
        index = host.link(f"{name}b").ifindex
        host.set_link(index, netns_fd=sandbox_netns)
        netns.enter(sandbox_netns)
        with Rtnl() as inside:
            eth0 = inside.link(f"{name}b").ifindex
            inside.set_link(eth0, name="eth0")
            inside.set_link(eth0, address="02:00:00:00:00:08")
            assert not watcher.changes()  # neither up nor with an address: not ready
            inside.add_address(eth0, "10.0.0.2/24")
            added = wait(watcher)
            assert [(i.name, i.mac) for i in added.added] == [("eth0", "02:00:00:00:00:08")]

            joined, fd = wire.join(watcher.rtnl, added.added[0], "tcfilter")
            watcher.joined(eth0, joined.mac, joined.indexes)
            assert not watcher.changes()  # what we make ourselves is no news

            inside.set_link(eth0, up=True)
            host.set_link(host.link(f"{name}a").ifindex, up=True)
            changed = wait(watcher)
            assert changed.changed[0][1].up
            inside.add_route("default", gateway="10.0.0.1")
            routes = wait(watcher)
            assert routes.routes and not routes.changed
            assert [r.gateway for r in routes.now.routes] == ["10.0.0.1"]
            inside.set_link(eth0, mtu=1300)
            assert wait(watcher).changed[0][1].mtu == 1300
            inside.set_link(eth0, address="02:00:00:00:00:09")

            host.delete_link(host.link(f"{name}a").ifindex)
            gone = wait(watcher)
            assert [i.name for i in gone.removed] == ["eth0"] and not gone.added
            wire.detach(watcher.rtnl, joined)
            os.close(fd)
            watcher.detached(eth0, joined.indexes)
            assert not watcher.changes()
            assert [link.name for link in inside.links()] == ["lo"]
    watcher.close()


def test_watch_survives_lost_messages(sandbox_netns: int) -> None:
    watcher = Watcher()
    watcher.changes()
    with Rtnl() as rtnl:
        link = rtnl.add_link("eth0", "veth", peer="eth1")
        rtnl.set_link(link.ifindex, up=True)
        for number in range(4000):
            rtnl.add_address(link.ifindex, f"10.0.{number // 250}.{number % 250 + 1}/32")
        rtnl.flush_addresses(link.ifindex)
        rtnl.add_address(link.ifindex, "10.0.0.2/24")
    interface = wait(watcher).added[0]
    assert [a.address for a in interface.addresses] == ["10.0.0.2"]
    watcher.close()


def test_sockets_stay_in_their_namespace(sandbox_netns: int, home_netns: int) -> None:
    watcher = Watcher()
    netns.enter(home_netns)
    assert watcher.changes().now.interfaces == ()
    watcher.close()
    assert socket.if_nameindex()
