"""QEMU's command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from kata.cli import check
from kata.contract import MachinePlan
from kata.errors import VmError
from kata.record import replace
from kata.vm.argv import Endpoints, qemu_argv
from kata.vm.machine import Machine

PLAN = MachinePlan(
    qemu_path="qemu", machine_type="q35", machine_options="", accelerator="tcg", cpu="max", vcpus=1, max_vcpus=2,
    memory=256, max_memory=1024, memory_slots=2, kernel="/k", initrd="/i", image="", firmware="",
    kernel_params=("quiet",),
    hotplug_ports=2, block_driver="virtio-blk", iothreads=False, prealloc=False, hugepages=False, mlock=False,
    msize_9p=512, entropy_source="/dev/urandom", tcg_cache=32, debug=False)
ENDS = Endpoints(name="n", channel=3, qmp=4, console="/c", share="/s", generation_id="g", channel_token="00")


@pytest.mark.parametrize(("shared", "incoming"), [(True, False), (False, True)])
def test_pages_of_a_memory_file_are_never_given_back(shared: bool, incoming: bool) -> None:
    """QEMU would punch holes into the file, and a clone's file is its template: a guest must have no balloon."""
    assert any("free-page-reporting=on" in word for word in qemu_argv(PLAN, ENDS))
    ends = replace(ENDS, memory_file="/m", memory_shared=shared, incoming=incoming)
    assert not any("balloon" in word for word in qemu_argv(PLAN, ends))


def test_a_template_is_opened_for_reading_where_qemu_can() -> None:
    ends = replace(ENDS, memory_file="/m", incoming=True)
    words = [word for word in qemu_argv(PLAN, ends) if word.startswith("memory-backend-file")]
    assert words == ["memory-backend-file,mem-path=/m,share=off,id=ram,size=256M"]
    words = [word for word in qemu_argv(PLAN, replace(ends, memory_read_only=True)) if word.startswith("memory-b")]
    assert words == ["memory-backend-file,mem-path=/m,share=off,readonly=on,rom=off,id=ram,size=256M"]


def test_the_token_is_on_the_kernel_command_line() -> None:
    argv = qemu_argv(PLAN, ENDS)
    assert argv[argv.index("-append") + 1] == "quiet agent.channel_token=00"


def test_a_processor_can_be_plugged_into_an_emulated_machine() -> None:
    """With a thread of its own, QEMU would abort when the translation cache has no free region."""
    def accelerator(vcpus: int) -> str:
        argv = qemu_argv(replace(PLAN, vcpus=vcpus), ENDS)
        return argv[argv.index("-accel") + 1]

    assert accelerator(1) == "tcg,thread=single,tb-size=32"
    assert accelerator(2) == "tcg,thread=multi,tb-size=32"


def test_a_qemu_that_is_too_old_is_told() -> None:
    """By its greeting, before anything waits for what it will never do; and by kata-check."""
    machine = Machine.__new__(Machine)
    for version, kind, old in (((6, 0), "q35", True), ((5, 2), "q35", True), ((6, 1), "q35", False),
                               ((7, 2), "q35", False), ((10, 0), "q35", False), ((5, 2), "pc", False)):
        machine.plan = replace(PLAN, machine_type=kind)
        machine.qmp = SimpleNamespace(version=version)  # type: ignore[assignment]
        if not old:
            machine.check_version()
            continue
        with pytest.raises(VmError, match=rf"^QEMU {version[0]}\.{version[1]} cannot plug devices into a q35 by ACPI: "
                                          r"version 6\.1 is needed: use a newer QEMU, or machine_type = .pc.$"):
            machine.check_version()


def test_check_looks_at_the_version_of_qemu(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    for said, ok in (("QEMU emulator version 5.2.0 (Debian 1:5.2)", False), ("QEMU emulator version 7.2.17", True),
                     ("what?", False)):
        qemu.write_text(f"#!/bin/sh\necho '{said}'\n")
        qemu.chmod(0o755)
        assert check._version(str(qemu), "q35")[1] == ok
