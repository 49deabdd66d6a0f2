"""Just enough of ELF64 little-endian: sections, notes, needed libraries.

Files come from packages that apt has verified, yet every offset is checked, so
that a damaged file is an error and not a traceback.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kata.errors import HostError

MAGIC = b"\x7fELF"
PT_DYNAMIC, PT_INTERP, PT_NOTE = 2, 3, 4
SHT_SYMTAB = 2
DT_NEEDED, DT_STRTAB = 1, 5
XEN_ELFNOTE_PHYS32_ENTRY = 18  #: the PVH entry point of a kernel


@dataclass(frozen=True, slots=True)
class Segment:
    type: int
    offset: int  #: bytes in the file
    vaddr: int
    size: int  #: bytes in the file


class Elf:
    """A parsed ELF file; ``name`` is what errors call it.

    :raise HostError: not an ELF64 little-endian file, or cut short.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        if data[:4] != MAGIC or data[4:6] != b"\x02\x01" or len(data) < 64:
            raise HostError(f"{name} is not a 64-bit ELF file")
        head = struct.unpack_from("<HHIQQQIHHHHHH", data, 16)
        self._phoff, self._shoff = head[4], head[5]
        self._phentsize, self._phnum, self._shentsize, self._shnum, self._shstrndx = head[8:13]

    def _cut(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise HostError(f"{self.name} is damaged: bytes {offset}..{offset + size} lie outside the file")
        return self.data[offset : offset + size]

    def segments(self) -> list[Segment]:
        """The program headers."""
        found = []
        for i in range(self._phnum):
            raw = self._cut(self._phoff + i * self._phentsize, 56)
            kind, _flags, offset, vaddr, _paddr, size, _memsz, _align = struct.unpack("<IIQQQQQQ", raw)
            found.append(Segment(kind, offset, vaddr, size))
        return found

    def section(self, wanted: str) -> bytes:
        """Contents of the section named ``wanted``; empty when there is none."""
        if not self._shnum:
            return b""
        strings = self._section_header(self._shstrndx)
        names = self._cut(strings[4], strings[5])
        for i in range(self._shnum):
            header = self._section_header(i)
            if names[header[0] : names.find(b"\0", header[0])] == wanted.encode():
                return self._cut(header[4], header[5])
        return b""

    def _section_header(self, index: int) -> tuple[int, ...]:
        return struct.unpack("<IIQQQQIIQQ", self._cut(self._shoff + index * self._shentsize, 64))

    def notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """``(owner, type, description)`` of every note."""
        for segment in self.segments():
            if segment.type != PT_NOTE:
                continue
            raw = self._cut(segment.offset, segment.size)
            at = 0
            while at + 12 <= len(raw):
                name_size, desc_size, kind = struct.unpack_from("<III", raw, at)
                at += 12
                name = raw[at : at + name_size].rstrip(b"\0")
                at += (name_size + 3) & ~3
                yield name, kind, raw[at : at + desc_size]
                at += (desc_size + 3) & ~3

    def has_pvh_entry(self) -> bool:
        """Whether QEMU can boot this kernel without a boot protocol (PVH)."""
        return any(owner == b"Xen" and kind == XEN_ELFNOTE_PHYS32_ENTRY for owner, kind, _ in self.notes())

    def modinfo(self) -> list[tuple[str, str]]:
        """``key=value`` pairs of a kernel module."""
        pairs = []
        for raw in self.section(".modinfo").split(b"\0"):
            key, sep, value = raw.decode(errors="replace").partition("=")
            if sep:
                pairs.append((key, value))
        return pairs

    def needed(self) -> list[str]:
        """Sonames of the shared libraries it is linked to, and its interpreter's base name."""
        segments = self.segments()
        names = []
        for segment in segments:
            if segment.type == PT_INTERP:
                loader = self._cut(segment.offset, segment.size).rstrip(b"\0").decode(errors="replace")
                names.append(loader.rpartition("/")[2])
        return names + [name for _, _, name in self._dynamic() if name]

    def _dynamic(self) -> list[tuple[int, int, str]]:
        """``(offset in the file, tag, library)`` of the dynamic entries; library only where the tag is NEEDED."""
        segments = self.segments()
        segment = next((s for s in segments if s.type == PT_DYNAMIC), None)
        if segment is None:
            return []
        raw = self._cut(segment.offset, segment.size)
        entries = [(at, *struct.unpack_from("<QQ", raw, at)) for at in range(0, len(raw) - 15, 16)]
        strings = self._file_offset(segments, next((value for _, tag, value in entries if tag == DT_STRTAB), 0))
        found = []
        for at, tag, value in entries:
            name = ""
            if tag == DT_NEEDED:
                end = self.data.find(b"\0", strings + value)
                name = self._cut(strings + value, end - strings - value).decode(errors="replace")
            found.append((segment.offset + at, tag, name))
        return found

    def without_needed(self, libraries: Collection[str]) -> bytes:
        """The file, no longer linked to ``libraries``.

        Only right when none of their symbols is used; loading it with every
        symbol bound at once (``LD_BIND_NOW``) tells.
        """
        entries = self._dynamic()
        if not entries:
            return self.data
        kept = [self.data[at : at + 16] for at, _, name in entries if name not in libraries]
        start, table = entries[0][0], b"".join(kept).ljust(16 * len(entries), b"\0")
        return self.data[:start] + table + self.data[start + len(table) :]

    def _file_offset(self, segments: list[Segment], vaddr: int) -> int:
        for segment in segments:
            if segment.type == 1 and segment.vaddr <= vaddr < segment.vaddr + segment.size:
                return vaddr - segment.vaddr + segment.offset
        raise HostError(f"{self.name} is damaged: address {vaddr:#x} is in no segment")
