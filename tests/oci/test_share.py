"""What programs rely on of a file system, in a folder that the host shares.

The same probe runs on the host; where a machine answers otherwise, ``DIFFERENT`` says how, and docs/differences.md.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import fileprobe
from harness.oci import Container, Oci
from harness.proc import run

PYTHON = os.path.realpath(sys.executable)
#: check -> its result in a machine.
DIFFERENT: dict[str, Any] = {
    "lease": "EINVAL",
    "rename": ["old", "new", True, 1, "ENOTEMPTY", "EISDIR", "EINVAL"],  # st_nlink of a file that was replaced
    "rename_noreplace": ["EEXIST", "EINVAL"],
    "rename_exchange": ["EINVAL", "a"],
    "unlinked_while_open": "ENOENT",  # fstat; QEMU before 9.2
    "holes": [0, 1 << 24],
    "punched_hole": "ENOTSUP",
    "read_sees_a_mapping": "\0" * 6,  # before msync
    "unnamed": "ENOTSUP",
    "times": [10**18, 2 * 10**18, 0, True, True],  # what is set has no fraction of a second
    "extended_attributes": ["1", 1000, ["user.one", "user.two"], "ENODATA", "ok"],  # an empty value removes it
    "file_capabilities": ["ENOTSUP", "ENOTSUP"],
    "access_lists": ["EACCES", "0o640"],  # kept, and not looked at
    "inotify": "EAGAIN",  # of a folder that nobody holds open
}


@pytest.fixture(scope="module")
def folder(oci: Oci) -> Path:
    path = oci.work_dir / "shared-folder"
    (path / "guest").mkdir(parents=True)
    (path / "host").mkdir()
    return path


@pytest.fixture(scope="module")
def container(oci: Oci, folder: Path) -> Iterator[Container]:
    """With the host's Python, and ``folder`` at the same path."""
    bundle = oci.bundle()
    (bundle.rootfs / "usr/bin").unlink()
    for name in ("lib", "lib64"):
        (bundle.rootfs / name).symlink_to(f"usr/{name}")
    bundle.bind("/usr", "/usr", "ro").bind(folder, str(folder)).bind(Path(fileprobe.__file__).parent, "/probe", "ro")
    if not sys.base_prefix.startswith("/usr"):
        bundle.bind(sys.base_prefix, sys.base_prefix, "ro")
    with oci.running(bundle) as c:
        yield c


def probe(container: Container, code: str) -> str:
    """The output of Python code in the container, whose working folder is the shared one."""
    return container.exec(PYTHON, "-c", code).ok().out


def test_as_on_the_host(oci: Oci, container: Container, folder: Path) -> None:
    expected = json.loads(run(PYTHON, fileprobe.__file__, str(folder / "host")).ok().stdout)
    got = json.loads(container.exec(PYTHON, "/probe/fileprobe.py", str(folder / "guest")).ok().stdout)
    if oci.runtime.is_vm:
        expected.update(DIFFERENT)
    wrong = [f"{name}: expected {expected[name]}, got {got.get(name)}" for name in expected
             if got.get(name) != expected[name]]
    assert not wrong, "\n".join(wrong)


def test_changes_cross_at_once(container: Container, folder: Path) -> None:
    """Content, names, size, mode and removal, both ways, also of a file that is open."""
    at = folder / "crossing"
    at.mkdir()
    (at / "f").write_text("one")
    code = f"""
import os, sys
os.chdir({str(at)!r})
held = open("f", "rb", buffering=0)
print(held.read().decode(), flush=True)
sys.stdin.readline()
print(held.read().decode(), os.path.getsize("f"), oct(os.stat("f").st_mode & 0o777), flush=True)
os.rename("new", "back")
open("made", "w").write("guest")
print("done", flush=True)
sys.stdin.readline()
print(os.path.exists("f"), os.pread(held.fileno(), 99, 0).decode(), sorted(os.listdir(".")), flush=True)
"""
    argv = container.oci.argv("exec", container.id, PYTHON, "-c", code)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "one\n"
        with open(at / "f", "a") as f:
            f.write(" two")
        (at / "f").chmod(0o640)
        (at / "new").touch()
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == " two 7 0o640\n"
        assert process.stdout.readline() == "done\n"
        assert (at / "made").read_text() == "guest" and sorted(os.listdir(at)) == ["back", "f", "made"]
        os.unlink(at / "f")
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "False one two ['back', 'made']\n"
    assert process.returncode == 0


def test_mappings_across(oci: Oci, container: Container, folder: Path) -> None:
    """What the guest maps and syncs the host sees; what the host changes, a file mapped in the guest does not show
    while it is open."""
    path = folder / "mapped"
    path.write_bytes(bytes(4096))
    code = f"""
import mmap, os, sys
f = open({str(path)!r}, "rb+", buffering=0)
m = mmap.mmap(f.fileno(), 4096)
m[0:5] = b"guest"
m.flush()
print("synced", flush=True)
sys.stdin.readline()
print(bytes(m[100:104]) == b"host", os.pread(f.fileno(), 4, 100).decode(), flush=True)
m.close()
f.close()
f = open({str(path)!r}, "rb+")
print(bytes(mmap.mmap(f.fileno(), 4096)[100:104]) == b"host", flush=True)
"""
    argv = container.oci.argv("exec", container.id, PYTHON, "-c", code)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "synced\n"
        with open(path, "rb+") as f, mmap.mmap(f.fileno(), 4096) as m:
            assert bytes(m[0:5]) == b"guest"
            m[100:104] = b"host"
        print(file=process.stdin, flush=True)
        lines = process.stdout.read().splitlines()
    assert lines[1] == "True"
    assert lines[0] == ("False host" if oci.runtime.is_vm else "True host")


@pytest.mark.vm_only
def test_events_of_what_is_open(container: Container, folder: Path) -> None:
    """inotify tells of a folder that a process holds open, and of a file; not of what the host changes."""
    code = f"""
import os, sys
sys.path.insert(0, "/probe")
import fileprobe
at = {str(folder)!r} + "/watched"
os.mkdir(at)
held = os.open(at, os.O_RDONLY)
print(fileprobe.CHECKS["inotify"](fileprobe.Path(at)))
"""
    assert probe(container, code) == "[True, True, True, True]"


def test_locks_do_not_cross(oci: Oci, container: Container, folder: Path) -> None:
    """A lock is held against processes of the same kernel."""
    path = folder / "locked"
    path.touch()
    with open(path, "r+") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        fcntl.lockf(f, fcntl.LOCK_EX)
        code = f"""
import fcntl
for lock in fcntl.flock, fcntl.lockf:
    with open({str(path)!r}, "r+") as f:
        try:
            lock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("got", end=" ")
        except OSError:
            print("refused", end=" ")
"""
        assert probe(container, code).split() == (["got"] * 2 if oci.runtime.is_vm else ["refused"] * 2)
