"""A flavor is a plugin: a stranger's comes by its installation alone, and what it made outlives it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from harness.oci import Oci
from harness.proc import Result, run
from harness.runtime import Runtime

pytestmark = pytest.mark.vm_only

HERE = Path(__file__).resolve().parents[2]
EXAMPLE = HERE / "docs/examples/flavor"


def program(folder: Path, *places: Path) -> str:
    """Kata with only these places to import from."""
    path = folder / "kata"
    path.write_text(f"#!{sys.executable} -IS\nimport sys\nsys.path += {list(map(str, places))!r}\n"
                    "from kata.cli import program\nprogram()\n")
    path.chmod(0o755)
    return str(path)


def site_without(folder: Path, *names: str) -> Path:
    """The library of this Python as if some distributions had never been installed."""
    site = folder / "site"
    site.mkdir()
    for entry in os.scandir(sysconfig.get_path("purelib")):
        if not entry.name.startswith(names):
            (site / entry.name).symlink_to(entry.path)
    return site


def test_a_strangers_flavor(oci: Oci, tmp_path: Path) -> None:
    """The example of the documentation, installed beside the rest."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--target", str(site), str(source), timeout=120).ok()
    backends = [HERE / "backends" / flavor for flavor in ("unified", "clear", "runv")]
    kata = program(tmp_path, HERE, HERE / "agent", *backends, Path(sysconfig.get_path("purelib")), site)

    def verb(*words: str) -> Result:
        return run(kata, "--root", str(oci.root), *words, timeout=120)

    assert "small" in verb("flavor").ok().stdout
    seen = "nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; ls /sys/class/net"
    bundle, id = oci.bundle(seen).write(), oci.new_id()
    plans = verb("plan", "--flavor", "all", str(bundle.path)).ok().stdout
    assert plans.splitlines()[0].split() == ["clear", "runv", "small", "unified"]
    vcpus, memory, *interfaces = verb("--flavor", "small", "run", "--bundle", str(bundle.path), id).ok().out.split()
    assert vcpus == "1" and 150 < int(memory) < 256 and interfaces == ["lo"]
    assert verb("--flavor", "small", "state", id).fails(3).stderr.startswith("small: ")
    other = Oci(Runtime(kata, is_vm=True), oci.run_dir, oci.work_dir, oci.rootfs, f"{oci.tag}s")
    with other.container(oci.bundle()) as c:
        c.launch_verb("create", globals=("--flavor", "small")).ok()
        # Who has not the example drives what it made.
        oci.verb("start", c.id).ok()
        assert json.loads(oci.verb("state", c.id).ok().stdout)["status"] == "running"
        assert oci.verb("exec", c.id, "echo", "driven").ok().out == "driven"
        oci.verb("kill", c.id, "KILL").ok()
        assert c.wait(20) == 137
        oci.verb("delete", c.id).ok()
        c.assert_gone()


def test_without_the_plugins(oci: Oci, tmp_path: Path) -> None:
    """clear's and runv's are uninstalled: unified works, and what they made is driven to its end."""
    site = site_without(tmp_path, "kata_backend_clear", "kata_backend_runv", "kata_clear", "kata_runv", "__editable__")
    kata = program(tmp_path, HERE, HERE / "agent", HERE / "backends/unified", site)

    def verb(*words: str) -> Result:
        return run(kata, "--root", str(oci.root), *words, timeout=120)

    assert "clear" not in verb("flavor").ok().stdout
    assert "unknown flavor 'clear'" in verb("--flavor", "clear", "list").fails().stderr
    for flavor in ("clear", "runv"):
        with oci.container(oci.bundle()) as c:
            c.launch_verb("create", globals=("--flavor", flavor)).ok()
            c.start().ok()
            assert json.loads(verb("state", c.id).ok().stdout)["status"] == "running"
            assert c.id in verb("list", "-q").ok().out.split()
            assert verb("exec", c.id, "echo", "still").ok().out == "still"
            verb("pause", c.id).ok()
            verb("resume", c.id).ok()
            verb("kill", c.id, "KILL").ok()
            assert c.wait(20) == 137
            verb("delete", c.id).ok()
            c.assert_gone()
    bundle, id = oci.bundle("echo works").write(), oci.new_id()
    assert verb("run", "--bundle", str(bundle.path), id).ok().out == "works"
