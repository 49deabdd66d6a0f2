"""File formats of kernels and images: ELF, bzImage, cpio, kernel modules."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.assets import cpio
from kata.assets.bzimage import extract_vmlinux
from kata.assets.elf import Elf
from kata.assets.modules import ModuleSet, index_files
from kata.errors import HostError


def elf(sections: dict[str, bytes] | None = None, note: tuple[bytes, int, bytes] | None = None) -> bytes:
    """A small ELF64 file with these sections and one note."""
    sections = {"": b"", **(sections or {}), ".shstrtab": b""}
    names, offsets = b"", {}
    for name in sections:
        offsets[name] = len(names)
        names += name.encode() + b"\0"
    sections[".shstrtab"] = names
    body, headers = b"", b""
    start = 64 + 56
    for name, data in sections.items():
        headers += struct.pack("<IIQQQQIIQQ", offsets[name], 1, 0, 0, start + len(body), len(data), 0, 0, 1, 0)
        body += data
    notes = b""
    if note:
        owner, kind, text = note
        owner += b"\0"
        notes = struct.pack("<III", len(owner), len(text), kind)
        notes += owner.ljust(-(-len(owner) // 4) * 4, b"\0") + text.ljust(-(-len(text) // 4) * 4, b"\0")
    segment = struct.pack("<IIQQQQQQ", 4, 4, start + len(body), 0, 0, len(notes), len(notes), 4)
    section_table = start + len(body) + len(notes)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    count = len(sections)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, section_table, 0, 64, 56, 1, 64, count, count - 1)
    return head + segment + body + notes + headers


def module(**info: str) -> bytes:
    return elf({".modinfo": b"".join(f"{k}={v}\0".encode() for k, v in info.items())})


class TestElf:
    def test_section_and_note(self) -> None:
        file = Elf(elf({".modinfo": b"name=x\0depends=a,b\0"}, (b"Xen", 18, b"\0\0\0\1")), "x")
        assert file.modinfo() == [("name", "x"), ("depends", "a,b")]
        assert list(file.notes()) == [(b"Xen", 18, b"\0\0\0\1")]
        assert file.has_pvh_entry()
        assert not Elf(elf(), "x").has_pvh_entry()
        assert Elf(elf(), "x").section(".nothing") == b""

    def test_needed_of_a_real_program(self) -> None:
        shell = Path("/bin/sh").resolve()
        names = Elf(shell.read_bytes(), "sh").needed()
        assert "libc.so.6" in names
        assert names[0].startswith("ld-linux")

    def test_without_needed(self) -> None:
        data = Path("/bin/sh").resolve().read_bytes()
        less = Elf(data, "sh").without_needed(["libc.so.6"])
        assert len(less) == len(data)
        assert Elf(less, "sh").needed() == [n for n in Elf(data, "sh").needed() if n != "libc.so.6"]

    @pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" * 100, b"\x7fELF\x01\x01" + bytes(100)])
    def test_other_files_are_refused(self, data: bytes) -> None:
        with pytest.raises(HostError, match="not a 64-bit ELF"):
            Elf(data, "x")

    @given(st.data())
    def test_damage_is_an_error_not_a_crash(self, data: st.DataObject) -> None:
        raw = bytearray(elf({".modinfo": b"name=x\0"}, (b"Xen", 18, b"abcd")))
        for _ in range(data.draw(st.integers(1, 6))):
            raw[data.draw(st.integers(16, len(raw) - 1))] = data.draw(st.integers(0, 255))
        file = Elf(bytes(raw), "x")
        for read in (file.modinfo, file.needed, lambda: list(file.notes()), file.segments):
            try:
                read()
            except HostError:
                pass


class TestBzImage:
    @staticmethod
    def image(payload: bytes) -> bytes:
        head = bytearray(1024)
        head[0x1F1] = 1
        head[0x202:0x206] = b"HdrS"
        payload += struct.pack("<I", 0)  # the size that the kernel's build appends
        struct.pack_into("<II", head, 0x248, 16, len(payload))
        return bytes(head) + bytes(16) + payload + b"rest"

    @pytest.mark.parametrize(
        "compress",
        [lambda d: zlib.compress(d, wbits=31), lzma.compress, bz2.compress,
         lambda d: lzma.compress(d, lzma.FORMAT_ALONE)],
        ids=["gzip", "xz", "bzip2", "lzma"],
    )  # fmt: skip
    def test_payloads(self, compress) -> None:  # type: ignore[no-untyped-def]
        kernel = elf() + b"kernel" * 1000
        assert extract_vmlinux(self.image(compress(kernel)), "k") == kernel

    @pytest.mark.parametrize(("program", "options"), [("zstd", []), ("lz4", ["-l"])])
    def test_payloads_by_program(self, program: str, options: list[str]) -> None:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        kernel = elf() + b"kernel" * 1000
        packed = subprocess.run([program, "-c", *options], input=kernel, capture_output=True, check=True).stdout
        assert extract_vmlinux(self.image(packed), "k") == kernel

    def test_refusals(self) -> None:
        with pytest.raises(HostError, match="not a bzImage"):
            extract_vmlinux(b"x" * 5000, "k")
        with pytest.raises(HostError, match="unknown format"):
            extract_vmlinux(self.image(b"??????"), "k")
        with pytest.raises(HostError, match="not an ELF"):
            extract_vmlinux(self.image(lzma.compress(b"text")), "k")
        with pytest.raises(HostError, match="cut short"):
            extract_vmlinux(self.image(lzma.compress(elf()))[:1100], "k")
        with pytest.raises(HostError, match="does not decompress"):
            extract_vmlinux(self.image(b"\xfd7zXZ\0" + b"rubbish" * 9), "k")


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Names to mode and contents, of every archive in ``data``."""
    found, at = {}, 0
    while at < len(data):
        if data[at : at + 4] == bytes(4):
            at += 4
            continue
        assert data[at : at + 6] == b"070701", at
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at = -(-(at + 110 + fields[11]) // 4) * 4
        content = data[at : at + fields[6]]
        at = -(-(at + fields[6]) // 4) * 4
        assert fields[2:4] == [0, 0], "owner"
        assert fields[5] == 0, "time"
        if name != "TRAILER!!!":
            found[name] = (fields[1], content)
    return found


class TestCpio:
    @staticmethod
    def tree(root: Path) -> Path:
        (root / "bin").mkdir(parents=True)
        (root / "bin/tool").write_bytes(b"x" * 101)
        (root / "bin/tool").chmod(0o755)
        (root / "bin/link").symlink_to("tool")
        (root / "empty").touch()
        return root

    @staticmethod
    def written(root: Path) -> bytes:
        out = io.BytesIO()
        cpio.write_tree(root, out, cpio.DEVICES)
        return out.getvalue()

    def test_contents(self, tmp_path: Path) -> None:
        entries = read_cpio(self.written(self.tree(tmp_path / "t")))
        assert entries["bin/tool"] == (0o100755, b"x" * 101)
        assert entries["bin/link"] == (0o120777, b"tool")
        assert entries["empty"][1] == b""
        assert entries["dev/console"][0] == 0o020600
        assert list(entries) == sorted(entries)

    def test_same_tree_same_bytes(self, tmp_path: Path) -> None:
        one, two = self.tree(tmp_path / "1"), self.tree(tmp_path / "2")
        os.utime(two / "empty", (1, 1))
        assert self.written(one) == self.written(two)

    def test_layers_follow_each_other(self, tmp_path: Path) -> None:
        first, second = tmp_path / "1.cpio", tmp_path / "2.cpio"
        first.write_bytes(self.written(self.tree(tmp_path / "t")))
        (tmp_path / "u").mkdir()
        (tmp_path / "u/new").write_text("n")
        with second.open("wb") as out:
            cpio.write_tree(tmp_path / "u", out, {})
        cpio.join([first, second], tmp_path / "joined")
        entries = read_cpio((tmp_path / "joined").read_bytes())
        assert entries["new"][1] == b"n"
        assert "bin/tool" in entries


class TestModules:
    @pytest.fixture
    def modules(self, tmp_path: Path) -> ModuleSet:
        for path, info in {
            "kernel/drivers/virtio/virtio_ring.ko": {},
            "kernel/drivers/virtio/virtio.ko": {"depends": "virtio_ring"},
            "kernel/drivers/net/virtio-net.ko": {"depends": "virtio,virtio_ring", "alias": "virtio:d1"},
            "kernel/drivers/odd.ko": {"depends": "virtio_ring,virtio"},
            "kernel/fs/some.ko": {"depends": "builtin-one", "softdep": "pre: crypto-crc32c"},
            "kernel/crypto/crc32c_x.ko": {"alias": "crypto-crc32c"},
            "kernel/fs/broken.ko": {"depends": "missing"},
        }.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(module(**info))
        (tmp_path / "modules.builtin").write_text("kernel/lib/builtin-one.ko\n")
        return ModuleSet(tmp_path)

    def test_dependencies_come_first(self, modules: ModuleSet) -> None:
        names = [m.name for m in modules.closure(["virtio_net"], required=True)]
        assert names == ["virtio_ring", "virtio", "virtio_net"]

    def test_softdep_by_alias(self, modules: ModuleSet) -> None:
        assert [m.name for m in modules.closure(["some"], required=True)] == ["crc32c_x", "some"]

    def test_built_in_is_satisfied(self, modules: ModuleSet) -> None:
        assert modules.closure(["builtin_one"], required=True) == []

    def test_missing(self, modules: ModuleSet) -> None:
        assert modules.closure(["nothing"], required=False) == []
        with pytest.raises(HostError, match="no module nothing"):
            modules.closure(["nothing"], required=True)
        with pytest.raises(HostError, match="no module missing"):
            modules.closure(["broken"], required=False)

    def test_index_loads_from_last_to_first(self, modules: ModuleSet) -> None:
        line = index_files(modules.closure(["odd"], required=True))["modules.dep"].splitlines()[0]
        assert line == "kernel/drivers/odd.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko"

    def test_index(self, modules: ModuleSet) -> None:
        files = index_files(modules.closure(["virtio_net"], required=True))
        assert (
            "kernel/drivers/net/virtio-net.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n"
            in files["modules.dep"]
        )
        assert files["modules.alias"] == "alias virtio:d1 virtio_net\n"
