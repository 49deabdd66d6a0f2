"""Sandboxes side by side: they share a template's memory, and nothing that one of them does with it reaches another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.oci import Container, Oci
from harness.proc import run
from harness.sandbox import Parts

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import memory

pytestmark = pytest.mark.vm_only
COUNT = 4


@pytest.fixture(scope="module")
def clones(oci: Oci) -> Iterator[list[Container]]:
    run(*oci.argv("factory", "init"), timeout=120).ok()
    with ExitStack() as stack:
        made = []
        for _ in range(COUNT):
            container = stack.enter_context(oci.container(oci.bundle()))
            container.launch_verb("create").ok()
            container.start().ok()
            made.append(container)
        yield made


def template_of(oci: Oci, container: Container) -> Path:
    """The file that is mapped as the machine's memory."""
    maps = Path(f"/proc/{Parts(oci.root, container.id).qemu}/maps").read_text().splitlines()
    return next(Path(line.split()[-1]) for line in maps if line.endswith("/memory"))


def changes(file: Path) -> tuple[int, int]:
    """Differs when the file was written to, or a hole was punched into it."""
    status = os.stat(file)
    return status.st_blocks, status.st_mtime_ns


def test_each_has_memory_of_its_own(oci: Oci, clones: list[Container]) -> None:
    """Each fills some, frees some, and finds what it wrote; the template is what it was."""
    (template,) = {template_of(oci, c) for c in clones}
    before = changes(template)
    fill = "for i in $(seq 500); do echo $0 $i; done > /dev/shm/own; "
    fill += "dd if=/dev/zero of=/dev/shm/big bs=1M count=24 2>/dev/null; rm /dev/shm/big; md5sum < /dev/shm/own"
    wrote = [c.exec("sh", "-c", fill, c.id).ok().out for c in clones]
    assert len(set(wrote)) == COUNT
    assert [c.sh("md5sum < /dev/shm/own").ok().out for c in clones] == wrote
    assert changes(template) == before


def test_a_clone_has_no_balloon(oci: Oci, clones: list[Container]) -> None:
    """Its guest would decide what to put into it, and QEMU would take that out of the template."""
    devices = clones[0].sh("cat /sys/bus/virtio/devices/*/device").ok().out.split()
    assert "0x0003" in devices  # the console
    assert "0x0005" not in devices


def test_the_tool_sees_them(oci: Oci, clones: list[Container]) -> None:
    found = memory.sandboxes(str(oci.root))
    assert {c.id for c in clones} <= {id for sandbox in found for id in sandbox.containers}
    for sandbox in found:
        assert all(sandbox.roles[role].total for role in memory.ROLES)
        assert sandbox.roles["qemu"].pss["guest, shared"]
