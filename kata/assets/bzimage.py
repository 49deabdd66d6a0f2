"""The ELF kernel out of a bzImage.

QEMU boots an ELF kernel that has a PVH entry point directly; a bzImage first
decompresses itself, which takes seconds when the processor is emulated.

The setup header is described in Linux, Documentation/x86/boot.rst:
``setup_sects``, ``payload_offset`` and ``payload_length``.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib

from kata.assets.elf import MAGIC
from kata.errors import HostError
from kata.process import run


def extract_vmlinux(data: bytes, name: str) -> bytes:
    """The decompressed kernel in bzImage ``data``.

    :raise HostError: not a bzImage, or its payload is not a known format.
    """
    if len(data) < 0x260 or data[0x202:0x206] != b"HdrS":
        raise HostError(f"{name} is not a bzImage")
    if data[:4] == MAGIC:
        return data
    sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = data[start : start + length]
    if not length or len(payload) != length:
        raise HostError(f"{name} is damaged: its payload of {length} bytes is cut short")
    kernel = _decompress(payload, name)
    if kernel[:4] != MAGIC:
        raise HostError(f"the payload of {name} is not an ELF kernel")
    return kernel


def _decompress(payload: bytes, name: str) -> bytes:
    # The last four bytes of the payload are the uncompressed size, appended by the kernel's build;
    # streams that know their own end leave them over, the others get them cut off.
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(payload)
        if payload.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(payload)
        if payload.startswith(b"\x5d\x00\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload)
    except (lzma.LZMAError, zlib.error, OSError, EOFError) as e:
        raise HostError(f"the payload of {name} does not decompress: {e}") from e
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return run(["zstd", "-dc"], input=payload[:-4], timeout=120, hint="apt-get install zstd").stdout
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return run(["lz4", "-dc"], input=payload[:-4], timeout=120, hint="apt-get install lz4").stdout
    raise HostError(f"the payload of {name} is in an unknown format: it starts with {payload[:6].hex()}")
