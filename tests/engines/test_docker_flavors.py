"""The same image under all three flavors at once, by the names and arguments that hosts have in their daemon.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import leaks
from harness.bundle import SLEEPER
from harness.dockerd import IMAGE, Docker
from harness.proc import run
from harness.runtime import Runtime
from harness.userland import PROGRAMS, MountNamespace

from .conftest import Start, host_file

pytestmark = pytest.mark.vm_only

#: docker's runtime -> flavor
RUNTIMES = {"cc-runtime": "clear", "runv": "runv", "clear-by-option": "clear", "tested": "unified"}


def flavor_of(docker: Docker, name: str) -> str:
    """What made the container with this name."""
    pid = docker.state(name)["Pid"]
    for folder in leaks.SANDBOXES.iterdir():
        record = json.loads((folder / "sandbox.json").read_text())
        for id, entry in record["containers"].items():
            file = Path(entry["root"], id, "state.json")
            state = json.loads(file.read_text()) if file.exists() else {}  # another worker's, on its way out
            if state.get("pid") == pid:
                return str(state["flavor"])
    return ""


def test_side_by_side(docker: Docker, start: Start) -> None:
    names = {runtime: start("--runtime", runtime, "--hostname", f"h-{runtime}", script=f"echo up; {SLEEPER}")
             for runtime in RUNTIMES}
    gateway = "ping -c 1 -W 10 172.17.0.1 > /dev/null && echo reached"
    for runtime, name in names.items():
        docker.wait_logs(name, "up")
        assert flavor_of(docker, name) == RUNTIMES[runtime]
        said = docker.sh(name, f"hostname; cat /sys/class/dmi/id/product_name; {gateway}").ok().stdout.splitlines()
        assert said[0] == f"h-{runtime}" and said[2] == "reached"
        assert ("i440FX" in said[1]) == (RUNTIMES[runtime] != "unified")
    docker("pause", names["cc-runtime"]).ok()
    assert docker.state(names["cc-runtime"])["Status"] == "paused"
    docker("unpause", names["cc-runtime"]).ok()
    for name in names.values():
        docker("stop", "-t", "5", name).ok()
        assert docker.state(name)["ExitCode"] in (0, 137, 143)


@pytest.mark.parametrize("name", RUNTIMES)
def test_exit_codes_and_errors(docker: Docker, name: str) -> None:
    """A process's own code; a missing program is docker's error, with the reason."""
    assert docker("run", "--rm", "--runtime", name, IMAGE, "sh", "-c", "echo out; exit 7").fails(7).out == "out"
    missing = docker("run", "--rm", "--runtime", name, IMAGE, "/no/such/program").fails()
    assert "/no/such/program" in missing.stdout + missing.stderr, missing


def test_the_road(docker: Docker, start: Start, runtime: Runtime, run_dir: Path) -> None:
    """Phase 2 warns in the log alone; phase 3 refuses what is new and drives what is there; and back."""
    def phase(number: int) -> None:
        run(runtime.path, "roadmap", "set", str(number), env={"KATA_HOST_FILE": str(host_file(run_dir))}).ok()

    def log_of(name: str) -> list[dict[str, str]]:
        found = docker.run_dir.glob(f"**/{docker.inspect(name)['Id']}/log.json")  # made with its first line
        return [json.loads(line) for path in found for line in path.read_text().splitlines()]

    def clean() -> None:
        said = docker("run", "--rm", "--runtime", "phased", IMAGE, "sh", "-c", "echo out; echo err >&2").ok()
        assert (said.stdout, said.stderr) == ("out\n", "err\n")

    phase(1)
    first = start("--runtime", "phased")
    assert not log_of(first)
    phase(2)
    clean()
    second = start("--runtime", "phased")
    [warning] = log_of(second)
    assert warning["level"] == "warning" and "flavor clear is deprecated on this host" in warning["msg"]
    assert "machine q35 instead of pc" in warning["msg"]
    phase(3)
    refused = docker("run", "--rm", "--runtime", "phased", IMAGE, "true").fails(125)
    assert "flavor clear is retired on this host" in refused.stderr, refused
    for name in (first, second):
        assert docker.sh(name, "echo driven").ok().out == "driven"
        docker("stop", "-t", "5", name).ok()
        docker("rm", name).ok()
    phase(1)
    clean()


def test_name_and_option_that_contradict(docker: Docker) -> None:
    refused = docker("run", "--rm", "--runtime", "contradiction", IMAGE, "true").fails(125)
    assert "--flavor runv and the program name 'cc-runtime' ask for different flavors" in refused.stderr, refused


def test_drop_in(runtime: Runtime, tag: str, run_dir: Path, work_dir: Path, rootfs: Path) -> None:
    """A host's daemon.json and systemd drop-in (``dockerd --add-runtime``) as they were before the links came."""
    links, folder, data = work_dir / "links", run_dir / "drop-in", work_dir / "drop-in"
    for path in (links, folder, data):
        path.mkdir()
    for name in ("cc-runtime", "runv"):
        (links / name).symlink_to(runtime.path)
    host = MountNamespace(PROGRAMS, str(links))  # where they are in /usr/bin
    options = ["--add-runtime", "runv=/usr/bin/runv"]
    host.start()
    docker = Docker(runtime, f"{tag}o", folder, data, options, {"cc-runtime": ["/usr/bin/cc-runtime"]}, host)
    try:
        docker.start(rootfs)
        for name in ("cc-runtime", "runv"):
            docker("run", "-d", "--name", name, "--runtime", name, IMAGE, "sh", "-c", SLEEPER).ok()
            assert flavor_of(docker, name) == RUNTIMES[name]
            docker("rm", "-f", name).ok()
    finally:
        docker.stop()
        host.stop()
