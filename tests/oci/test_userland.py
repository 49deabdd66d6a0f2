"""A distribution's own programs: glibc, bash, Python, procps, iproute2, stress-ng."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bundle import Bundle
from harness.debian import debian_rootfs
from harness.oci import Oci


@pytest.fixture(scope="module")
def debian(work_dir: Path) -> Path:
    return debian_rootfs(work_dir / "debian")


@pytest.fixture
def bundle(oci: Oci, debian: Path) -> Bundle:
    """A bundle with a read-only root of Debian, and a /tmp."""
    bundle = oci.bundle()
    bundle.merge({"root": {"path": str(debian), "readonly": True}})
    bundle.tmpfs("/tmp", "nosuid", "nodev", "mode=1777", "size=64m")
    return bundle


def bash(bundle: Bundle, script: str) -> Bundle:
    bundle.process["args"] = ["/bin/bash", "-euo", "pipefail", "-c", script]
    return bundle


def test_programs(oci: Oci, bundle: Bundle) -> None:
    script = """
        . /etc/os-release; echo $ID
        python3 -c 'import os, re, subprocess; print(os.getppid(), subprocess.run("true").returncode)'
        ps -e -o comm= | head -1
        ip -o link show lo | cut -d: -f2
        seq 100000 | sort -n | tail -1
        getent passwd daemon | cut -d: -f3
        echo caf\u00e9 | LC_ALL=C.UTF-8 wc -m
    """
    lines = oci.run(bash(bundle, script)).ok().out.splitlines()
    assert lines == ["debian", "1 0", "bash", " lo", "100000", "1", "5"]


def test_root_is_read_only(oci: Oci, bundle: Bundle) -> None:
    result = oci.run(bash(bundle, "touch /tmp/x; ls /tmp; touch /etc/x"))
    assert result.out.strip() == "x"
    assert result.rc == 1
    assert "Read-only file system" in result.stderr


def test_shared_library_is_mapped_by_many(oci: Oci, bundle: Bundle) -> None:
    script = """
        cd /tmp
        for i in $(seq 8); do python3 -c 'import os; open(f"o{os.getpid()}", "w").write("x" * 65536)' & done
        wait
        cat o* | wc -c
    """
    assert oci.run(bash(bundle, script)).ok().out.strip() == str(8 * 65536)


def test_stress(oci: Oci, bundle: Bundle) -> None:
    """Forks, memory, pipes, signals and files for a few seconds, all checked by stress-ng."""
    script = (
        "cd /tmp && stress-ng --timeout 4s --verify --fork 1 --vm 1 --vm-bytes 16m --pipe 1 --sigq 1 --hdd 1"
        " --hdd-bytes 4m --temp-path /tmp 2>&1"
    )
    out = oci.run(bash(bundle, script)).ok().out
    assert "successful run completed" in out
