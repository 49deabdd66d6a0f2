"""What the host can do, from what /proc/cpuinfo says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata import hostfacts

VM = "constant_tsc hypervisor"


@pytest.mark.parametrize(("flags", "mhz", "model", "khz"), [
    (VM, "2445.406", "AMD EPYC", 2445406),
    ("constant_tsc", "1200.000", "Intel(R) Xeon(R) CPU E5 @ 2.60GHz", 2600000),
    ("constant_tsc", "1200.000", "AMD Ryzen", 0),
    ("hypervisor", "2000.0", "no constant counter", 0),
    (VM, "?", "", 0),
    ("", "", "", 0),
])
def test_clock(flags: str, mhz: str, model: str, khz: int) -> None:
    assert hostfacts.tsc_khz({"flags": flags, "cpu MHz": mhz, "model name": model}) == khz


def test_kvm_needs_the_processor_and_the_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_text("")
    assert not hostfacts.kvm_usable({"flags": "sse"}, "/dev/kvm")
    assert not hostfacts.kvm_usable({"flags": "vmx"}, str(tmp_path / "none"))
    assert not hostfacts.kvm_usable({"flags": "vmx"}, str(tmp_path / "kvm")), "opens, but makes no machine"


def test_first_processor(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("processor\t: 0\nflags\t\t: a b\n\nprocessor\t: 1\nflags : c\n")
    assert hostfacts.first_processor(str(tmp_path / "c")) == {"processor": "0", "flags": "a b"}
    assert hostfacts.collect().cpus >= 1 and hostfacts.collect().memory > 0
