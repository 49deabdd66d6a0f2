"""Ethernet frames of a guest that a test plays, at the descriptor of a tap."""

from __future__ import annotations

import os
import select
import socket
import struct

from kata_agent.linux import netlink as nl

VNET_HEADER = 10  # bytes of struct virtio_net_hdr in front of each frame
BROADCAST = b"\xff" * 6


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) if len(data) % 2 == 0 else checksum_odd(data)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def checksum_odd(data: bytes) -> int:
    return sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0"))


class Guest:
    """A guest with one address on the tap ``fd``."""

    def __init__(self, fd: int, mac: str, address: str) -> None:
        self.fd = fd
        self.mac = nl.pack_mac(mac)
        self.address = socket.inet_aton(address)

    def send(self, frame: bytes) -> None:
        os.write(self.fd, bytes(VNET_HEADER) + frame)

    def receive(self, timeout: float) -> bytes | None:
        """The next frame, None when none comes in ``timeout`` seconds."""
        ready, _w, _x = select.select([self.fd], [], [], timeout)
        return os.read(self.fd, 65536)[VNET_HEADER:] if ready else None

    def find(self, wanted: bytes, at: int, timeout: float = 3.0) -> bytes | None:
        """The next frame that has ``wanted`` at offset ``at``."""
        while (frame := self.receive(timeout)) is not None:
            if frame[at : at + len(wanted)] == wanted:
                return frame
        return None

    def arp(self, target: str) -> bytes | None:
        """Ask for the hardware address of ``target``; None without an answer."""
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + self.mac + self.address + bytes(6) + socket.inet_aton(target)
        self.send(BROADCAST + self.mac + b"\x08\x06" + body)
        reply = self.find(b"\x00\x02" + b"", 20)
        while reply is not None and reply[12:14] != b"\x08\x06":
            reply = self.find(b"\x00\x02", 20)
        return reply[22:28] if reply else None

    def udp(self, to_mac: bytes, to: str, source_port: int, port: int, payload: bytes) -> None:
        """Send a datagram; no checksum, which IPv4 allows."""
        data = struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 1, 0, 64, 17, 0, self.address,
                           socket.inet_aton(to))
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        self.send(to_mac + self.mac + b"\x08\x00" + head + data)

    def udp_to(self, port: int, timeout: float = 3.0) -> bytes | None:
        """Payload of the next IPv4 datagram to local ``port``."""
        frame = self.find(struct.pack("!H", port), 36, timeout)
        return frame[42:] if frame else None
