"""The archive the kernel unpacks as its first root: cpio "newc".

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
Two archives of the same tree are the same bytes: sorted names, time 0, owner 0.
The kernel unpacks archives that follow each other one after the other, each
compressed in its own way; so an initrd is made of layers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from kata.process import run

LEVEL = 12  #: of zstd; 19 saves a tenth of the size and takes seven times as long

#: Made even when /dev is not mounted yet: the kernel opens /dev/console for PID 1.
DEVICES: Mapping[str, tuple[int, int, int]] = {
    "dev/console": (0o600, 5, 1),
    "dev/null": (0o666, 1, 3),
    "dev/kmsg": (0o600, 1, 11),
}


def pack(tree: Path, target: Path, *, devices: Mapping[str, tuple[int, int, int]] | None = None) -> None:
    """Write ``tree`` and ``devices`` to ``target``, and compressed by zstd to ``target.zst``."""
    with target.open("wb") as out:
        write_tree(tree, out, devices or {})
    argv = ["zstd", f"-{LEVEL}", "-q", "-f", str(target), "-o", f"{target}.zst"]
    run(argv, timeout=600, hint="apt-get install zstd")


def join(layers: Sequence[Path], target: Path) -> None:
    """Make one initrd of ``layers``; what a later one has replaces what an earlier one has."""
    with target.open("wb") as out:
        for layer in layers:
            data = layer.read_bytes()
            out.write(data + bytes(-len(data) % 4))


def write_tree(tree: Path, out: BinaryIO, devices: Mapping[str, tuple[int, int, int]]) -> None:
    """Write ``tree`` and device nodes (name to mode, major, minor) to ``out``."""
    paths = {str(p.relative_to(tree)): p for p in tree.rglob("*")}
    number = 0
    for name in sorted({*paths, *devices}):
        number += 1
        if name in devices:
            mode, major, minor = devices[name]
            _entry(out, number, name, stat.S_IFCHR | mode, b"", (major, minor))
            continue
        path = paths[name]
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            _entry(out, number, name, stat.S_IFLNK | 0o777, os.readlink(path).encode())
        elif stat.S_ISDIR(info.st_mode):
            _entry(out, number, name, info.st_mode, b"")
        else:
            _entry(out, number, name, info.st_mode, path.read_bytes())
    _entry(out, 0, "TRAILER!!!", 0, b"")


def _entry(out: BinaryIO, number: int, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
    raw = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + raw
    out.write(head + bytes(-len(head) % 4))
    out.write(data + bytes(-len(data) % 4))
