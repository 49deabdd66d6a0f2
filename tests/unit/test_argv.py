"""QEMU's command line."""

from __future__ import annotations

import pytest

from kata.contract import MachinePlan
from kata.record import replace
from kata.vm.argv import Endpoints, qemu_argv

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
