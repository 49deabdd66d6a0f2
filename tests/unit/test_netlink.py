"""The rtnetlink codec: exact bytes out, nothing but ValueError for bytes that do not fit."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.linux import netlink as nl


def test_attributes_are_padded_and_nested() -> None:
    raw = nl.attr_str(3, "eth0") + nl.attr_nest(18, nl.attr_u32(1, 7))
    assert raw[:12] == struct.pack("=HH", 9, 3) + b"eth0\0\0\0\0"
    attrs = nl.parse_attrs(raw)
    assert attrs[3] == b"eth0\0"
    assert nl.parse_attrs(attrs[18]) == {1: struct.pack("=I", 7)}


def test_messages_of_one_datagram() -> None:
    data = nl.pack(16, 1, 5, b"abc") + b"\0" + nl.pack(17, 2, 6, b"")
    assert list(nl.unpack(data)) == [(16, 1, 5, b"abc"), (17, 2, 6, b"")]


@pytest.mark.parametrize("length", [0, 15, 17, 2**32 - 1])
def test_message_length_is_checked(length: int) -> None:
    with pytest.raises(ValueError, match="netlink"):
        list(nl.unpack(struct.pack("=IHHII", length, 16, 0, 0, 0)))


@pytest.mark.parametrize("length", [0, 3, 9, 65535])
def test_attribute_length_is_checked(length: int) -> None:
    with pytest.raises(ValueError, match="netlink"):
        nl.parse_attrs(struct.pack("=HHI", length, 1, 0))


def test_error_with_explanation() -> None:
    header = struct.pack("=IHHII", 64, 16, 5, 1, 0)
    capped = struct.pack("=i", -17) + header + nl.attr_str(nl.NLMSGERR_ATTR_MSG, "taken")
    assert nl.error_of(nl.Message(2, nl.NLM_F_ACK_TLVS | nl.NLM_F_CAPPED, 1, capped)) == (17, "taken")
    whole = struct.pack("=i", -17) + header + bytes(48) + nl.attr_str(nl.NLMSGERR_ATTR_MSG, "taken")
    assert nl.error_of(nl.Message(2, nl.NLM_F_ACK_TLVS, 1, whole)) == (17, "taken")
    assert nl.error_of(nl.Message(2, 0, 1, bytes(20))) == (0, "")


def test_link() -> None:
    body = nl.ifinfo(4, nl.IFF_UP) + nl.attr_str(nl.IFLA_IFNAME, "eth0") + nl.attr_u32(nl.IFLA_MTU, 1400)
    body += nl.attr(nl.IFLA_ADDRESS, nl.pack_mac("02:42:ac:11:00:02"))
    body += nl.attr_nest(nl.IFLA_LINKINFO, nl.attr_str(nl.IFLA_INFO_KIND, "veth"))
    link = nl.parse_link(body)
    assert (link.ifindex, link.name, link.kind, link.mtu, link.address, link.up, link.link_netnsid, link.stats) == (
        4, "eth0", "veth", 1400, "02:42:ac:11:00:02", True, -1, None)


def test_address_of_a_point_to_point_link() -> None:
    body = nl.ifaddr(nl.AF_INET, 32, 0, 0, 3)
    body += nl.attr(nl.IFA_LOCAL, nl.pack_ip("10.0.0.1")) + nl.attr(nl.IFA_ADDRESS, nl.pack_ip("10.0.0.2"))
    found = nl.parse_address(body)
    assert (found.address, found.peer, found.prefix) == ("10.0.0.1", "10.0.0.2", 32)


def test_multipath_route() -> None:
    hop = struct.pack("=HBBi", 16, 0, 0, 3) + nl.attr(nl.RTA_GATEWAY, nl.pack_ip("10.0.0.1"))
    body = nl.rtmsg(nl.AF_INET, 0, 254, 3, 0, 1, 0) + nl.attr(nl.RTA_MULTIPATH, hop * 2)
    route = nl.parse_route(body)
    assert [(h.gateway, h.oif, h.weight) for h in route.nexthops] == [("10.0.0.1", 3, 1)] * 2
    with pytest.raises(ValueError, match="next hop"):
        nl.parse_route(nl.rtmsg(nl.AF_INET, 0, 254, 3, 0, 1, 0) + nl.attr(nl.RTA_MULTIPATH, hop[:12]))


def test_bridge_port_messages_are_not_links() -> None:
    assert nl.parse_event(nl.Message(nl.RTM_DELLINK, 0, 0, nl.ifinfo(4, family=7))) is None
    event = nl.parse_event(nl.Message(nl.RTM_DELLINK, 0, 0, nl.ifinfo(4)))
    assert event is not None and event[0] is False


@pytest.mark.parametrize("text", ["10.0.0.1/33", "1.2.3.4/x", "10.0.0.1/-1", "fd00::/129", "nonsense", "", "1.2.3.4/²"])
def test_bad_prefix(text: str) -> None:
    with pytest.raises(ValueError, match="not an IP"):
        nl.split_prefix(text)


@pytest.mark.parametrize("text", ["", "aa", "aa:bb:cc:dd:ee", "aa:bb:cc:dd:ee:fff", "aa:bb:cc:dd:ee:gg"])
def test_bad_mac(text: str) -> None:
    with pytest.raises(ValueError, match="hardware address"):
        nl.pack_mac(text)


@pytest.mark.parametrize("name", ["", "x" * 16, "a/b", "a b", "..", "a:1", "a\0"])
def test_bad_interface_name(name: str) -> None:
    with pytest.raises(ValueError, match="interface name"):
        nl.pack_name(name)


PARSERS = (nl.parse_link, nl.parse_address, nl.parse_route, nl.parse_neighbour)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except ValueError:
            pass
    for flags in (0, nl.NLM_F_ACK_TLVS, nl.NLM_F_ACK_TLVS | nl.NLM_F_CAPPED):
        try:
            nl.error_of(nl.Message(nl.NLMSG_ERROR, flags, 0, data))
        except ValueError:
            pass
    try:
        for message in nl.unpack(data):
            nl.parse_event(message)
    except ValueError:
        pass
