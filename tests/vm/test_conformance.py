"""`kata conformance` with real machines: a flavor that behaves is without a finding, a broken one is named."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.proc import Result, run

pytestmark = pytest.mark.vm_only

HERE = Path(__file__).resolve().parents[2]
#: Unified, but: the umask is another, and every exit code that is not 0 is 9.
BROKEN = '''\
import copy

from kata.record import replace
from kata_unified import UnifiedBackend


class BrokenBackend(UnifiedBackend):
    name = "broken"

    def plan_container(self, config, bundle, sandbox_id, role):
        plan = super().plan_container(config, bundle, sandbox_id, role)
        spec, extras = copy.deepcopy(dict(plan.spec)), copy.deepcopy(dict(plan.extras))
        args = spec["process"]["args"]
        spec["process"]["args"] = ["/bin/sh", "-c", 'umask 0; "$@"; code=$?; test $code = 0 || exit 9', "-", *args]
        return replace(plan, spec=spec, extras=extras)
'''
ENTRY_POINTS = "[kata.backends]\nbroken = kata_broken:BrokenBackend\n"
CASES = ("run-true", "process-umask-default", "process-exit-code", "process-cwd")


@pytest.fixture(scope="module")
def kata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kata beside a flavor that somebody installed."""
    folder = tmp_path_factory.mktemp("broken")
    info = folder / "site/kata_broken-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kata-broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "site/kata_broken.py").write_text(BROKEN)
    backends = [HERE / "backends" / flavor for flavor in ("unified", "clear", "runv")]
    places = [HERE, HERE / "agent", *backends, Path(sysconfig.get_path("purelib")), folder / "site"]
    program = folder / "kata"
    program.write_text(f"#!{sys.executable} -IS\nimport sys\nsys.path += {list(map(str, places))!r}\n"
                       "from kata.cli import program\nprogram()\n")
    program.chmod(0o755)
    return program


def conformance(kata: Path, *words: str) -> Result:
    return run(str(kata), "conformance", *words, timeout=170)


def test_a_broken_flavor_is_named(kata: Path, tmp_path: Path) -> None:
    if not shutil.which("runc"):
        pytest.skip("runc is not installed")
    names = [word for case in CASES for word in ("--case", case)]
    files = {kind: tmp_path / f"run.{kind}" for kind in ("json", "junit", "tap", "html")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    got = conformance(kata, "run", "--suite", "oci", "--flavors", "unified,broken", "--reference", "runc",
                      "--jobs", "2", *names, *options).fails(1)
    named = {line.split()[1] for line in got.stdout.splitlines() if line.startswith("DIFFERS:")}
    assert named == {"oci/process-umask-default", "oci/process-exit-code"}, got
    assert all(" with broken:" in line for line in got.stdout.splitlines() if line.startswith("DIFFERS:")), got
    record = json.loads(files["json"].read_text())
    assert set(record["results"]["oci/run-true"]) == {"runc", "unified", "broken"}
    assert {"run"} <= set(record["samples"]["broken"])
    suites = {suite.get("name"): suite.get("failures") for suite in ET.parse(files["junit"]).getroot()}
    assert suites == {"runc": "0", "unified": "0", "broken": "2"}
    assert files["tap"].read_text().count("\nnot ok ") == 2
    assert "broken: differs" in files["html"].read_text()
    # The record alone makes the same report, and against itself it has no change.
    assert conformance(kata, "report", str(files["json"])).fails(1).stdout == got.stdout
    conformance(kata, "compare", str(files["json"]), str(files["json"])).ok()


def test_what_cannot_run_is_no_finding(kata: Path) -> None:
    for words, text in (
        (("run", "--suite", "nothing"), "unknown suite nothing"),
        (("run", "--case", "no-such-case"), "no case is named 'no-such-case'"),
        (("run", "--flavors", "nobody", "--case", "run-true"), "unknown flavor 'nobody'"),
        (("run", "--reference", "/no/runtime", "--case", "run-true"), "no program '/no/runtime'"),
        (("run", "--flavors", "", "--reference", "broken=/bin/false", "--case", "run-true"), "cannot run a container"),
        (("report", "/no/record"), "cannot read /no/record"),
    ):
        assert text in conformance(kata, *words).fails(2).stderr
